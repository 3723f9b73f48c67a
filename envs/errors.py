"""The one error that this package raises for its user's mistakes."""


class EnvError(ValueError):
    """An environment that cannot be made; its message is one line that names the remedy."""
