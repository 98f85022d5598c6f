"""The targets of an endpoint change while a connection is open, and its worker dies: it is still its own target's."""

import contextlib
import errno
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from relay.config.snapshot import ProbeRow, TargetRow
from relay.dataplane import adopt
from relay.dataplane.dialling import Dialling
from relay.envelope import asking
from relay.ledger.layout import CAUSES_MAX, Count, Flag, Health, State, TargetCount, health_at
from relay.targets import why
from relay.targets.health import packed
from tests.dataplane.rig import LATER_S, Target, refusing, rig_to, silent_target, tcp_target, unix_target
from tests.dataplane.scenes import Scene, at_header, begun, taken_over

CUTS: Final = ProbeRow("/", 1.0, 1.0, on_down="cut")
LIST: Final[dict[str, Any]] = {"distribution": "least-connections", "direct": True}
SINGLE: Final[dict[str, Any]] = {"distribution": None, "direct": False}


@pytest.fixture
def stack() -> Any:
    with contextlib.ExitStack() as made:
        yield made


def rows(*targets: Target | TargetRow) -> tuple[TargetRow, ...]:
    """In these places of the ledger, from the first one on."""
    found = [each.row if isinstance(each, Target) else each for each in targets]
    return tuple(replace(each, slot=n) for n, each in enumerate(found))


def connected(stack: contextlib.ExitStack, target: Target, **keys: Any) -> Scene:
    """A connection to the one target that there is."""
    given = rows(target) if keys.get("distribution") else (target.row,)
    scene = begun(stack, *given, state=State.SPLICE, **{"idle_s": None, "probe": CUTS, **keys})
    scene.target, scene.service = target, target.accept(scene.rig)
    return scene


def changed(scene: Scene, *targets: TargetRow, **keys: Any) -> None:
    """A reload."""
    gate = scene.flow.gate
    gate.declare(replace(gate.declared, targets=targets, **keys))


def after_a_death(scene: Scene) -> Scene:
    """A successor has it."""
    if (pool := scene.flow.gate.pool) is not None:
        pool.recount()
    return taken_over(scene)


def is_cut(scene: Scene, *, word: int) -> bool:
    """Whether the connection ends when a probe has found the target down whose health this word of the ledger is."""
    scene.rig.ledger.words[word] = packed(Health.DOWN, why.RESET, 1)
    scene.rig.sweep(1.0)
    if scene.rig.context.flows:
        return False
    assert scene.rig.ended()["cause"] == "target_down"
    return True


def own_word(scene: Scene) -> int:
    """Where the health of one target alone is."""
    return scene.rig.part.counts_at(0) + Count.HEALTH


DIES: Final = pytest.mark.parametrize("dies", [False, True], ids=["lives", "dies"])


def test_a_place_in_the_ledger_that_another_target_has_by_now(stack: contextlib.ExitStack) -> None:
    scene = connected(stack, target := tcp_target(stack), **LIST)
    changed(scene, *rows(refusing()))
    after = after_a_death(scene)
    pool, found = after.flow.gate.pool, after.flow.route.target
    assert pool is not None
    assert found is not None
    assert (found.text, after.flow.route.slot(), pool.active(0)) == (target.row.text, -1, 0)
    assert not is_cut(after, word=health_at(0))


def test_a_target_that_came_back_to_another_place_in_the_ledger(stack: contextlib.ExitStack) -> None:
    scene = connected(stack, target := tcp_target(stack), **LIST)
    changed(scene, *rows(refusing(), target))
    after = after_a_death(scene)
    rig, pool = after.rig, after.flow.gate.pool
    assert pool is not None
    assert (after.flow.route.slot(), pool.active(0), pool.active(1)) == (1, 0, 1)
    after.flow.cut("drain")
    assert [rig.ledger.target_total(slot, TargetCount.ACTIVE) for slot in (0, 1)] == [0, 0]


@DIES
def test_one_target_becomes_one_of_several(dies: bool, stack: contextlib.ExitStack) -> None:
    scene = connected(stack, target := tcp_target(stack))
    changed(scene, *rows(refusing(), target), **LIST)
    scene = after_a_death(scene) if dies else scene
    assert not is_cut(scene, word=own_word(scene)), "nobody finds anything out there any more"
    assert not is_cut(scene, word=health_at(0))
    assert is_cut(scene, word=health_at(1))


@DIES
def test_one_of_several_becomes_the_only_one(dies: bool, stack: contextlib.ExitStack) -> None:
    scene = connected(stack, target := tcp_target(stack), **LIST)
    changed(scene, target.row, **SINGLE)
    scene = after_a_death(scene) if dies else scene
    assert not is_cut(scene, word=health_at(0))
    assert is_cut(scene, word=own_word(scene))


@DIES
def test_another_target_in_its_place_is_none_of_its_business(dies: bool, stack: contextlib.ExitStack) -> None:
    scene = connected(stack, target := tcp_target(stack))
    changed(scene, refusing())
    scene = after_a_death(scene) if dies else scene
    assert not is_cut(scene, word=own_word(scene))
    found = scene.flow.route.target
    assert found is not None
    assert found.text == target.row.text


@DIES
def test_a_unix_socket_with_another_name(dies: bool, stack: contextlib.ExitStack, tmp_path: Path) -> None:
    """A service may have named it in its own directory, or relay may go by a link."""
    target = unix_target(stack, tmp_path / "app")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "app")
    scene = connected(stack, Target(target.sock, TargetRow(f"unix:{link}", path=str(link))))
    scene = after_a_death(scene) if dies else scene
    assert is_cut(scene, word=own_word(scene))


@DIES
def test_a_unix_service_that_has_left_the_set_closes_in_order(
    dies: bool, stack: contextlib.ExitStack, tmp_path: Path
) -> None:
    """Whatever the target is called by then: what it said last comes whole, and is no reset."""
    scene = connected(stack, unix_target(stack, tmp_path / "app"), **LIST)
    changed(scene, *rows(refusing()))
    scene.served.send(b"the last of it")
    scene.served.close()
    scene = after_a_death(scene) if dies else scene
    rig = scene.rig
    assert rig.receive(scene.client, 14) == b"the last of it"
    assert rig.ending(scene.client) == "fin"
    assert rig.ended()["cause"] == "target_fin"


def dialled(stack: contextlib.ExitStack, *targets: Target | TargetRow, **keys: Any) -> Scene:
    """A connection that has just begun to go through these, and none has taken it yet."""
    rig = rig_to(stack, *rows(*targets), **{**LIST, "idle_s": None, "probe": None, **keys})
    client, flow = rig.let_in()
    Dialling(flow).start()
    return Scene(rig, client, flow)


@contextlib.contextmanager
def full_unix_backlog(target: Target) -> Iterator[None]:
    """Meanwhile nobody else finds room there."""
    with contextlib.ExitStack() as waiting:
        while True:
            sock = waiting.enter_context(socket.socket(socket.AF_UNIX))
            sock.setblocking(False)
            try:
                sock.connect(target.row.path)
            except BlockingIOError:
                break
        yield


def test_when_none_of_several_is_left_the_last_one_says_why(stack: contextlib.ExitStack) -> None:
    scene = dialled(stack, refusing(), refusing())
    scene.rig.until(lambda: not scene.rig.context.flows, "both have refused")
    ended = scene.rig.ended()
    assert (ended["cause"], ended["reason"], ended["attempts"]) == ("connect_failed", "connection refused", 2)


def test_one_that_is_on_its_way_to_several_when_they_become_another_one(stack: contextlib.ExitStack) -> None:
    """It is still let in: it fails as it would have, or goes on to the one target where it may wait."""
    for keys, cause in (({}, "connect_timeout"), ({"hold_s": LATER_S}, "")):
        scene = dialled(stack, silent_target(stack), silent_target(stack), connect_s=8.0, **keys)
        changed(scene, (target := tcp_target(stack)).row, **SINGLE)
        for _ in range(2):
            scene.rig.tick(1.0)
        if cause:
            assert scene.rig.ended()["cause"] == cause
            continue
        assert scene.flow.state == State.HOLD
        scene.rig.tick(1.0)
        target.accept(scene.rig)
        assert scene.flow.state == State.SPLICE


def test_a_full_backlog_of_a_unix_socket_leads_to_the_next_one(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    full, other = unix_target(stack, tmp_path / "app", backlog=0), tcp_target(stack)
    stack.enter_context(full_unix_backlog(full))
    scene = dialled(stack, full, other, distribution="round-robin", connect_s=8.0)
    assert scene.flow.state == State.DIAL
    scene.rig.tick(0.5)
    assert scene.flow.state == State.DIAL, "it is asked again for a while"
    scene.rig.tick(0.5)
    other.accept(scene.rig)
    assert scene.flow.state == State.SPLICE
    assert [scene.rig.ledger.target_total(n, TargetCount.FAILURES) for n in (0, 1)] == [1, 0]
    assert [scene.rig.ledger.target_total(n, TargetCount.ACTIVE) for n in (0, 1)] == [0, 1]


def test_when_the_last_of_several_kept_silent_that_is_the_cause(stack: contextlib.ExitStack) -> None:
    scene = dialled(stack, silent_target(stack), silent_target(stack), connect_s=8.0)
    for _ in range(2):
        scene.rig.tick(1.0)
    ended = scene.rig.ended()
    assert (ended["cause"], ended["attempts"]) == ("connect_timeout", 2)
    assert ended["reason"].startswith("no answer in")


def test_when_none_of_several_may_be_dialled_it_is_said_what_was_found(stack: contextlib.ExitStack) -> None:
    scene = connected(stack, tcp_target(stack), **LIST)
    rig = scene.rig
    scene.flow.cut("drain")
    rig.context.free_records.extend(rig.context.ended)
    rig.ledger.words[health_at(0)] = packed(Health.DOWN, why.http_status(503), 1)
    _, flow = rig.let_in()
    Dialling(flow).start()
    assert flow.state == State.END
    assert flow.reason == "HTTP 503"


def test_an_edge_is_told_why_the_last_of_several_did_not_take_it(stack: contextlib.ExitStack) -> None:
    """So it can tell an application that is gone, and try it again by itself, from one that is not well."""
    scene = at_header(stack, *rows(refusing(), refusing()), **LIST)
    scene.client.send(asking.header(asking.THROUGH))
    scene.rig.until(lambda: not scene.rig.context.flows, "both have refused")
    answer = scene.client.recv(asking.ANSWER_MAX_BYTES)
    assert asking.number_in(answer) == str(why.of_error(errno.ECONNREFUSED)).encode()


def test_an_end_for_a_cause_of_a_program_to_come(stack: contextlib.ExitStack) -> None:
    """It was gone back from at the moment of an end."""
    scene = connected(stack, tcp_target(stack))
    [record] = scene.rig.ledger.flows()
    ended = replace(record, state=State.END, flags=(CAUSES_MAX - 1) << Flag.CAUSE_SHIFT)
    assert adopt._cause(ended) == "error"
