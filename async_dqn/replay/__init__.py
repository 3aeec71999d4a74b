"""What a worker remembers, and how it draws from it."""
