"""The training loop and what it knows."""
