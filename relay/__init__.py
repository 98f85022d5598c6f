"""relay: a network envelope for one machine; see README.md."""

import os
from typing import Final

from relay import engine

__version__ = "0.1.0"

ENGINE: Final = engine.choose(os.environ.get(engine.VARIABLE, ""))
"""The form that the compiled modules have here, as of now: before any of them is imported."""
