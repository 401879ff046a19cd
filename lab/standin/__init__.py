"""A stand-in for PEM, for tests: packages under the names of the real ones."""
