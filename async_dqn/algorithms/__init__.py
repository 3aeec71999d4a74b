"""What is learned from a rollout: the returns, a loss for each method, and who acts how."""
