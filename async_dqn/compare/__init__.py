"""Comparisons: which methods, run by whom, and the time to a score."""
