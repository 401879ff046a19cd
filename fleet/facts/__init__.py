"""Facts about hosts that pyinfra does not have. None of them fails a host."""
