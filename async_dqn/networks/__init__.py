"""The Q-networks: what fits the observations, torsos, heads, noise."""
