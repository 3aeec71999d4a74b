"""The modes of training: processes that are supervised, in one process, or simulated."""
