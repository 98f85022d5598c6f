"""relay: a network envelope for one machine; see README.md."""

__version__ = "0.1.0"
