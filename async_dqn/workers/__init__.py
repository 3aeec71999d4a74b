"""Who acts and learns; each in a process of its own, or all in one."""
