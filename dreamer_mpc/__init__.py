"""Planning with pixel world models: a Dreamer agent whose actions are refined by Dream-MPC."""

__version__ = "0.1.0"
