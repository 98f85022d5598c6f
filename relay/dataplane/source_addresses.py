"""From which address a loopback target is dialled: one has some 28,000 ports for each target, and there are many.

TCP tells connections apart by both addresses and both ports. When all ports of the usual address are taken towards a
target, connect(2) fails with EADDRNOTAVAIL; from the next address of 127.0.0.0/8 it goes on.
"""

from typing import Final

from relay.config.snapshot import TargetRow

_ADDRESSES: Final = 250  # 127.0.0.2 and the ones that follow; then the first ones are free again
_USUAL_AGAIN_NS: Final = 60_000_000_000
"""After so long the usual address is tried again: a target may know it. It costs the kernel's search for a port, some ms."""


class SourceAddresses:
    """Of one worker. Where nothing was taken so far there is nothing to look at."""

    def __init__(self) -> None:
        self.in_use = False  # whether any target is dialled from another address than the usual one
        # By the target's text: how many addresses further, and until when (ns).
        self._at: dict[str, tuple[int, int]] = {}

    def of(self, row: TargetRow, now_ns: int) -> str:
        """The address to dial it from; empty: the one that the kernel takes."""
        further, until_ns = self._at.get(row.text, (0, 0))
        if now_ns < until_ns:
            return _address(further)
        if self._at.pop(row.text, None):
            self.in_use = bool(self._at)
        return ""

    def further(self, row: TargetRow, now_ns: int) -> str:
        """No port is free from that one: the address to dial it from now on."""
        further = self._at.get(row.text, (0, 0))[0] % _ADDRESSES + 1
        self._at[row.text] = further, now_ns + _USUAL_AGAIN_NS
        self.in_use = True
        return _address(further)


def _address(further: int) -> str:
    return f"127.0.0.{further + 1}"
