"""Sweeps: many training runs, and starting them."""
