"""Search for settings with Optuna: trials are runs, stopped early where others were better."""
