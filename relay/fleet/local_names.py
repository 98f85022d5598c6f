"""What this machine itself says of names: /etc/hosts, and in /etc/resolv.conf which servers are asked.

Both are looked at again once a second while anybody asks, and read when they have changed. Either may lie on a file system
that hangs: then what was read last goes on to count.
"""

import asyncio
import io
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from relay.config import reading
from relay.config.values import HostPort
from relay.errors import OperatorError, SourceError, UnreadableError
from relay.kernel.aside import aside

if TYPE_CHECKING:
    import dns.asyncresolver

RESOLV_CONF: Final = "/etc/resolv.conf"
HOSTS: Final = "/etc/hosts"
LOOK_S: Final = 1.0
"""So long what was found at the last look counts."""
_DEADLINE_S: Final = 2.0  # for a file of a few hundred bytes; a source has others to ask for
_SIZE_MAX_BYTES: Final = 16 * 1024 * 1024  # a hosts file that blocks advertisements has some megabytes
_LOCAL: Final = "127.0.0.1"  # where nothing is said: resolv.conf(5)
_TRY_S: Final = 2.0  # for one server to answer, before the next one is asked

Hosts = Mapping[str, tuple[str, ...]]
"""Addresses by name, in lower case."""
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Local:
    """What names this machine knows by itself, and whom it asks for others."""

    hosts: Hosts
    resolver: "dns.asyncresolver.Resolver"


class _Watched:
    """A file's bytes, as they were read when it last changed; none, while there is no such file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.content = b""
        self._stamp: _Stamp | None = None
        self._has_read = False

    def look(self) -> bool:
        """Whether it has changed since the last look. Raises UnreadableError where it was never read, and cannot be."""
        try:
            stamp = reading.within(_DEADLINE_S, self.path, partial(_stamp, self.path))
            if self._has_read and stamp == self._stamp:
                return False
            content = b""
            if stamp is not None:
                content = reading.read_bytes(self.path, deadline_s=_DEADLINE_S, most_bytes=_SIZE_MAX_BYTES)
        except UnreadableError:
            if self._has_read:
                return False
            raise
        self.content, self._stamp, self._has_read = content, stamp, True
        return True


class LocalNames:
    """Reads both files, for all sources together. Used in one event loop."""

    def __init__(
        self, servers: tuple[HostPort, ...] = (), *, resolv_conf: str = RESOLV_CONF, hosts: str = HOSTS
    ) -> None:
        """`servers` are asked in place of those that `resolv_conf` names."""
        self._servers = servers
        self._files = _Watched(resolv_conf), _Watched(hosts)
        self._local: Local | None = None
        self._until_s = 0.0
        self._looking = asyncio.Lock()

    async def look(self) -> Local:
        """What the files say now. Raises SourceError where they were never read, and cannot be."""
        async with self._looking:
            if self._local is None or time.monotonic() >= self._until_s:
                try:
                    self._local = await aside(self._look)
                except OperatorError as error:
                    raise SourceError(str(error)) from None
                self._until_s = time.monotonic() + LOOK_S
            return self._local

    def _look(self) -> Local:
        resolv_conf, hosts = self._files
        changed = [resolv_conf.look(), hosts.look()]
        if self._local is not None and not any(changed):
            return self._local
        resolver = resolver_of(resolv_conf.content, self._servers)
        return Local(hosts_of(hosts.content) if changed[1] or self._local is None else self._local.hosts, resolver)


def _stamp(path: str) -> _Stamp | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def hosts_of(content: bytes) -> Hosts:
    """What a hosts file says (hosts(5)): every address of each name. A line that says nothing is passed over."""
    found: dict[str, dict[str, None]] = {}
    for line in content.decode(errors="replace").splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        try:
            text = str(ip_address(address))
        except ValueError:
            continue
        for name in names:
            found.setdefault(name.lower().removesuffix("."), {})[text] = None
    return MappingProxyType({name: tuple(addresses) for name, addresses in found.items()})


def resolver_of(content: bytes, servers: tuple[HostPort, ...] = ()) -> "dns.asyncresolver.Resolver":
    """Who is asked by a file as resolv.conf(5) has it; in place of its servers these, if any are given.

    A server that makes no sense is passed over, as libc does.
    """
    import dns.asyncresolver
    import dns.exception
    import dns.nameserver
    import dns.resolver

    lines = [line for line in content.decode(errors="replace").splitlines() if not _is_no_server(line)]
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.timeout = _TRY_S
    try:
        resolver.read_resolv_conf(io.StringIO("\n".join([*lines, ""])))
    except dns.resolver.NoResolverConfiguration:
        resolver.nameservers = [_LOCAL]
    except dns.exception.DNSException as error:
        raise SourceError(f"{RESOLV_CONF} cannot be used: {error}; mend it") from None
    resolver.timeout = min(max(resolver.timeout, 1.0), _TRY_S)
    if servers:
        resolver.nameservers = [dns.nameserver.Do53Nameserver(server.addresses[0], server.port) for server in servers]
    return resolver


def _is_no_server(line: str) -> bool:
    words = line.split()
    if len(words) < 2 or words[0] != "nameserver":
        return False
    try:
        ip_address(words[1])
    except ValueError:
        return True
    return False
