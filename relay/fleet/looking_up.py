"""Asking a source where instances are: a name (A and AAAA), a service record (RFC 2782), or a file.

dnspython sees to what makes an answer one: it is from who was asked, by the id and the question that were sent, whole (a
truncated one is asked for again by TCP), and of all records in it those count that the question's name leads to. What this
machine's own files say of a name comes first, as libc has it; but not where DNS has named it.

It is imported by who asks first: most services have no names, and it takes 2 MiB.
"""

import asyncio
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from relay.address import join_host_port
from relay.config import reading
from relay.config.instances import SOURCES_MAX, Listed
from relay.errors import OperatorError, SourceError, os_reason
from relay.fleet.listed_file import SIZE_MAX_BYTES, Entry, entries_of
from relay.fleet.local_names import LOOK_S, Local, LocalNames
from relay.fleet.places import Place, SourceAnswer, in_order, shares, usable
from relay.kernel.aside import aside

TTL_MIN_S: Final = 1.0
"""An answer counts for so long, whatever it says: a server that forbids to remember would be asked without a pause."""
TTL_MAX_S: Final = 300.0
"""And no longer than this: a mistake in a zone is mended here within five minutes."""
LIFETIME_S: Final = 5.0
"""For an answer, from whichever server."""
_GIVEN_UP_S: Final = 0.5  # after that it is ended by us: dnspython measures by the clock that people set
_AT_ONCE_MAX: Final = 32  # questions under way: a service record with a thousand machines is no flood
_FAILED_AGAIN_S: Final = 5.0  # a name in a file that gave no answer is asked for again
_VERSIONS: Final = {4: "A", 6: "AAAA"}
_BOTH: Final = frozenset(_VERSIONS)


@dataclass(frozen=True, slots=True)
class _Found:
    """The addresses of one name, for so long. `unsure` and `trouble` as in `SourceAnswer`."""

    addresses: tuple[str, ...]
    ttl_s: float
    unsure: frozenset[int] = frozenset()
    trouble: str = ""
    left_out: tuple[str, ...] = ()


class LookUp:
    """Asks for one item of a role's `instances`. Used in one event loop."""

    def __init__(self, names: LocalNames, item: Listed, directory: str) -> None:
        """`directory`: where a file's path begins that is not absolute."""
        self._names = names
        self._item = item
        self._path = os.path.join(directory, item.text)
        self._room = asyncio.Semaphore(_AT_ONCE_MAX)
        self._stamp: tuple[int, int, int] | None = None
        self._entries: tuple[Entry, ...] = ()
        self._remembered: dict[str, tuple[float, _Found]] = {}  # of a file's names, until when

    async def ask(self) -> SourceAnswer:
        """What the source says now. Raises SourceError where that is not to be had."""
        if self._item.kind == "file":
            return await self._ask_file()
        local = await self._names.look()
        if self._item.kind == "srv":
            return await self._ask_service(local)
        found = await self._addresses(local, self._item.text, search=True)
        if found.unsure == _BOTH:
            raise SourceError(found.trouble)
        places = in_order(Place.of(address) for address in found.addresses)
        return SourceAnswer(places, found.ttl_s, found.unsure, found.trouble, found.left_out)

    # --- DNS ----------------------------------------------------------------------------------------------------

    async def _addresses(self, local: Local, name: str, *, search: bool, by_dns: bool = False) -> _Found:
        """The addresses of a name, of both versions. `by_dns`: a server has named it, and is believed no more by it."""
        if (written := local.hosts.get(name.lower().removesuffix("."))) is not None:
            return _usable(_Found(written, TTL_MIN_S), by_dns=by_dns)
        asked = [self._version(local, name, version, search) for version in _VERSIONS]
        found = [_usable(each, by_dns=True) for each in await asyncio.gather(*asked)]
        return _together(found)

    async def _version(self, local: Local, name: str, version: int, search: bool) -> _Found:
        try:
            records, ttl_s = await self._records(local, name, _VERSIONS[version], search=search)
        except SourceError as error:
            return _Found((), TTL_MAX_S, frozenset({version}), str(error))
        return _Found(tuple(record.address for record in records), ttl_s)

    async def _ask_service(self, local: Local) -> SourceAnswer:
        import dns.name

        records, ttl_s = await self._records(local, self._item.text, "SRV", search=True)
        records = [record for record in records if record.target != dns.name.root][:SOURCES_MAX]
        names = list(dict.fromkeys(record.target.to_text() for record in records))
        asked = [self._addresses(local, name, search=False, by_dns=True) for name in names]
        by_name = dict(zip(names, await asyncio.gather(*asked), strict=True))
        whole = _together([_Found((), ttl_s), *by_name.values()])
        first = min((record.priority for record in records), default=0)
        places = []
        for priority in sorted({record.priority for record in records}):
            alike = sorted(record for record in records if record.priority == priority)
            for record, share in zip(alike, shares(record.weight for record in alike), strict=True):
                addresses = by_name[record.target.to_text()].addresses
                places += [Place.of(each, record.port, share, priority != first) for each in addresses]
        return SourceAnswer(in_order(places), whole.ttl_s, whole.unsure, whole.trouble, whole.left_out)

    async def _records(self, local: Local, name: str, kind: str, *, search: bool) -> tuple[list[Any], float]:
        """The records of this kind that a name leads to, if it has any; and for how long, with all aliases on the way."""
        import dns.asyncbackend
        import dns.exception
        import dns.resolver

        backend = dns.asyncbackend.get_backend("asyncio")
        keys: dict[str, Any] = {"raise_on_no_answer": False, "lifetime": LIFETIME_S, "search": search}
        try:
            async with self._room, asyncio.timeout(LIFETIME_S + _GIVEN_UP_S):
                answer = await local.resolver.resolve(name, kind, backend=backend, **keys)
        except dns.resolver.NXDOMAIN as error:
            responses = error.responses().values()  # type: ignore[no-untyped-call]
            ttls_s = [each.resolve_chaining().minimum_ttl for each in responses]
            return [], _bounded(min(ttls_s, default=0))
        except (dns.exception.DNSException, OSError, ValueError, TimeoutError) as error:
            raise SourceError(f"{name} ({kind}): {_why(error)}") from None
        ttl_s = _bounded(answer.chaining_result.minimum_ttl)
        return list(answer.rrset or ()), ttl_s

    # --- files --------------------------------------------------------------------------------------------------

    async def _ask_file(self) -> SourceAnswer:
        """What the file lists. It is looked at each second, so that is for how long an answer counts."""
        try:
            await aside(self._read)
        except OperatorError as error:
            raise SourceError(str(error)) from None
        names = list(dict.fromkeys(host for host, _ in self._entries if not _is_address(host)))
        await self._remember(names)
        by_name = {name: self._remembered[name][1] for name in names}
        places: list[Place] = []
        left_out: list[str] = []
        for host, port in self._entries:
            given = by_name[host] if host in by_name else _usable(_Found((host,), LOOK_S), by_dns=False)
            places += [Place.of(address, port) for address in given.addresses]
            left_out += given.left_out
        whole = _together(by_name.values())
        return SourceAnswer(in_order(places), LOOK_S, whole.unsure, whole.trouble, tuple(dict.fromkeys(left_out)))

    def _read(self) -> None:
        """Read it, if it has changed since. Raises OperatorError."""
        try:
            stamp = reading.within(reading.DEADLINE_S, self._path, partial(_stamp, self._path))
        except OSError:
            stamp = None  # reading it tells why
        if stamp is not None and stamp == self._stamp:
            return
        self._stamp = None
        content = reading.read_bytes(self._path, deadline_s=reading.DEADLINE_S, most_bytes=SIZE_MAX_BYTES)
        self._entries = entries_of(content, self._path)
        self._stamp = stamp

    async def _remember(self, names: Iterable[str]) -> None:
        """Ask for those of a file's names whose time is over; of the others nothing is kept."""
        now_s = time.monotonic()
        self._remembered = {name: self._remembered[name] for name in names if name in self._remembered}
        due = [name for name in names if self._remembered.get(name, (0.0, None))[0] <= now_s]
        if not due:
            return
        local = await self._names.look()
        for name, found in zip(
            due, await asyncio.gather(*(self._addresses(local, name, search=True) for name in due)), strict=True
        ):
            for_s = min(found.ttl_s, _FAILED_AGAIN_S) if found.unsure else found.ttl_s
            self._remembered[name] = time.monotonic() + for_s, found


def _stamp(path: str) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns, found.st_size


def _is_address(host: str) -> bool:
    return ":" in host or host.rpartition(".")[2].isdecimal()


def _usable(found: _Found, *, by_dns: bool) -> _Found:
    judged = [usable(address, by_dns=by_dns) for address in found.addresses]
    good = tuple(dict.fromkeys(address for address, _ in judged if address))
    return replace(found, addresses=good, left_out=tuple(why for _, why in judged if why))


def _together(found: Iterable[_Found]) -> _Found:
    """All of them as one: with the shortest time of those that were answered."""
    there = list(found)
    ttls_s = [each.ttl_s for each in there if not each.unsure or each.addresses]
    troubles = dict.fromkeys(each.trouble for each in there if each.trouble)
    return _Found(
        tuple(dict.fromkeys(address for each in there for address in each.addresses)),
        min(ttls_s, default=TTL_MIN_S),
        frozenset(version for each in there for version in each.unsure),
        "; ".join(troubles),
        tuple(dict.fromkeys(why for each in there for why in each.left_out)),
    )


def _bounded(ttl_s: float) -> float:
    return min(max(float(ttl_s), TTL_MIN_S), TTL_MAX_S)


def _why(error: Exception) -> str:
    """Why there is no answer, by server where that is known."""
    import dns.exception

    said: dict[str, None] = {}
    for server, _, _, failure, _ in getattr(error, "kwargs", {}).get("errors") or ():
        where = str(server).removeprefix("Do53:").rsplit("@", 1)
        if isinstance(failure, dns.exception.Timeout):
            what = "does not answer"
        else:
            what = f"cannot be asked: {os_reason(failure)}" if isinstance(failure, OSError) else f"answered {failure}"
        said[f"{join_host_port(where[0], int(where[-1]))} {what}"] = None
    if said:
        return "; ".join(said)
    if isinstance(error, (dns.exception.Timeout, TimeoutError)):
        return f"no answer within {LIFETIME_S:g} s"
    return str(error) or type(error).__name__
