"""The lab: real hosts on one machine, for trying and testing the deploys."""
