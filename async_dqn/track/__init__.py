"""A run reported to Weights & Biases or MLflow, from its folder, by a process of its own."""
