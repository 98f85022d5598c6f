"""Machines for the bench: network namespaces on one Ethernet segment, removed at the end with all that runs in them."""

import contextlib
import os
import secrets
import signal
from collections.abc import Mapping
from pathlib import Path

from process import BenchError, run_tool


class Machines:
    """Hosts by name, each with one address of one /16. A context manager; raises BenchError where they cannot be had."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        """`addresses`: of each host."""
        self._addresses = dict(addresses)
        self._mark = f"relay-bench-{os.getpid()}-{secrets.token_hex(3)}"

    def __enter__(self) -> "Machines":
        if os.geteuid() != 0:
            raise BenchError("network namespaces take root: run it as root")
        try:
            for name in ("segment", *self._addresses):
                _ip("netns", "add", self._namespace(name))
            self._wire()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _namespace(self, host: str) -> str:
        return f"{self._mark}-{host}"

    def _wire(self) -> None:
        lines = ["link set lo up", "link add bridge type bridge", "link set bridge up"]
        for host in self._addresses:
            lines.append(f"link add {host} type veth peer name eth0 netns {self._namespace(host)}")
            lines.append(f"link set {host} master bridge up")
        _ip("-n", self._namespace("segment"), "-batch", "-", lines=lines)
        for host, address in self._addresses.items():
            lines = ["link set lo up", "link set eth0 up", f"address add {address}/16 dev eth0"]
            _ip("-n", self._namespace(host), "-batch", "-", lines=lines)

    def on(self, host: str, command: list[str]) -> list[str]:
        """The command line that runs `command` on the host, as the same process."""
        return ["ip", "netns", "exec", self._namespace(host), *command]

    def pull_cable(self, host: str) -> None:
        """From now on nothing comes from the host, and what is sent to it is dropped without a word."""
        _ip("-n", self._namespace("segment"), "link", "set", host, "nomaster")

    def _remove(self) -> None:
        for name in ("segment", *self._addresses):
            namespace = self._namespace(name)
            if not Path("/run/netns", namespace).exists():
                continue
            for pid in map(int, _ip("netns", "pids", namespace).split()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _ip("netns", "delete", namespace)


def _ip(*arguments: str, lines: list[str] | None = None) -> str:
    return run_tool(["ip", *arguments], "iproute2", lines)
