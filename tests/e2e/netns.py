"""Network namespaces as machines: hosts on one Ethernet segment, made for a test and removed with all that runs in them."""

import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from tests.e2e.programs import RUN_S, program

_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
_libc: Final = ctypes.CDLL(None, use_errno=True)
_PREFIX: Final = {4: 16, 6: 64}  # of the segment's networks: every address given to a host is on the link


class Network:
    """Hosts by name. Everything that `inside` a host is opened or started belongs to that host."""

    def __init__(self, hosts: Mapping[str, Sequence[str]]) -> None:
        """`hosts`: the addresses of each, all of one /16 (IPv4) and of one /64 (IPv6)."""
        # A run that was killed leaves its namespaces, and another one may have its pid by now.
        self._mark = f"relay-test-{os.getpid()}-{secrets.token_hex(3)}"
        self._names = ["segment", *hosts]
        self._hosts = hosts

    def __enter__(self) -> "Network":
        try:
            for name in self._names:
                _ip("netns", "add", self.namespace(name))
            self._wire()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def namespace(self, host: str) -> str:
        """The name by which `ip netns` knows the host."""
        return f"{self._mark}-{host}"

    def _wire(self) -> None:
        """One bridge in a namespace of its own, and a cable from it to each host."""
        segment = ["link set lo up", "link add bridge type bridge", "link set bridge up"]
        for n, host in enumerate(self._hosts):
            segment.append(f"link add port{n} type veth peer name eth0 netns {self.namespace(host)}")
            segment.append(f"link set port{n} master bridge up")
        _ip("-n", self.namespace("segment"), "-batch", "-", stdin=segment)
        for host, addresses in self._hosts.items():
            lines = ["link set lo up", "link set eth0 up"]
            for address in addresses:
                version = 6 if ":" in address else 4
                # nodad: an address that is still being asked about cannot be listened on (RFC 4862, 5.4).
                lines.append(f"address add {address}/{_PREFIX[version]} dev eth0" + (" nodad" if version == 6 else ""))
            _ip("-n", self.namespace(host), "-batch", "-", stdin=lines)

    def cable(self, host: str, *, plugged: bool) -> None:
        """Pull the host's cable out, or put it back: what is sent to it is dropped without a word."""
        port = f"port{list(self._hosts).index(host)}"
        # At the bridge. The link itself stays up: a host that sees its link go down says so to its own programs.
        line = f"link set {port} " + ("master bridge" if plugged else "nomaster")
        _ip("-n", self.namespace("segment"), "-batch", "-", stdin=[line])

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """This thread is on the host: what it opens and whom it starts. Threads that it starts meanwhile are as well."""
        with (
            open("/proc/thread-self/ns/net", "rb") as before,
            open(f"/run/netns/{self.namespace(host)}", "rb") as there,
        ):
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def remove(self) -> None:
        """End what still runs in the namespaces, and remove them."""
        for name in self._names:
            if not os.path.exists(f"/run/netns/{self.namespace(name)}"):
                continue
            for pid in map(int, _ip("netns", "pids", self.namespace(name)).split()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _ip("netns", "delete", self.namespace(name))


def _enter(namespace_fd: int) -> None:
    if _libc.setns(namespace_fd, _CLONE_NEWNET):  # setns(2): this thread alone
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ip(*arguments: str, stdin: Sequence[str] = ()) -> str:
    done = subprocess.run(
        [program("ip"), *arguments], input="\n".join(stdin), capture_output=True, text=True, timeout=RUN_S
    )
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout
