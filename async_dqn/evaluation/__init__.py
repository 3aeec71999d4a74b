"""What a snapshot of the parameters is worth: episodes, who plays them, and what is decided."""
