"""What every part may use; it knows nothing of any."""
