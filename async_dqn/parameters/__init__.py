"""The global parameters in shared memory, and the optimisers that move them."""
