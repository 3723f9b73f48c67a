"""A run on disk: its folder, checkpoints, logs, and how it is resumed."""
