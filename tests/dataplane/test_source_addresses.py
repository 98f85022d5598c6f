"""From where a loopback target is dialled once the usual address has no port left."""

import contextlib
import errno
from collections.abc import Callable

import pytest

from relay.config.snapshot import TargetRow
from relay.dataplane.dialling import Dialling
from relay.dataplane.source_addresses import SourceAddresses
from relay.kernel import connecting
from relay.kernel.bare_socket import BareSocket
from relay.kernel.connecting import connect as real_connect
from relay.ledger.layout import Count, State
from tests.conformance.peers import full_backlog
from tests.dataplane.rig import rig_to, tcp_target
from tests.ledger.rig import target_up

ONE, OTHER = TargetRow("127.0.0.1:80", host="127.0.0.1", port=80), TargetRow("127.0.0.1:81", host="127.0.0.1", port=81)
S_NS = 1_000_000_000


def test_the_next_address_is_used_until_the_usual_one_is_tried_again() -> None:
    sources = SourceAddresses()
    assert sources.of(ONE, 0) == ""
    assert [sources.further(ONE, n) for n in range(2)] == ["127.0.0.2", "127.0.0.3"]
    assert [sources.of(ONE, 60 * S_NS), sources.of(OTHER, 60 * S_NS)] == ["127.0.0.3", ""]
    assert sources.of(ONE, 60 * S_NS + 1) == "", "the usual one may have ports again"
    assert sources.further(ONE, 61 * S_NS) == "127.0.0.2"


def test_after_the_last_address_comes_the_first() -> None:
    sources = SourceAddresses()
    assert len({sources.further(ONE, 0) for _ in range(250)}) == 250
    assert sources.further(ONE, 0) == "127.0.0.2"


def without_ports(free: str) -> Callable[[BareSocket, TargetRow], int]:
    """connect(2) of a machine that has a port left for one address alone."""

    def connect(target: BareSocket, row: TargetRow) -> int:
        if target.getsockname()[0] != free:
            return errno.EADDRNOTAVAIL
        return real_connect(target, row)

    return connect


@pytest.mark.interpreted
def test_who_finds_no_port_dials_from_the_next_address_and_says_so_once(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target)
    monkeypatch.setattr(connecting, "connect", without_ports("127.0.0.3"))
    for _ in range(3):
        client = rig.connect()
        service = target.accept(rig)
        assert service.getpeername()[0] == "127.0.0.3"
        service.close()
        client.close()
    rig.until(lambda: not rig.context.flows, "all are over")
    assert rig.ledger.total(0, Count.OTHER_SOURCE) == 2, "the third begins where the others had come to"
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 0
    rig.log.flush()
    [said] = [line for line in rig.records() if line["event"] == "source addresses"]
    assert "127.0.0.2" in said["message"]


@pytest.mark.interpreted
def test_who_dials_from_the_next_address_waits_for_that_answer(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its backlog is full at first, as of a service that is busy."""
    target = tcp_target(stack, backlog=0)
    waiting = stack.enter_context(full_backlog(target.sock))
    rig = rig_to(stack, target)
    monkeypatch.setattr(connecting, "connect", without_ports("127.0.0.2"))
    client = rig.connect()
    client.send(b"patience")
    flow = rig.flow()
    [record] = rig.ledger.flows()
    assert isinstance(flow.stage, Dialling)
    assert flow.stage._target is not None
    assert (record.state, record.target_fd) == (State.DIAL, flow.stage._target.fd)
    for _ in range(waiting):
        target.sock.accept()[0].close()
    service = target.accept(rig)
    assert service.getpeername()[0] == "127.0.0.2"
    assert rig.receive(service, 8) == b"patience"


@pytest.mark.interpreted
@pytest.mark.parametrize("many", [True, False])
def test_a_machine_without_ports_is_in_trouble_and_the_target_is_not_down(
    many: bool, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target, many_sources=many)
    monkeypatch.setattr(connecting, "connect", without_ports("nowhere"))
    assert rig.ending(rig.connect()) == "reset"
    assert target_up(rig.ledger) is None
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 0
    assert rig.ledger.total(0, Count.OTHER_SOURCE) == (3 if many else 0)
    rig.log.flush()
    lines = {line["event"]: line for line in rig.records()}
    assert lines["dial"]["reason"] == lines["connection"]["reason"]
    assert lines["connection"]["cause"] == "error"
    assert lines["dial"]["reason"].startswith(f"{target.row.text}: no local port is free towards it")
