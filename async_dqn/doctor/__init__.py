"""What to know of a machine and of an environment before training."""
