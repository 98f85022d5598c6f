"""TCP ports for tests. Each test process has a block of its own, whoever else runs tests on this machine."""

import contextlib
import functools
import socket
from typing import Final

_FIRST: Final = 10_000  # what is below is declared by programs of all kinds
_END: Final = 32_768  # from here on the kernel gives ports to clients (ip(7), ip_local_port_range)
_BLOCK: Final = 1_024  # much more than one test takes; some 22 processes get one


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on now, and that nobody else is given: no client, no other test for a long while."""
    return free_ports(1, host)


def free_ports(count: int, host: str = "127.0.0.1") -> int:
    """The first of so many such ports in a row."""
    return block().take(count, host)


def claim(name: str) -> socket.socket | None:
    """Have this name for as long as the socket is open; None while another process has it.

    One process of a network namespace has it, and no longer than it lives (unix(7), abstract).
    """
    claimed = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claimed.bind(f"\0relay-test-{name}")
    except OSError:
        claimed.close()
        return None
    return claimed


class Block:
    """Ports in a row that this process has to itself, given one after the other, and round."""

    def __init__(self) -> None:
        """Take the first block that nobody has. Raises AssertionError when there is none."""
        for first in range(_FIRST, _END - _BLOCK + 1, _BLOCK):
            if claimed := claim(f"ports-{first}"):
                self.claim = claimed
                self._first = self._next = first
                return
        raise AssertionError("every block of ports has its test process: let the others end first")

    def take(self, count: int, host: str) -> int:
        """The first of so many in a row that can be bound on `host`. Raises AssertionError when there are none."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        for _ in range(2 * _BLOCK if count <= _BLOCK else 0):  # twice round: each port was tried as the first of a row
            if self._next + count > self._first + _BLOCK:
                self._next = self._first
            first = self._next
            with contextlib.ExitStack() as probes:
                try:
                    for port in range(first, first + count):
                        self._next = port + 1
                        probes.enter_context(socket.socket(family, socket.SOCK_STREAM)).bind((host, port))
                except OSError:
                    continue
                return first
        raise AssertionError(f"not {count} free ports in a row from {self._first} to {self._first + _BLOCK - 1}")


@functools.cache
def block() -> Block:
    """The block of this process, until it ends. Its claim stands in the network namespace that asks for it first."""
    return Block()
