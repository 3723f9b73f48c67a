"""The replay buffer, its files on disk, and the collector that fills it."""
