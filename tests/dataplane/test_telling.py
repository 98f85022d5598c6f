"""What an edge is told that asks how the application is."""

import contextlib
import errno

import pytest

from relay.config.snapshot import ProbeRow
from relay.dataplane.greeting import Greeting
from relay.envelope import asking, proxyproto
from relay.ledger.layout import Count, DaemonWord, Flag, Health, State
from relay.ledger.record import by_text
from relay.targets import why
from relay.targets.health import packed
from tests.dataplane.rig import LATER_S, refusing, silent_target, tcp_target
from tests.dataplane.scenes import Scene, at_header

REFUSED = asking.refusal(why.of_error(errno.ECONNREFUSED), "connection refused")


def told(scene: Scene, answer: bytes) -> str:
    """Whether this is the answer, and a FIN its end; the cause of the flow's."""
    assert scene.rig.receive(scene.client, len(answer)) == answer
    assert scene.rig.ending(scene.client) == "fin"
    return str(scene.rig.ended()["cause"])


def asked(stack: contextlib.ExitStack, question: bytes, *targets: object, **keys: object) -> Scene:
    scene = at_header(stack, *targets, **keys)
    scene.rig.log.level = "debug"
    scene.say(question)
    return scene


def test_who_asks_why_is_told_and_no_byte_of_the_question_makes_it_a_reset(stack: contextlib.ExitStack) -> None:
    request = b"GET /healthz HTTP/1.1\r\n\r\n"
    scene = asked(stack, asking.header(asking.THROUGH) + request, refusing())
    assert told(scene, REFUSED) == "connect_failed"


def test_who_does_not_ask_is_reset_as_ever(stack: contextlib.ExitStack) -> None:
    scene = asked(stack, proxyproto.LOCAL_V2, refusing())
    assert scene.rig.ending(scene.client) == "reset"
    assert scene.rig.ended()["cause"] == "connect_failed"


def test_no_answer_in_time_is_told_too(stack: contextlib.ExitStack) -> None:
    scene = asked(stack, asking.header(asking.THROUGH), silent_target(stack), connect_s=5.0)
    scene.rig.tick(5.0)
    assert told(scene, asking.refusal(why.no_answer(5.0), "no answer in 5 s")) == "connect_timeout"


@pytest.mark.parametrize("question", [asking.THROUGH, asking.RELAY, asking.TAKEN])
def test_a_busy_instance_says_so(question: int, stack: contextlib.ExitStack) -> None:
    scene = at_header(stack, tcp_target(stack))
    scene.rig.log.level = "debug"
    scene.rig.ledger.words[DaemonWord.BUSY_UNTIL_MONOTONIC_NS] = scene.rig.clock() + 10**12
    scene.say(asking.header(question))
    assert told(scene, asking.refusal(why.BUSY, why.text_of(why.BUSY))) == "drain"


@pytest.mark.parametrize(
    ("state", "kind", "answer"),
    [
        (Health.UNKNOWN, None, asking.WELL),
        (Health.UP, None, asking.WELL),
        (Health.DOWN, None, asking.refusal(why.http_status(503), "HTTP 503")),
        (Health.DOWN, "application", asking.refusal(why.http_status(503), "HTTP 503")),
        (Health.DOWN, "never", asking.WELL),  # nobody would find out that it is back
    ],
)
def test_a_relay_that_is_asked_alone_says_what_it_knows_and_dials_nobody(
    state: int, kind: str | None, answer: bytes, stack: contextlib.ExitStack
) -> None:
    target = tcp_target(stack)
    probe = None if kind is None else ProbeRow("/", 1.0, 1.0, kind)  # type: ignore[arg-type]
    scene = at_header(stack, target, probe=probe)
    scene.rig.log.level = "debug"
    at = scene.rig.part.counts_at(0)
    scene.rig.part.words[at + Count.HEALTH] = packed(state, why.http_status(503), 0)
    scene.say(asking.header(asking.RELAY))
    assert told(scene, answer) == "told"
    assert not target.was_dialled()


def test_a_dial_that_failed_is_known(stack: contextlib.ExitStack) -> None:
    scene = at_header(stack, refusing())
    scene.rig.log.level = "debug"
    scene.rig.gate.target_failed(scene.rig.clock(), why.of_error(errno.ECONNREFUSED))
    scene.say(asking.header(asking.RELAY))
    assert told(scene, REFUSED) == "told"


def test_an_edge_that_left_is_told_nothing(stack: contextlib.ExitStack) -> None:
    scene = asked(stack, asking.header(asking.THROUGH), silent_target(stack))
    scene.client.close()
    scene.rig.tick(LATER_S)
    assert scene.rig.ended()["cause"] == "connect_timeout"


@pytest.mark.parametrize(
    ("question", "flag", "answer", "cause"),
    [
        (asking.THROUGH, Flag.ASKS_WHY, REFUSED, "connect_failed"),
        (asking.TAKEN, Flag.ASKS_TAKEN, REFUSED, "connect_failed"),
        (asking.RELAY, Flag.ASKS_RELAY, asking.WELL, "told"),
    ],
)
def test_a_successor_knows_what_was_asked(
    question: int, flag: int, answer: bytes, cause: str, stack: contextlib.ExitStack
) -> None:
    scene = at_header(stack, refusing())
    rig = scene.rig
    rig.log.level = "debug"
    rig.part.identify(scene.flow.record, by_text(scene.flow.peer_text), Flag.PROBE | flag)
    scene.client.send(asking.header(question))
    flow, record = rig.taken_over(scene.flow)
    assert flow.asks == question
    rig.until(lambda: flow.client.recv(len(asking.header(question))), "the dead worker has taken the header")
    Greeting(flow).resume(record)
    assert (record.state, told(scene, answer)) == (State.HEADER, cause)
