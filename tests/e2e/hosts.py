"""Machines of a network: network namespaces, each with one cable to the same switch (ip-netns(8), veth(4), bridge(8)).

Nothing of it is in the namespace that the tests run in. Needs root.
"""

import ctypes
import os
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import pytest

from tests.harness import HANG_S

Family = Literal["v4", "v6"]
T = TypeVar("T")
FAMILIES: Final[tuple[Family, ...]] = ("v4", "v6")
_INET: Final = {"v4": socket.AF_INET, "v6": socket.AF_INET6}
_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
# To send from an address that is another machine's: (level, option), ip(7) and linux/in6.h.
_TRANSPARENT: Final = {"v4": (socket.IPPROTO_IP, 19), "v6": (socket.IPPROTO_IPV6, 75)}


@dataclass(frozen=True)
class Host:
    """One machine. `address` is its only one, but for loopback, of each family."""

    name: str
    address: dict[Family, str]

    @property
    def wrapper(self) -> tuple[str, ...]:
        """The command that runs another one on this machine."""
        return ("ip", "netns", "exec", self.name)

    def dial(
        self, family: Family, address: str, port: int, *, source: str | None = None, for_s: float = HANG_S
    ) -> socket.socket:
        """A connection from this machine, with its own address or, forged, with that of `source`."""
        client = self._here(lambda: socket.socket(_INET[family], socket.SOCK_STREAM))
        try:
            client.settimeout(for_s)
            if source is not None:
                client.setsockopt(*_TRANSPARENT[family], 1)
                client.bind((source, 0))
            client.connect((address, port))
        except OSError:
            client.close()
            raise
        return client

    def resets_sent(self) -> int:
        """TCP segments with RST that this machine has sent (RFC 4022, tcpOutRsts)."""
        text = self._here(lambda: Path("/proc/thread-self/net/snmp").read_text())
        names, numbers = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
        return int(numbers[names.index("OutRsts")])

    def _here(self, do: Callable[[], T]) -> T:
        """What `do` returns, done in a thread that is on this machine. A socket stays where it was made (setns(2))."""

        def enter_and_do() -> T:
            with open(f"/run/netns/{self.name}") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return do()

        with ThreadPoolExecutor(1) as once:
            return once.submit(enter_and_do).result()


@contextmanager
def network(*names: str) -> Iterator[list[Host]]:
    """Machines of these names on one network; they are gone afterwards, whatever happens. Fails without root."""
    if os.geteuid() != 0:
        pytest.fail(
            "network namespaces need root: run this as root, or leave it out with `--deselect tests/e2e/test_netns.py`"
        )
    unique = f"relay-{os.getpid()}-{secrets.token_hex(3)}"  # of a killed run all is left, and its pid comes again
    switch = f"{unique}-switch"
    with ExitStack() as stack:

        def made(namespace: str) -> None:
            _ip("netns", "add", namespace)
            stack.callback(_ip, "netns", "delete", namespace)

        made(switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        hosts = []
        for number, name in enumerate(names, 1):
            host = Host(f"{unique}-{name}", {"v4": f"10.77.0.{number}", "v6": f"fd77::{number}"})
            made(host.name)
            port = f"port{number}"
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", host.name, "address", "add", f"{host.address['v4']}/24", "dev", "eth0")
            # Nobody else can have it, so there is no need to wait for an answer (RFC 4862 5.4).
            _ip("-n", host.name, "address", "add", f"{host.address['v6']}/64", "dev", "eth0", "nodad")
            for device in ("lo", "eth0"):
                _ip("-n", host.name, "link", "set", device, "up")
            hosts.append(host)
        yield hosts


def _ip(*arguments: Any) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, f"`ip {' '.join(arguments)}`: {done.stderr}"
