"""Replay, what it keeps on disk, and the collector that fills it."""
