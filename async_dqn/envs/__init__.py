"""Environments: what they are, how they are built, stepped in batches and mended."""
