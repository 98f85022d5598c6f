"""One question to a target: is it well? Asked of an instance by its edges, of an application by its own machine, or by
whoever leads to it where no relay stands before it.

An edge's question opens a connection as a client's would be opened, with a PROXY header that says that it is the edge's own
(LOCAL), and so finds out what a client would find out: whether relay is there, and the application behind it.

Sockets and not streams: what came before a connection broke is read before that is told (the answer of a relay, then its
FIN or reset), which asyncio's streams do not promise.
"""

import asyncio
import contextlib
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from socket import SHUT_WR, socket
from typing import Final, NamedTuple, Self, TypeVar

from relay.address import join_host_port
from relay.config.snapshot import EndpointRow, ProbeRow, TargetRow
from relay.envelope import asking, proxyproto
from relay.kernel.connecting import NOT_BEGUN, is_no_socket, target_socket
from relay.kernel.sockets import CAPACITY
from relay.ledger.layout import Knows
from relay.targets import why

_RELAY_PORT_MAX_S: Final = 1.0  # to connect there: a firewall that knows nothing of that port says nothing
_STANDS_S: Final = 1.0  # a tcp connection that has not been reset for so long is taken: relay dials a local service
_LINE_MAX_BYTES: Final = 64 * 1024  # of an answer's first line
_STATUS: Final = re.compile(rb"HTTP/[0-9.]+ ([0-9]{3})(?: [^\n]*)?\r?\n")
_GOOD_STATUSES: Final = (200,)  # where none are declared
_TRUST_S: Final = 60.0  # so long until the machine's authorities are read anew: some 20 ms, in which control stands

_Result = TypeVar("_Result")


class _Answered(Exception):
    """A relay has said how things are, or this machine cannot ask (None)."""

    def __init__(self, number: int | None) -> None:
        super().__init__(number)
        self.number = number


class Answer(NamedTuple):
    """Why a target is down (targets/why.py), 0: it is well. None: this machine is in no state to ask.

    `knows`: what its relay knows (bits of `Knows`); None: as it was.
    """

    fault: int | None
    knows: int | None = None


async def ask_instance(row: EndpointRow, target: TargetRow) -> Answer:
    """As an edge: ask an instance as the row's probe says.

    Takes the probe's timeout at the most, and a quarter of it more where the relay's own port does not answer.
    """
    assert row.probe is not None  # the caller's rows have one
    within_s = row.probe.timeout_s
    if target.relay_port:
        line = _at_relay_port(row, target, within_s)
        number = await _number_of(_ask_by_relay(row, line, row.endpoint_there), within_s)
        if line.is_relay or line.is_silent:
            return Answer(number, Knows.TAKEN | Knows.NAMES if line.knows else None)
    line = _Question(target, row.dial_from, told=True)
    number = await _number_of(_ask_by_relay(row, line), within_s)
    fault = why.of_relay(number) if number and not line.connected else number
    if line.knows:
        return Answer(fault, Knows.TAKEN)
    # Who is down gets nobody before it has answered again; and at the relay's port nobody did.
    return Answer(fault, None if (fault or fault is None) and not target.relay_port else 0)


async def ask_own(row: EndpointRow, port: int = 0) -> Answer:
    """Ask the applications behind an endpoint of this machine, one after the other until one is well.

    `port`: of a range of ports the one to ask, by default the first. Takes the timeout of the probe, or of connecting, each.
    """
    found: int | None = None
    for each in row.targets:
        target = each.at(max(0, port - each.port)) if each.port_count > 1 else each
        within_s = row.connect_s if row.probe is None else row.probe.timeout_s
        found = await _number_of(_ask_application(row, target), within_s)
        if found == why.NOTHING:
            break
    return Answer(found)


async def ask_direct(row: EndpointRow, target: TargetRow) -> Answer:
    """Ask one of several applications that no other relay stands before: this machine's own, or of a bare machine.

    Takes the timeout of the probe, or of connecting.
    """
    within_s = row.connect_s if row.probe is None else row.probe.timeout_s
    return Answer(await _number_of(_ask_application(row, target), within_s), 0)


async def ask_door(row: EndpointRow, target: TargetRow) -> Answer:
    """Ask the instance that a door out leads to: its relay, or as a client would. Then it resets where no application is."""
    if target.relay_port and (answer := await ask_at_relay_port(row, target)) is not None:
        return answer
    line = _Question(target, row.dial_from)
    return Answer(await _number_of(_ask_tcp(line, row.connect_s), row.connect_s), 0)


async def ask_at_relay_port(row: EndpointRow, target: TargetRow) -> Answer | None:
    """Ask an instance's relay at its own port how the application is that a door out leads to; None: it is not there."""
    line = _at_relay_port(row, target, row.connect_s)
    number = await _number_of(_ask_relay(line, row.endpoint_there), row.connect_s)
    if not line.is_relay and not line.is_silent:
        return None
    return Answer(number, Knows.NAMES if line.knows else None)


def _at_relay_port(row: EndpointRow, target: TargetRow, within_s: float) -> "_Question":
    """A connection there, for which there is not all the time: the endpoint's own port is to be asked after that."""
    patience_s = min(_RELAY_PORT_MAX_S, within_s / 4)
    return _Question(replace(target, port=target.relay_port), row.dial_from, told=True, patience_s=patience_s)


async def _number_of(question: Awaitable[int], within_s: float) -> int | None:
    try:
        async with asyncio.timeout(within_s):
            return await question
    except TimeoutError:
        return why.no_answer(within_s)
    except _Answered as answer:
        return answer.number
    except ssl.SSLCertVerificationError as error:
        return why.of_certificate(error.verify_code)
    except ssl.SSLError:
        return why.NO_TLS
    except OSError as error:
        return why.of_error(error.errno)


class _Question:
    """A connection to a target. Leaving it as a context closes it."""

    def __init__(
        self, target: TargetRow, speaks_as: str = "", *, told: bool = False, patience_s: float | None = None
    ) -> None:
        """`told`: what comes first may be a relay's answer. `patience_s`: for connecting, where there is not all the time."""
        self.target = target
        self.connected = False
        self.is_silent = False  # connected, and nothing has come, not even an end
        self.is_relay = False  # a relay has answered
        self.knows = False  # as one that knows a client's question
        self._patience_s = patience_s
        self._speaks_as = speaks_as
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._sock: socket

    async def __aenter__(self) -> Self:
        target = self.target
        try:
            # asyncio asks for more than a socket of the kernel's alone.
            self._sock = socket(fileno=target_socket(target, self._speaks_as).detach())
            try:
                if target.path:  # never in progress; and a full backlog (EAGAIN) must not be taken for that: unix(7)
                    self._sock.connect(target.path)
                else:
                    async with asyncio.timeout(self._patience_s):
                        await self._loop.sock_connect(self._sock, (target.host, target.port))
            except BaseException:
                self._sock.close()
                raise
        except BlockingIOError:
            raise _Answered(why.BACKLOG_FULL) from None
        except OSError as error:
            if error.errno in CAPACITY or (not target.path and error.errno in NOT_BEGUN):
                raise _Answered(None) from None
            if is_no_socket(target.path):
                raise _Answered(why.NOT_A_SOCKET) from None
            raise
        self.connected = self.is_silent = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sock.close()

    async def send(self, data: bytes) -> None:
        """Raises OSError."""
        with self._breaking():
            await self._loop.sock_sendall(self._sock, data)

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.is_silent = False
            raise

    def finish(self) -> None:
        """Nothing more will be sent."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(SHUT_WR)

    async def receive(self) -> bytes:
        """What comes next; nothing at the end. Raises OSError, and _Answered at a relay's refusal."""
        data = await self.hear()
        return await self.hear() or b"" if data is None else data

    async def hear(self) -> bytes | None:
        """The same, but None for a relay's word that its application has taken the connection, if nothing came with it."""
        with self._breaking():
            data = await self._loop.sock_recv(self._sock, _LINE_MAX_BYTES)
        self.is_silent = False
        while self._told and (asking.is_refusal(data) or asking.is_well(data)):
            number = asking.number_in(data)
            self.knows = data.startswith(asking.WELL)
            whole = self.knows or number is not None
            more = b"" if whole else await self._loop.sock_recv(self._sock, _LINE_MAX_BYTES)
            self.is_relay = self.knows or number is not None
            if asking.is_refusal(data) and (whole or not more):
                raise _Answered(why.read(number or b""))
            if self.knows or not more:
                break
            data += more
        first, self._told = self._told, False
        return data.removeprefix(asking.WELL) or None if first and self.knows else data


@lru_cache(maxsize=1)
def _trusting(_turn: int) -> ssl.SSLContext:
    """Verifies by this machine's authorities, or those of SSL_CERT_FILE and SSL_CERT_DIR; read anew for each turn."""
    return ssl.create_default_context()


class _Tls:
    """TLS on a line. Unless it verifies: whether the application serves, and not who it is."""

    def __init__(self, line: _Question, *, verifies: bool) -> None:
        target = line.target
        if verifies:
            context, name = _trusting(int(time.monotonic() // _TRUST_S)), target.name or target.host
        else:
            context, name = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), target.name
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._line = line
        self._came, self._goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._goes, server_hostname=name or None)

    async def begin(self) -> None:
        """Agree with the other side. Raises OSError; SSLCertVerificationError where it is not who it should be."""
        await self._do(self._tls.do_handshake)

    async def send(self, data: bytes) -> None:
        """Raises OSError."""
        await self._do(lambda: self._tls.write(data))

    async def receive(self) -> bytes:
        """What comes next; nothing at the end. Raises OSError."""
        try:
            return await self._do(lambda: self._tls.read(_LINE_MAX_BYTES))
        except ssl.SSLZeroReturnError:
            return b""

    async def _do(self, step: Callable[[], _Result]) -> _Result:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                await self._flush()
                if data := await self._line.receive():
                    self._came.write(data)
                else:
                    self._came.write_eof()
            else:
                await self._flush()
                return result

    async def _flush(self) -> None:
        if data := self._goes.read():
            await self._line.send(data)


async def _ask_by_relay(row: EndpointRow, line: _Question, endpoint: str = "") -> int:
    assert row.probe is not None
    by_relay = row.probe.kind == "relay"  # whose own probe asks more
    # A relay that does not know the first of two questions answers the second.
    asked = (asking.RELAY,) if by_relay else (asking.TAKEN, asking.THROUGH)
    async with line:
        await line.send(asking.header(*asked, endpoint=endpoint))
        if row.probe.asks_more and not by_relay:
            return await _ask_more(row, line)
        if not by_relay:
            line.finish()
        return await _stands(line, row.probe.timeout_s)


async def _ask_relay(line: _Question, endpoint: str) -> int:
    async with line:
        await line.send(asking.header(asking.RELAY, endpoint=endpoint))
        await line.hear()
        return why.NOTHING


async def _ask_application(row: EndpointRow, target: TargetRow) -> int:
    asked = _at_probes_port(row, target)
    async with _Question(asked) as line:
        if row.send_proxy and asked is target:  # whoever listens at another port was told of no header
            await line.send(proxyproto.LOCAL_V1 if row.send_proxy == "v1" else proxyproto.LOCAL_V2)
        return await _ask_more(row, line)


def _at_probes_port(row: EndpointRow, target: TargetRow) -> TargetRow:
    """Where the application is asked: the target itself, unless the probe has another port. A Unix socket is of here."""
    port = 0 if row.probe is None else row.probe.port
    if port in (0, target.port):
        return target
    host = target.host or "127.0.0.1"
    return replace(target, text=join_host_port(host, port), host=host, port=port, path="", port_count=1)


async def _ask_tcp(line: _Question, within_s: float) -> int:
    async with line:
        return await _stands(line, within_s)


async def _stands(line: _Question, within_s: float) -> int:
    """Well unless it is reset within a moment: a service may speak, finish, or wait for us."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(min(_STANDS_S, within_s / 2)):
            await line.hear()
    return why.NOTHING


async def _ask_more(row: EndpointRow, line: _Question) -> int:
    """What the probe asks of who has taken the connection; well if that is nothing."""
    probe = row.probe
    if probe is None or not probe.asks_more:
        return why.NOTHING
    talk: _Question | _Tls = line
    # What an endpoint's protocol says is of its own port.
    by_default = probe.tls == "auto" and bool(probe.path) and row.protocol == "https" and not probe.port
    if probe.tls in ("on", "verify") or by_default:
        talk = _Tls(line, verifies=probe.tls == "verify")
        await talk.begin()
    if probe.path:
        return await _ask_http(probe, talk, line.target)
    return await _ask_text(probe, talk) if probe.send or probe.expect else why.NOTHING


async def _ask_text(probe: ProbeRow, talk: _Question | _Tls) -> int:
    """Say what is to be said, and read until it is known whether the answer is the right one."""
    expected = probe.expect.encode("latin-1")
    if probe.send:
        await talk.send(probe.send.encode("latin-1"))
    came = b""
    while expected.startswith(came) and len(came) < max(1, len(expected)):
        if not (more := await talk.receive()):
            return why.UNEXPECTED if came else why.CLOSED
        came += more
    return why.NOTHING if came.startswith(expected) else why.UNEXPECTED


async def _ask_http(probe: ProbeRow, talk: _Question | _Tls, target: TargetRow) -> int:
    name = join_host_port(target.name, target.port) if target.name else target.text
    host = "localhost" if target.path else name
    head = f"Host: {host}\r\nUser-Agent: relay-probe\r\nConnection: close"
    await talk.send(f"GET {probe.path} HTTP/1.1\r\n{head}\r\n\r\n".encode())
    answer = b""
    while b"\n" not in answer and len(answer) < _LINE_MAX_BYTES and (more := await talk.receive()):
        answer += more
    if not answer:
        return why.CLOSED
    found = _STATUS.match(answer)
    if found is None:
        return why.NOT_HTTP
    status = int(found[1])
    return why.NOTHING if status in (probe.statuses or _GOOD_STATUSES) else why.http_status(status)
