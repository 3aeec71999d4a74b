"""Child processes: how they start, live, show that they do, and end."""
