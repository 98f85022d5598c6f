"""What a turn of a lane came to (splice.py)."""

from typing import Final

SAME: Final = 0
"""Whatever it wanted before, it wants now."""
CHANGED: Final = 1
"""What it holds, or its end, changed: compute interest anew."""
SOURCE_BROKEN: Final = 2
"""Reading failed: all that will ever come is in the pipe."""
SINK_BROKEN: Final = 3
"""Writing failed: nothing can be delivered any more."""
STARVED: Final = 4
"""No pipe to read into: try again later."""
