"""accept(2) where it fails: an error that stays is asked about again after a rest, said once, and nobody is lost by it."""

import asyncio
import errno
import json
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import pytest
import uvloop

from relay import log as logging
from relay.kernel import accepting
from relay.kernel.accepting import Acceptor, is_over, refusal
from relay.log import Logger
from tests.harness import HANG_S
from tests.logs import waiting

STAYS: Final = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
OF_ONE: Final = (errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH)
RESTS: Final = 3


class Unwilling(socket.socket):
    """A listening socket of a kernel that says no, for as long as `error` is set."""

    error = 0
    asked = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.was_asked = asyncio.Event()

    def accept(self) -> tuple[socket.socket, Any]:
        self.asked += 1
        self.was_asked.set()
        if self.error:
            raise OSError(self.error, "no")
        return super().accept()


class Greeter(asyncio.Protocol):
    """Says one byte to whoever comes."""

    def connection_made(self, transport: Any) -> None:
        transport.write(b"!")
        transport.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run on either loop."""

    def on_loop(work: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(asyncio.wait_for(work, HANG_S))

    return on_loop


def listening() -> Unwilling:
    sock = Unwilling()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


async def greeted(address: tuple[str, int]) -> bool:
    reader, writer = await asyncio.open_connection(*address)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer == b"!"


Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.mark.parametrize("error", STAYS + OF_ONE)
def test_an_error_that_stays_costs_nothing_and_is_said(run: Run, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket is ready all the time; it is asked once a rest, or a bounded number of times where it may be one's own."""
    monkeypatch.setattr(accepting, "_REST_S", 0.01)
    sink, source = logging.channel()

    async def check() -> None:
        sock = listening()
        sock.error = error
        rests: list[int] = []
        enough = asyncio.Event()
        acceptor = Acceptor(sock, Greeter, Logger(sink, "control", "info"))
        go_on = acceptor._resting._go_on

        def counting() -> None:
            rests.append(sock.asked)
            if len(rests) == RESTS:
                enough.set()
            else:
                go_on()

        acceptor._resting._go_on = counting  # type: ignore[method-assign]
        waits = asyncio.create_task(greeted(sock.getsockname()))
        await enough.wait()
        each = accepting.OVER_MAX if error in OF_ONE else 1
        assert rests == [each * (n + 1) for n in range(RESTS)]
        assert not waits.done()
        sock.error = 0
        go_on()
        assert await waits, "who came meanwhile has waited"
        assert await greeted(sock.getsockname())
        acceptor.close()
        acceptor.close()

    with sink, source:
        run(check())
        [line] = [json.loads(each) for each in waiting(source)]
    assert (line["event"], line["level"], line["process"]) == ("accept paused", "warning", "control")
    assert f"({errno.errorcode[error]})" in line["message"]
    assert line["message"].startswith("127.0.0.1:")


def test_closing_while_it_rests(run: Run, tmp_path: Path) -> None:
    """And on a Unix socket, which is named by its path; without a log nothing is said."""

    async def check() -> None:
        sock = Unwilling(socket.AF_UNIX)
        sock.bind(str(tmp_path / "socket"))
        sock.listen()
        sock.error = errno.EPERM
        acceptor = Acceptor(sock, Greeter, None)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "socket"))
            await sock.was_asked.wait()
        acceptor.close()
        assert sock.fileno() == -1
        await asyncio.sleep(0)

    run(check())


def test_closing_before_a_connection_has_its_protocol(run: Run) -> None:
    """It is closed with the rest: nobody would know of it."""

    async def check() -> None:
        sock = listening()
        acceptor = Acceptor(sock, Greeter, None)
        with socket.socket() as client:
            client.connect(sock.getsockname())
            client.settimeout(HANG_S)
            acceptor._accept()
            acceptor.close()
            assert await asyncio.to_thread(client.recv, 9) == b"", "it was not served any more"
        assert acceptor._beginning == {}

    run(check())


def test_what_is_one_connections_and_what_is_not() -> None:
    for number in OF_ONE:
        assert is_over(OSError(number, "x"), 1)
        assert not is_over(OSError(number, "x"), accepting.OVER_MAX)
    for number in STAYS:
        assert not is_over(OSError(number, "x"), 1)
    assert "no permission (EPERM)" in refusal(PermissionError(errno.EPERM, "x"))
    assert "no number" in refusal(OSError("x"))
