"""Small networks that decide like a large one."""
