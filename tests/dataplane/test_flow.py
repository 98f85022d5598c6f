"""A flow's facts, in memory and in the ledger; and its end, which is the same from everywhere."""

import ast
import contextlib
from pathlib import Path

import pytest

from relay.dataplane import flow as module
from relay.dataplane.flow import Stage
from relay.envelope.rules import RuleRow
from relay.ledger.layout import CAUSES, Count, State
from tests.dataplane.rig import Target, no_descriptors, refusing, rig_to, tcp_target, unix_target
from tests.dataplane.scenes import EDGE, at_splice, fill


def test_it_is_nobodys_until_it_stands_somewhere(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, refusing())
    _, flow = rig.let_in()
    assert (flow.state, list(rig.ledger.flows()), rig.ledger.total(0, Count.ACCEPTED)) == (State.FREE, [], 0)
    flow.stand(Stage(), State.LOOK)
    [record] = rig.ledger.flows()
    assert (record.state, record.peer, record.client_fd) == (State.LOOK, str(flow.peer), flow.client.fileno())
    assert (record.started_ns, record.target_fd, record.target_slot) == (rig.clock(), -1, -1)
    assert rig.ledger.total(0, Count.ACCEPTED) == 1


def test_where_it_stands_is_in_the_ledger_at_once(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, refusing())
    _, flow = rig.let_in()
    for state, target_fd, target_slot in ((State.HEADER, -1, -1), (State.DIAL, 77, -1), (State.SPLICE, 78, 5)):
        flow.stand(Stage(), state, target_fd, target_slot=target_slot)
        [record] = rig.ledger.flows()
        assert (flow.state, record.state, record.target_fd, record.target_slot) == (
            state,
            state,
            target_fd,
            target_slot,
        )
    assert rig.ledger.total(0, Count.ACCEPTED) == 1


def test_nothing_else_says_where_a_flow_stands() -> None:
    """Outside of `stand` neither the state nor the stage is set; but for the beginning, in `__init__`."""
    setters = {
        f"{file.name} {function.name}"
        for file in sorted(Path(module.__file__).parent.glob("*.py"))
        for function in ast.walk(ast.parse(file.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in ("state", "stage")
    }
    assert setters == {"flow.py __init__", "flow.py stand"}


def test_one_that_ends_before_it_stood_anywhere_is_accounted_for(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, refusing())
    client, flow = rig.let_in()
    flow.cut("connect_failed")
    assert rig.ending(client) == "reset"
    assert rig.ended()["cause"] == "connect_failed"


def test_an_edges_share_is_its_own_until_it_has_said_whose_it_is(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, refusing(), edges=(EDGE,), per_source=1)
    _, flow = rig.let_in()
    assert (flow.source, flow.via) == (EDGE, EDGE)


@pytest.mark.parametrize("cause", ["revoked", "drain", "idle"])
def test_cut_while_bytes_flow(cause: str, stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target)
    client = rig.connect()
    service = target.accept(rig)
    client.send(b"x")
    assert rig.receive(service, 1) == b"x"
    rig.flow().cut(cause)
    rig.poller.bury()
    assert (rig.ending(client), rig.ending(service)) == ("reset", "reset")
    assert rig.ended()["cause"] == cause


def test_cut_while_bytes_are_held(stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack)
    fill(scene, "client")
    scene.flow.cut("drain")
    scene.rig.poller.bury()
    assert scene.rig.ended()["cause"] == "drain"


def test_cut_while_it_waits_for_a_pipe(stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack)
    with no_descriptors():
        scene.client.send(b"x")
        scene.rig.until(lambda: scene.rig.context.starved, "there is no pipe")
    scene.flow.cut("drain")
    scene.rig.poller.bury()
    assert scene.rig.ended()["cause"] == "drain"


def test_lines_in_the_log_are_json_whatever_the_target_is_called(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    target = unix_target(stack, tmp_path / 'a "quoted" \\ ключ')
    rig = rig_to(stack, target)
    client = rig.connect()
    target.accept(rig).close()
    client.close()
    assert rig.ended()["target"] == target.row.text


def test_the_log_is_quiet_where_the_level_says_so(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, refusing())
    rig.log.level = "warning"
    rig.connect()
    rig.until(lambda: rig.ledger.total(0, Count.CLOSED + CAUSES.index("connect_failed")), "it ended")
    rig.log.flush()
    assert rig.records() == []


def test_a_revoked_source_keeps_no_share(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target, per_source=1, rules=(RuleRow(True, "127.0.0.0/8", "f:1"),), permit_unmatched=False)
    rig.connect()
    target.accept(rig)
    refused = rig.connect()
    assert rig.ending(refused) == "reset"
    rig.flow().cut("revoked")
    rig.poller.bury()
    again = rig.connect()
    service = target.accept(rig)
    again.send(b"x")
    assert rig.receive(service, 1) == b"x"
