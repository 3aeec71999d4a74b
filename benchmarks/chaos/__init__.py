"""Real faults against real runs, and what the promises of docs/reliability.md come to."""
