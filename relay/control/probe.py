"""Probes: does an instance's application take connections? Asked by an edge, by way of the instance's relay.

A probe opens a connection as a client's would be opened, with a PROXY header that says it is the edge's own (LOCAL), and so
finds out what a client would find out: whether relay is there, and the application behind it.
"""

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from relay.config.snapshot import EndpointRow, ProbeRow, TargetRow
from relay.envelope import proxyproto
from relay.ledger.layout import Health

_STANDS_S: Final = 1.0  # a tcp connection that has not been reset for so long is taken: relay dials a local service
_FLAPS: Final = 3  # as many falls within so many intervals, and one good answer is not believed any more
_FLAP_INTERVALS: Final = 20
_GOOD_ANSWERS: Final = 3  # in a row, of one that flaps


class ProbeAnswer(Enum):
    """What came of one probe."""

    GOOD = "good"
    BAD = "bad"  # refused, reset, or another status than 200: not fit for connections
    NONE = "none"  # nothing came in time


@dataclass(slots=True)
class Judge:
    """Answers in, health out. Pure: the time is told."""

    probe: ProbeRow
    began_s: float
    health: int = Health.UNKNOWN
    _good_s: float | None = None  # when the last good answer came
    _good_in_a_row: int = 0
    _falls_s: deque[float] = field(default_factory=lambda: deque(maxlen=_FLAPS))

    def hear(self, answer: ProbeAnswer, now_s: float) -> int:
        """The target's health after one more answer.

        A bad answer is down at once; none is down after the timeout. One good answer is up, but of a target that has
        fallen several times of late, several in a row are asked for.
        """
        if answer is ProbeAnswer.GOOD:
            self._good_s = now_s
            self._good_in_a_row += 1
            if self._good_in_a_row >= (_GOOD_ANSWERS if self._flaps(now_s) else 1):
                self.health = Health.UP
            return self.health
        self._good_in_a_row = 0
        since_s = self.began_s if self._good_s is None else self._good_s
        if answer is ProbeAnswer.BAD or now_s - since_s >= self.probe.timeout_s:
            if self.health == Health.UP:
                self._falls_s.append(now_s)
            self.health = Health.DOWN
        return self.health

    def _flaps(self, now_s: float) -> bool:
        within_s = _FLAP_INTERVALS * self.probe.interval_s
        return len(self._falls_s) == _FLAPS and now_s - self._falls_s[0] < within_s


async def ask(row: EndpointRow, target: TargetRow) -> ProbeAnswer:
    """Probe `target` of `row` once; takes the probe's interval at the most, or its timeout if that is shorter."""
    assert row.probe is not None  # the caller's rows have one
    within_s = min(row.probe.interval_s, row.probe.timeout_s)
    try:
        async with asyncio.timeout(within_s):
            # From the edge's own address: the instance takes no other.
            reader, writer = await asyncio.open_connection(
                target.host, target.port, local_addr=(row.dial_from, 0) if row.dial_from else None
            )
            with contextlib.closing(writer):
                writer.write(proxyproto.LOCAL_V2)
                if row.probe.path:
                    return await _ask_http(row, target, reader, writer)
                return await _ask_tcp(reader, writer, min(_STANDS_S, within_s / 2))
    except TimeoutError:
        return ProbeAnswer.NONE
    except (OSError, ValueError):  # refused, reset, no way there; TLS that went wrong; a line without end
        return ProbeAnswer.BAD


async def heard(reading: Awaitable[bytes], writer: asyncio.StreamWriter) -> bytes:
    """What comes of `reading` from the connection that `writer` writes to. Raises OSError when that broke.

    What broke it stands in the writer too. If nobody asks there, asyncio may write on standard error, whenever garbage is
    collected, that an exception was never retrieved. What breaks while nobody reads is not heard of here.
    """
    try:
        return await reading
    except OSError:
        await writer.wait_closed()  # raises the same
        raise


async def _ask_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stands_s: float) -> ProbeAnswer:
    """Good unless it is reset within `stands_s`: a service may speak, finish, or wait for us."""
    writer.write_eof()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(stands_s):
            await heard(reader.read(1), writer)
    return ProbeAnswer.GOOD


async def _ask_http(
    row: EndpointRow, target: TargetRow, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> ProbeAnswer:
    assert row.probe is not None
    if row.protocol == "https":
        # Whether it serves, not who it is: relay does not know the certificate's name.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        await writer.start_tls(context)
    head = f"Host: {target.text}\r\nUser-Agent: relay-probe\r\nConnection: close"
    request = f"GET {row.probe.path} HTTP/1.1\r\n{head}\r\n\r\n"
    writer.write(request.encode())
    line = await heard(reader.readline(), writer)
    return ProbeAnswer.GOOD if line[:5] == b"HTTP/" and line[8:13] in (b" 200 ", b" 200\r") else ProbeAnswer.BAD
