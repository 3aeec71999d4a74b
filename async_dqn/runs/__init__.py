"""A run and what it leaves: its folder, records, checkpoints, and how it goes on."""
