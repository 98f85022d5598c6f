"""Questions at an instance's relay port, and what comes of them when nobody answers there."""

import asyncio
import errno
import socket
from typing import Any, Final

import pytest

from relay.config.snapshot import EndpointRow, ProbeRow, TargetRow
from relay.control import probe as probes
from relay.control.probe import Answer, ask_at_relay_port, ask_door, ask_instance
from relay.envelope import asking
from relay.ledger.layout import Knows
from relay.targets import why
from tests.config.rig import endpoint_row
from tests.conformance.peers import full_backlog
from tests.control.test_probe import RELAY, TCP, Handler, probing, resetting, serving, silent
from tests.harness import HANG_S
from tests.ports import free_port

BOTH: Final = Knows.TAKEN | Knows.NAMES
REFUSED: Final = why.of_error(errno.ECONNREFUSED)
NAMED: Final = asking.header(asking.RELAY, endpoint="web/in")
TO_STORE: Final = asking.header(asking.RELAY, endpoint="store/pg")
DOOR: Final = endpoint_row(type="door", leads_to="store/pg", distribution="least-connections", connect_s=HANG_S)


def telling(answer: bytes) -> Handler:
    """Says this, and waits to be left."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await reader.read()

    return handler


def at(relay: TargetRow | None, port: int = 0) -> TargetRow:
    """An instance whose relay answers there (None: nowhere), and whose endpoint has this port; by default none is open."""
    port = port or free_port()
    relay_port = relay.port if relay is not None else free_port()
    return TargetRow(f"127.0.0.1:{port}", host="127.0.0.1", port=port, instance="web_IN_0", relay_port=relay_port)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (asking.WELL, Answer(why.NOTHING, BOTH)),
        (asking.refusal(why.BUSY, "busy"), Answer(why.BUSY)),
        (asking.refusal(REFUSED, "no endpoint"), Answer(REFUSED)),
    ],
)
@pytest.mark.parametrize("name", ["web/in", "web/in@instance"])
async def test_an_edge_asks_there_about_the_endpoint(name: str, answer: bytes, expected: Answer) -> None:
    async with serving(telling(answer), header=NAMED) as relay:
        assert await ask_instance(probing(RELAY, name=name), at(relay)) == expected


async def test_an_edge_asks_through_there() -> None:
    header = asking.header(asking.TAKEN, asking.THROUGH, endpoint="web/in")
    async with serving(telling(asking.WELL), header=header) as relay:
        assert await ask_instance(probing(TCP), at(relay)) == Answer(why.NOTHING, BOTH)


async def test_where_nobody_is_there_an_edge_asks_at_the_endpoints_port() -> None:
    async with serving(telling(asking.WELL), header=asking.header(asking.RELAY)) as target:
        assert await ask_instance(probing(RELAY), at(None, target.port)) == Answer(why.NOTHING, Knows.TAKEN)
    assert await ask_instance(probing(RELAY), at(None)) == Answer(why.of_relay(REFUSED), 0)


@pytest.mark.parametrize("other", [telling(b"220 mail.example.org\r\n"), resetting])
async def test_another_program_there_is_not_asked_twice(other: Handler) -> None:
    async with (
        serving(other, header=NAMED) as program,
        serving(telling(asking.WELL), header=asking.header(asking.RELAY)) as target,
    ):
        assert await ask_instance(probing(RELAY), at(program, target.port)) == Answer(why.NOTHING, Knows.TAKEN)


async def test_a_firewall_that_says_nothing_of_that_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_RELAY_PORT_MAX_S", 0.05)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, full_backlog(listener):
        relay = TargetRow("", port=listener.getsockname()[1])
        async with serving(telling(asking.WELL), header=asking.header(asking.RELAY)) as target:
            assert await ask_instance(probing(RELAY), at(relay, target.port)) == Answer(why.NOTHING, Knows.TAKEN)
        assert await ask_at_relay_port(DOOR, at(relay)) is None


async def test_a_relay_that_stands_still_is_not_asked_at_another_port() -> None:
    row = probing(ProbeRow("/healthz", 30.0, 0.2))
    header = asking.header(asking.TAKEN, asking.THROUGH, endpoint="web/in")
    async with serving(silent, header=header) as relay:
        assert await ask_instance(row, at(relay)) == Answer(why.no_answer(0.2))


async def asked(row: EndpointRow, answer: bytes, **keys: Any) -> list[Answer | None]:
    """What both questions of a door come to."""
    async with serving(telling(answer), header=TO_STORE) as relay:
        return [await ask_at_relay_port(row, at(relay)), await ask_door(row, at(relay))]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (asking.WELL, Answer(why.NOTHING, Knows.NAMES)),
        (asking.refusal(why.BUSY, "busy"), Answer(why.BUSY)),
        (asking.refusal(REFUSED, "connection refused"), Answer(REFUSED)),
    ],
)
async def test_a_door_asks_there_about_the_endpoint_that_it_leads_to(answer: bytes, expected: Answer) -> None:
    assert await asked(DOOR, answer) == [expected, expected]


async def test_where_nobody_is_there_a_door_knows_nothing_or_asks_as_by_a_client() -> None:
    assert await ask_at_relay_port(DOOR, at(None)) is None
    assert await ask_door(DOOR, at(None)) == Answer(REFUSED, 0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert await ask_door(DOOR, at(None, listener.getsockname()[1])) == Answer(why.NOTHING, 0)
