"""Agents for use elsewhere: files that decide without this program, or without torch."""
