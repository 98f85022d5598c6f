"""The clock that the data plane goes by."""

from relay import calls


class Clock:
    """CLOCK_MONOTONIC. Tests have one that they move themselves."""

    __slots__ = ()

    def now_ns(self) -> int:
        """Now."""
        return calls.now_ns()
