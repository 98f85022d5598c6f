"""The network between the parts of the bench: loopback, or a veth pair between two network namespaces.

Over the pair a segment is a segment: offloads that would make one of many are off, as they are on no loopback.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from process import BenchError, Process, run_tool

NETWORK = "198.18.0.{}"  # RFC 2544: for benchmarks
PREFIX = 24
OFFLOADS = ("tso", "gso", "gro")

_CLONE_NEWNET = 0x40000000  # setns(2)
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Side:
    """One end: its address, and a process in its network namespace (None: the bench's own)."""

    host: str
    pid: int | None = None

    def command(self, command: list[str]) -> list[str]:
        """The command line that runs `command` there, as the same process."""
        return command if self.pid is None else ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command]

    def inside(self) -> AbstractContextManager[None]:
        """Sockets that this thread makes meanwhile are there."""
        return contextlib.nullcontext() if self.pid is None else _inside(self.pid)


@dataclass(frozen=True, slots=True)
class Network:
    """Clients and servers are at `near`, forwarders at `far`."""

    near: Side
    far: Side


LOOPBACK = Network(Side("127.0.0.1"), Side("127.0.0.1"))


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise BenchError(f"setns: {os.strerror(ctypes.get_errno())}")


@contextlib.contextmanager
def _inside(pid: int) -> Iterator[None]:
    with open("/proc/thread-self/ns/net") as own, open(f"/proc/{pid}/ns/net") as other:
        _enter(other.fileno())
        try:
            yield
        finally:
            _enter(own.fileno())


@contextlib.contextmanager
def veth_pair(folder: Path) -> Iterator[Network]:
    """Two namespaces with a veth pair between them. Raises BenchError where they cannot be had.

    A namespace lives as long as a process in it: whatever ends the bench, also SIGKILL, ends those, and the pair with
    them.
    """
    if os.geteuid() != 0:
        raise BenchError("network namespaces take root: run it as root")
    with ExitStack() as stack:
        near, far = (Side(NETWORK.format(n), _namespace(stack, folder / f"namespace-{n}")) for n in (1, 2))
        pair = f"link add veth type veth peer name veth netns {far.pid}"
        run_tool(near.command(["ip", "-batch", "-"]), "iproute2", ["link set lo up", pair])
        for side in (near, far):
            up = ["link set lo up", f"address add {side.host}/{PREFIX} dev veth", "link set veth up"]
            run_tool(side.command(["ip", "-batch", "-"]), "iproute2", up)
            off = [word for offload in OFFLOADS for word in (offload, "off")]
            run_tool(side.command(["ethtool", "-K", "veth", *off]), "ethtool")
        yield Network(near, far)


def _namespace(stack: ExitStack, log: Path) -> int:
    """A process in a network namespace of its own; its pid."""
    process = Process("namespace", ["unshare", "--net", "sleep", "infinity"], cpus=None, log=log, cwd=log.parent)
    stack.callback(process.stop)
    own = os.readlink("/proc/self/ns/net")
    process.wait_until(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != own, "in a namespace of its own")
    return process.pid
