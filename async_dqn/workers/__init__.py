"""Who acts, learns and evaluates; each in a process of its own, or all in one."""
