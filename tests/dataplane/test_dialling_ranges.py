"""An endpoint that is a range of ports: each leads to the target's port with the same place."""

import contextlib
from dataclasses import replace
from typing import Any

from relay.config.snapshot import TargetRow
from relay.ledger.layout import Count
from tests.config.rig import endpoint_row
from tests.dataplane.rig import Rig, Target, tcp_target
from tests.ports import free_ports


def ranges(stack: contextlib.ExitStack, **keys: Any) -> tuple[Rig, list[Target]]:
    """A rig that listens on the middle one of three ports, which lead to three targets, port for port."""
    first = free_ports(3)
    targets = [tcp_target(stack, port=first + n) for n in range(3)]
    row = TargetRow(f"127.0.0.1:{first}-{first + 2}", host="127.0.0.1", port=first, port_count=3)
    listen_port = free_ports(3)
    rig = Rig(endpoint_row(targets=(row,), listen_port=listen_port, port_count=3, **keys), stack, port=listen_port + 1)
    return rig, targets


def test_a_port_of_a_range_leads_to_its_own_of_the_targets(stack: contextlib.ExitStack) -> None:
    rig, targets = ranges(stack)
    client = rig.connect()
    client.send(b"hello")
    service = targets[1].accept(rig)
    assert rig.receive(service, 5) == b"hello"
    client.close()
    service.close()
    assert not targets[0].was_dialled()
    assert not targets[2].was_dialled()
    assert rig.ended()["target"] == targets[1].row.text, "the log names the port that was dialled"


def test_one_target_behind_a_range(stack: contextlib.ExitStack, target: Target) -> None:
    first = free_ports(3)
    rig = Rig(endpoint_row(targets=(target.row,), listen_port=first, port_count=3), stack, port=first + 2)
    client = rig.connect()
    client.send(b"hello")
    assert rig.receive(target.accept(rig), 5) == b"hello"


def test_a_range_that_moves_away_under_a_client_who_has_said_nothing_yet(stack: contextlib.ExitStack) -> None:
    rig, targets = ranges(stack, protocol="http")
    client = rig.connect()
    rig.flow()
    rig.gate.declare(replace(rig.gate.declared, listen_port=rig.gate.declared.listen_port + 2))
    client.send(b"GET / HTTP/1.1\r\n")
    assert rig.ending(client) == "reset"
    assert not any(target.was_dialled() for target in targets)
    assert (record := rig.ended())["cause"] == "revoked"
    assert record["target"] is None


def test_the_next_target_of_a_range_has_the_same_place(stack: contextlib.ExitStack) -> None:
    """As `localhost` has two addresses: nobody listens at the first."""
    rig, targets = ranges(stack)
    [row] = rig.gate.declared.targets
    nowhere = replace(row, host="127.0.0.9")
    rig.gate.declare(replace(rig.gate.declared, targets=(nowhere, row)))
    rig.connect()
    targets[1].accept(rig)
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 1
