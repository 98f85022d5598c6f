"""Taking this machine's number before anything else starts: by etcd, or while it is down the number that it had."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import urlsplit

from relay.config.model import Service
from relay.config.roster import Member, split_instance
from relay.config.settings import Registry, Settings
from relay.config.wording import shown
from relay.errors import IdentityError, OperatorError, RegistryError
from relay.fleet.claim import Claimant, claim, earlier_run, may_replace
from relay.fleet.directory import Directory
from relay.fleet.entries import Entry, EntryKeys, read_entry
from relay.fleet.etcd import EtcdClient
from relay.fleet.gateway import Refused
from relay.fleet.identity import Vacancy
from relay.fleet.last_roster import Remembered, recall
from relay.fleet.machine_id import Daemon, machine_hash
from relay.fleet.presence import backoff_s

# An etcd cluster that elects, or a machine whose network is just coming up, is back within this. Longer, and a service
# manager waits for nothing.
REACH_S: Final = 15.0
# With a roster that was kept, nobody has to wait for etcd: just not to begin with an old one for want of a second look.
REACH_REMEMBERED_S: Final = 2.0
# Addresses of documentation (RFC 5737, RFC 3849): nobody has them, so the default route leads there.
_ANYWHERE: Final = ("198.51.100.1", "2001:db8::1")
T = TypeVar("T")

_DISCARD_PORT: Final = 9  # a datagram socket that connects sends nothing


@dataclass(frozen=True, slots=True)
class Joined:
    """Which instance this machine is, where it can be reached, and who else is there.

    `confirmed_ns` is when the registry said so, as in `Seen`. `remembered`: it was before this start, and `warning` says why
    it is believed all the same.
    """

    instance: str
    address: str
    members: tuple[Member, ...]
    confirmed_ns: int
    remembered: bool = False
    warning: str = ""
    leases: tuple[int, ...] = ()  # what was newly taken stands on them: see `abandon`


def join(service: Service, settings: Settings, vacancy: Vacancy) -> Joined:
    """Take the number of a counted role. Waits for etcd, and for the lease of whoever had the number before.

    Runs an event loop of its own and leaves nothing behind, so that the process can fork. Raises IdentityError, and
    RegistryError, also for the registry's files.
    """
    registry = settings.registry
    if registry is None or not registry.etcd:
        raise IdentityError(f"role `{vacancy.role}` has a count of instances; write `registry: {{etcd: […]}}`")
    machine = machine_hash(settings.machine_id, service.service)
    address = own_address(settings, registry)
    me = Claimant(service.service, machine, Daemon.of(os.getpid(), address), address, registry.ttl_s, registry.hold_s)
    count = service.roles[vacancy.role].count
    found = recall(registry.state, service.service, machine)
    if found is not None and not _fits(found, vacancy, count):
        found = None
    try:
        return asyncio.run(_by_etcd(registry, me, vacancy, count, REACH_S if found is None else REACH_REMEMBERED_S))
    except RegistryError as error:
        if found is None:
            raise RegistryError(f"{error}; see `registry` in instance.yaml") from None
        return _by_memory(found, address, str(error))


def abandon(settings: Settings, joined: Joined) -> None:
    """Give back what `join` took anew, because the daemon cannot start after all. It tries once, and raises nothing."""

    async def revoke() -> None:
        assert settings.registry is not None, "it was asked"
        async with EtcdClient.of(settings.registry) as client:
            for lease in joined.leases:
                await client.revoke(lease)

    if joined.leases:
        with contextlib.suppress(OperatorError):
            asyncio.run(revoke())


def known_at_start(service: Service, settings: Settings) -> tuple[tuple[Member, ...], int]:
    """Whom the registry tells of without being asked, and when it did (CLOCK_MONOTONIC in ns, as in `Seen`; 0: never).

    Of a directory what is in it; of etcd what this machine was told before it stopped. Raises RegistryError for a directory
    that cannot be read.
    """
    registry = settings.registry
    if registry is None:
        return (), 0
    if registry.directory is not None:
        seen = Directory(registry.directory).current
        if not seen.confirmed_ns:
            raise RegistryError(seen.trouble)
        return seen.members, seen.confirmed_ns
    try:
        found = recall(registry.state, service.service, machine_hash(settings.machine_id, service.service))
    except IdentityError:
        return (), 0
    return (found.members, found.confirmed_ns) if found is not None else ((), 0)


def own_address(settings: Settings, registry: Registry) -> str:
    """Where others reach this machine: by the settings, else by the way to the registry, else by the default route.

    Raises IdentityError.
    """
    if settings.address is not None and not settings.address.is_unspecified:
        return str(settings.address)
    hosts = [(urlsplit(url).hostname or "", urlsplit(url).port or 0) for url in registry.etcd]
    for host, port in (*hosts, *((host, _DISCARD_PORT) for host in _ANYWHERE)):
        found = _local_address(host, port)
        if found is not None:
            return found
    raise IdentityError(
        "cannot tell by which address others reach this machine: no way leads to the registry or elsewhere but over "
        "loopback; write `address` into instance.yaml"
    )


def _local_address(host: str, port: int) -> str | None:
    """The address that a datagram to there would come from; None when there is no way, or one that others cannot use."""
    try:
        found = socket.getaddrinfo(host, port or _DISCARD_PORT, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, protocol, _, there in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(there)
                local = str(probe.getsockname()[0])
        except OSError:
            continue
        if not local.startswith(("127.", "169.254.", "fe80:", "::")) and local != "0.0.0.0":
            return local
    return None


async def _by_etcd(registry: Registry, me: Claimant, vacancy: Vacancy, count: int, reach_s: float) -> Joined:
    async with EtcdClient.of(registry) as client:

        async def there() -> list[Entry]:
            (found,) = (await client.range(EntryKeys(me.service).all_members)).found
            places = [(EntryKeys(me.service).place_of(each.key), each.value or b"") for each in found]
            entries = [read_entry(place, value) for place, value in places if place is not None]
            return [entry for entry in entries if entry is not None]

        _refuse_taken_address(me, vacancy, await _until_reached(there, me.ttl_s, reach_s))
        claimed = await _until_reached(lambda: claim(client, me, vacancy, count), me.ttl_s, reach_s)
        members = tuple(sorted(entry.member for entry in await _until_reached(there, me.ttl_s, reach_s)))
    name = f"{vacancy.role}_IN_{claimed.ordinal}"
    return Joined(name, me.address, members, time.monotonic_ns(), leases=claimed.leases)


def _refuse_taken_address(me: Claimant, vacancy: Vacancy, there: list[Entry]) -> None:
    """Two instances with one address would each be left out of the other's roster. Raises IdentityError."""
    for entry in there:
        if entry.member.address != me.address or may_replace(entry, me.machine, me.daemon):
            continue
        if entry.machine == me.machine and entry.member.role != vacancy.role:
            raise IdentityError(earlier_run(entry))
        if entry.machine != me.machine:
            raise IdentityError(
                f"{entry.member.id} is at the address {me.address} already; write another `address` into instance.yaml, or "
                "stop relay there"
            )


async def _until_reached(ask: Callable[[], Awaitable[T]], ttl_s: float, reach_s: float) -> T:
    """What `ask` gives, tried again while etcd does not answer, for so long. Raises RegistryError after that.

    What etcd refuses, it refuses: a password is not better the next time.
    """
    failing_since_s: float | None = None
    failures = 0
    while True:
        try:
            return await ask()
        except Refused:
            raise
        except RegistryError:
            failures += 1
            now_s = time.monotonic()
            failing_since_s = failing_since_s if failing_since_s is not None else now_s
            if now_s - failing_since_s > reach_s:
                raise
            await asyncio.sleep(backoff_s(failures, ttl_s))


def _fits(found: Remembered, vacancy: Vacancy, count: int) -> bool:
    """Whether the number that was remembered is one that may be taken now."""
    role, ordinal = split_instance(found.instance)
    return role == vacancy.role and ordinal < count and vacancy.ordinal in (None, ordinal)


def _by_memory(found: Remembered, address: str, why: str) -> Joined:
    then = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found.saved_ns / 1e9))
    warning = f"{why}; this is {shown(found.instance)} by the roster of {then}, until the registry answers"
    return Joined(found.instance, address, found.members, found.confirmed_ns, remembered=True, warning=warning)
