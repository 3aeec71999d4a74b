"""What a user may set: every setting with its range, the rules between them, presets, options."""
