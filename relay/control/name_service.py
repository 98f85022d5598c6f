"""Names at work: the zone follows roster and health, and is answered from on a socket and kept in a hosts file."""

import asyncio
import math
import socket
import time
from functools import partial
from typing import Final

from relay.config.settings import Names
from relay.control.discovery import Fleet, unhealthy
from relay.errors import OperatorError
from relay.kernel.aside import aside
from relay.ledger.layout import NAMES_RCODES, DaemonWord
from relay.ledger.ledger import Ledger
from relay.log import Logger
from relay.names import hosts
from relay.names.server import NamesServer, serve_names
from relay.names.zone import Zone

# Where a machine has no name server, its zone is still what the hosts file is made from; it has the apex' address then.
_NOWHERE: Final = "127.0.0.1"


_PAUSE_S: Final = 0.9  # between two zones: of a thousand instances one takes 0.1 s, in which control does nothing else
_END_S: Final = 2.0  # a disk that is busy takes as long; for one that hangs nobody waits
_LOOK_S: Final = 30.0  # a hosts file that could not be written, or that somebody else wrote, is looked at again


class Naming:
    """The names of the service on this machine. `follow` is told how things are, again and again."""

    def __init__(self, settings: Names, ledger: Ledger, log: Logger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._log = log
        self._server: NamesServer | None = None
        self._made_of: tuple[object, ...] = ()
        self._zone: Zone | None = None
        self._serial = 0
        self._counted: dict[str, int] = {}
        self._left_out: tuple[str, ...] = ()
        self._writing: asyncio.Task[None] | None = None
        self._failed = ""
        self._made_s = self._look_at_s = -math.inf

    async def serve(self, udp: socket.socket, tcp: socket.socket) -> None:
        """Answer on these sockets; `follow` must have been told before."""
        assert self._zone is not None, "see above"
        self._server = await serve_names(udp, tcp, self._zone.answer, self._log)

    @property
    def is_wanted(self) -> bool:
        """Whether anybody on this machine is told names."""
        return self._settings.listen is not None or self._settings.hosts is not None

    def follow(self, fleet: Fleet) -> None:
        """Go by this roster and this health from now on. Costs little when neither has changed."""
        now_s = time.monotonic()
        sick = unhealthy(fleet)
        made_of = (fleet.service, fleet.roster, sick)
        if made_of != self._made_of and now_s - self._made_s >= _PAUSE_S:
            self._serial += 1
            self._zone = zone_of(fleet, sick, self._settings, self._serial)
            self._made_of, self._made_s = made_of, now_s
            if self._server is not None:
                self._server.answer = self._zone.answer
            self._say_what_is_left_out()
            self._write_hosts(now_s)
        elif now_s >= self._look_at_s:
            self._write_hosts(now_s)
        self._count()

    async def end(self) -> None:
        """Answer no more. A hosts file stays as it is: names go on to lead where they led."""
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=_END_S)
        self._count()
        if self._server is not None:
            await self._server.close()

    def _say_what_is_left_out(self) -> None:
        assert self._zone is not None, "made before"
        if self._zone.left_out != self._left_out:
            self._left_out = self._zone.left_out
            for message in self._left_out:
                self._log.event("warning", "names", message=message)

    def _write_hosts(self, now_s: float) -> None:
        self._look_at_s = now_s + _LOOK_S
        if self._settings.hosts is not None and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._write_until_it_is_right(), name="hosts")

    async def _write_until_it_is_right(self) -> None:
        written: Zone | None = None
        assert self._settings.hosts is not None, "asked before"
        while self._zone is not None and written is not self._zone:
            written, before = self._zone, self._failed
            try:
                write = partial(hosts.write, self._settings.hosts, hosts.block(written))
                await aside(write)
                self._failed = ""
            except OperatorError as error:
                self._failed = str(error)
                if self._failed != before:
                    self._log.event("error", "names", message=self._failed)

    def _count(self) -> None:
        """Answers so far into the ledger, which outlives this process."""
        if self._server is None:
            return
        for n, rcode in enumerate(NAMES_RCODES):
            count = self._server.counts[rcode]
            self._ledger.words[DaemonWord.NAMES_QUERIES + n] += count - self._counted.get(rcode, 0)
            self._counted[rcode] = count


def zone_of(fleet: Fleet, sick: frozenset[str], settings: Names, serial: int) -> Zone:
    """The service's names, as this machine gives them out; `sick` are the ids of who is not given out as healthy."""
    address = settings.listen.host if settings.listen is not None else _NOWHERE
    keys = {"unhealthy": sick, "address": address, "serial": serial, "ttl_s": int(settings.ttl_s)}
    return Zone.of_service(fleet.service, fleet.roster, **keys)
