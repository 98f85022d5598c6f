"""The table of stages is what the code does, and what docs/why/a-connection.md tells: every line of it is walked."""

import contextlib
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from relay.dataplane import faults
from relay.dataplane.greeting import begin
from relay.dataplane.stages import ELSEWHERE, ENDS, FROM_OUTSIDE, MOVES, misstep
from relay.envelope import asking
from relay.envelope.rules import RuleRow
from relay.ledger.layout import CAUSES, STATE_NAMES, State
from relay.targets import why
from tests.dataplane.asking_scenes import at_ask, at_taken, edge_rig, succeeded
from tests.dataplane.holding_scenes import (
    HOLD_S,
    TRY_S,
    at_hold,
    at_hold_after_silence,
    at_hold_behind_an_edge,
    begun_by_hand,
    hold_by_hand,
    is_back,
)
from tests.dataplane.rig import LATER_S, Move, refusing, reset, silent_target, tcp_target
from tests.dataplane.scenes import (
    CLIENT,
    HEADER,
    HELLO,
    Scene,
    at_close,
    at_dial,
    at_header,
    at_line,
    at_look,
    at_splice,
    begun,
    die,
    found_down,
    last,
)

Stack = contextlib.ExitStack
NAME: Final = {State.FREE: "–", **{state: name.upper() for state, name in STATE_NAMES.items()}}
DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "why" / "a-connection.md"


def said(scene: Scene, data: bytes) -> Scene:
    scene.say(data)
    return scene


def refused_then_answered(stack: Stack) -> None:
    begun(stack, refusing(), tcp_target(stack), state=State.SPLICE)


def next_target(stack: Stack) -> None:
    scene = begun(stack, silent_target(stack), silent_target(stack), state=State.DIAL)
    scene.rig.tick(LATER_S / 2)
    assert scene.flow.state == State.DIAL


def both_finish(scene: Scene, first: socket.socket, then: socket.socket) -> None:
    first.shutdown(socket.SHUT_WR)
    assert scene.rig.ending(then) == "fin"
    then.close()


def asked(scene: Scene) -> None:
    scene.rig.log.level = "debug"  # an edge's questions are told there
    scene.client.send(asking.header(asking.RELAY))


def nothing_moves(scene: Scene) -> None:
    for _ in range(3):  # seen, seen again, and the send buffers too
        scene.rig.sweep(LATER_S)


def asked_next(stack: Stack, *, state: int, knows: int = 1) -> None:
    """The first instance refuses."""
    scene = at_ask(stack, silent_target(stack) if state == State.DIAL else tcp_target(stack), knows=(1, knows))
    asked_first = scene.flow.stage
    scene.served.send(asking.refusal(why.TOLD, ""))
    scene.rig.until(lambda: scene.flow.stage is not asked_first, "the next one's turn")
    assert scene.flow.state == state


def dialled_and_asked(stack: Stack) -> None:
    rig = edge_rig(stack, silent := silent_target(stack), tcp_target(stack))
    _, flow = rig.let_in()
    begin(flow)
    assert flow.state == State.DIAL
    silent.sock.close()  # the SYN that the kernel sends again is refused
    rig.until(lambda: flow.state == State.ASK, "the next one is asked")


def taken_by_the_first(stack: Stack) -> None:
    scene = at_ask(stack)
    scene.served.send(asking.TOOK)
    scene.rig.until(lambda: scene.flow.state == State.SPLICE, "it is taken")


def looked_at_and_asked(stack: Stack) -> None:
    rig = edge_rig(stack, tcp_target(stack), knows=(1,), protocol="http")
    client, flow = rig.let_in()
    begin(flow)
    client.send(HELLO)
    rig.until(lambda: flow.state == State.ASK, "it is asked")


def tried(scene: Scene, state: int) -> None:
    scene.rig.tick(TRY_S)
    assert scene.flow.state == state


def back_after_a_hold(stack: Stack) -> None:
    scene = at_hold(stack)
    is_back(stack, scene)
    tried(scene, State.SPLICE)


# How each move comes about, and each end.
WAYS: Final[dict[tuple[int, int], Callable[[Stack], object]]] = {
    (State.FREE, State.HEADER): at_header,
    (State.FREE, State.LOOK): at_look,
    (State.FREE, State.DIAL): at_dial,
    (State.FREE, State.ASK): at_ask,
    (State.FREE, State.SPLICE): at_splice,
    (State.HEADER, State.LOOK): lambda stack: said(at_header(stack, protocol="http"), HEADER),
    (State.HEADER, State.DIAL): lambda stack: said(at_header(stack, silent_target(stack)), HEADER),
    (State.HEADER, State.SPLICE): lambda stack: said(at_header(stack, tcp_target(stack)), HEADER),
    (State.HEADER, State.LINE): at_line,
    (State.LOOK, State.DIAL): lambda stack: said(at_look(stack, silent_target(stack)), HELLO),
    (State.LOOK, State.ASK): looked_at_and_asked,
    (State.LOOK, State.SPLICE): lambda stack: said(at_look(stack, tcp_target(stack)), HELLO),
    (State.DIAL, State.DIAL): next_target,
    (State.DIAL, State.ASK): dialled_and_asked,
    (State.DIAL, State.SPLICE): refused_then_answered,
    (State.ASK, State.ASK): lambda stack: asked_next(stack, state=State.ASK),
    (State.ASK, State.DIAL): lambda stack: asked_next(stack, state=State.DIAL),
    (State.ASK, State.SPLICE): lambda stack: asked_next(stack, state=State.SPLICE, knows=0),
    (State.ASK, State.TAKEN): taken_by_the_first,
    (State.TAKEN, State.SPLICE): taken_by_the_first,
    (State.FREE, State.HOLD): begun_by_hand,
    (State.HEADER, State.HOLD): lambda stack: said(hold_by_hand(at_header(stack)), HEADER),
    (State.LOOK, State.HOLD): lambda stack: said(hold_by_hand(at_look(stack)), HELLO),
    (State.DIAL, State.HOLD): at_hold,
    (State.ASK, State.HOLD): at_hold_behind_an_edge,
    (State.HOLD, State.DIAL): lambda stack: tried(at_hold_after_silence(stack), State.DIAL),
    (State.HOLD, State.ASK): lambda stack: tried(at_hold_behind_an_edge(stack), State.ASK),
    (State.HOLD, State.SPLICE): back_after_a_hold,
    (State.SPLICE, State.CLOSE): at_close,
}
AT: Final[dict[int, Callable[[Stack], Scene]]] = {
    State.HEADER: lambda stack: at_header(stack, rules=(RuleRow(False, f"{CLIENT}/32", "f:1"),)),
    State.LOOK: at_look,
    State.DIAL: at_dial,
    State.ASK: at_ask,
    State.HOLD: at_hold,
    State.TAKEN: at_taken,
    State.SPLICE: lambda stack: at_splice(stack, idle_s=5.0),
    State.CLOSE: at_close,
}
ACTS: Final[dict[str, Callable[[Scene], object]]] = {
    "client_gone": lambda scene: scene.client.close(),
    "client_reset": lambda scene: reset(scene.client),
    "first_byte_timeout": lambda scene: scene.rig.tick(LATER_S),
    "protocol": lambda scene: scene.client.send(b"\x16\x03\x01 neither a header nor HTTP"),
    "denied": lambda scene: scene.client.send(HEADER),
    "told": asked,
    "connect_timeout": lambda scene: scene.rig.tick(LATER_S),
    "client_fin": lambda scene: both_finish(scene, scene.client, scene.served),
    "target_fin": lambda scene: both_finish(scene, scene.served, scene.client),
    "target_reset": lambda scene: reset(scene.served),
    "idle": nothing_moves,
    "peer_dead": lambda scene: die(scene, "target"),
    "target_down": found_down,
    "lifetime": lambda scene: last(scene, 10.0),
}


ASK_ACTS: Final[dict[str, Callable[[Scene], object]]] = {
    "connect_failed": lambda scene: reset(scene.served),
    "connect_timeout": lambda scene: scene.rig.tick(LATER_S),
    "denied": lambda scene: scene.served.send(asking.refusal(why.DENIED, "")),
    "client_reset": lambda scene: reset(scene.client),
}


HOLD_ACTS: Final[dict[str, Callable[[Scene], object]]] = {
    "connect_failed": lambda scene: scene.rig.tick(HOLD_S),
    "connect_timeout": lambda scene: scene.rig.tick(HOLD_S),
    "client_reset": lambda scene: reset(scene.client),
}


@pytest.mark.parametrize(
    ("before", "after"),
    [pytest.param(a, b, id=f"{NAME[a]} to {NAME[b]}") for a, tos in MOVES.items() for b in tos],
)
def test_every_move_is_made(before: int, after: int, stack: Stack, moves: list[Move]) -> None:
    WAYS[before, after](stack)
    assert Move(before, after, "") in moves


@pytest.mark.parametrize(
    ("where", "cause"), [pytest.param(at, cause, id=f"{NAME[at]} {cause}") for at in ENDS for cause in ENDS[at]]
)
def test_every_end_is_come_to(where: int, cause: str, stack: Stack, moves: list[Move]) -> None:
    if where == State.DIAL and cause == "connect_failed":
        scene = end_of_a_dial_that_is_refused(stack)
    elif where == State.ASK:
        scene = at_ask(stack, said=b"")
        ASK_ACTS[cause](scene)
    elif where == State.HOLD:
        scene = at_hold_after_silence(stack) if cause == "connect_timeout" else at_hold(stack)
        HOLD_ACTS[cause](scene)
    elif where == State.TAKEN:
        scene = at_taken(stack)
        ACTS[cause](scene)
        scene = succeeded(scene)
    elif where == State.CLOSE:
        dead = cause == "peer_dead"
        scene = at_close(stack, by="client" if dead else cause.removesuffix("_reset"), dead=dead)
        scene.rig.tick(LATER_S)
    elif where == State.LINE:  # what it was as a connection has ended before
        scene = at_line(stack)
        scene.client.close()
    else:
        scene = AT[where](stack)
        ACTS[cause](scene)
    assert scene.rig.ended()["cause"] == cause
    assert moves[-1] == Move(where, State.END, cause)


def end_of_a_dial_that_is_refused(stack: Stack) -> Scene:
    scene = begun(stack, refusing(), state=State.END)
    assert scene.rig.ending(scene.client) == "reset"
    return scene


@pytest.mark.parametrize("where", [pytest.param(at, id=NAME[at]) for at in AT])
@pytest.mark.parametrize("cause", FROM_OUTSIDE)
def test_everywhere_it_can_be_cut(where: int, cause: str, stack: Stack, moves: list[Move]) -> None:
    scene = AT[where](stack)
    scene.flow.cut(cause)
    scene.flow.cut("drain")  # an end is not made twice
    if where != State.CLOSE:  # there the client still has something to read
        assert scene.rig.ending(scene.client) == "reset"
    assert scene.rig.ended()["cause"] == cause
    assert moves[-1] == Move(where, State.END, cause)


def test_the_table_knows_every_state_and_every_cause() -> None:
    assert {State.FREE, *ENDS} == set(MOVES) == {State.FREE, *STATE_NAMES} - {State.END}
    ends = {cause for causes in ENDS.values() for cause in causes} | set(FROM_OUTSIDE)
    assert ends.isdisjoint(ELSEWHERE.values())
    assert ends | set(ELSEWHERE.values()) == set(CAUSES)
    assert set(WAYS) == {(before, after) for before, afters in MOVES.items() for after in afters}


@pytest.mark.parametrize(
    ("before", "after", "cause"),
    [
        (State.SPLICE, State.DIAL, ""),
        (State.LOOK, State.HEADER, ""),
        (State.FREE, State.FREE, ""),
        (State.FREE, State.END, "error"),
        (State.LOOK, State.END, "client_fin"),
        (State.SPLICE, State.END, "client_gone"),
        (State.END, State.END, "drain"),
    ],
)
def test_what_is_not_in_the_table(before: int, after: int, cause: str) -> None:
    assert str(before) in misstep(before, after, cause)


def test_the_document_has_the_same_table() -> None:
    rows = re.findall(
        r"^\| (–|any|[A-Z]+) \| (the same|[A-Z]+|`[a-z_]+`) \| (.+) \|$", DOCUMENT.read_text(), re.MULTILINE
    )
    told = [(before, after.strip("`")) for before, after, _ in rows]
    assert len(set(told)) == len(told)
    made = {(NAME[before], NAME[after]) for before, afters in MOVES.items() for after in afters}
    ends = {(NAME[at], cause) for at, causes in ENDS.items() for cause in causes}
    ends |= {(NAME[at], cause) for at, cause in ELSEWHERE.items()}
    assert set(told) == made | ends | {("any", "the same")} | {("any", cause) for cause in FROM_OUTSIDE}


def test_a_worker_of_the_tests_dies_wherever_a_flow_can_stand() -> None:
    walked = {name for walk in faults.WALKS.values() for name in walk}
    assert {name for name in walked if name.startswith("Flow.stand ")} == {
        f"Flow.stand {name.upper()}" for name in STATE_NAMES.values()
    }
