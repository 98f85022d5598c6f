"""A client's bytes are given up once an instance has taken the connection, and never go to two."""

import contextlib
import errno
import socket
from functools import partial

import pytest

from relay.dataplane.asking import COPIED_MAX_BYTES
from relay.envelope import asking
from relay.kernel.poller import UNWATCHED
from relay.ledger.layout import State, TargetCount
from relay.targets import why
from tests.dataplane.asking_scenes import REQUEST, at_ask, at_taken, header_of, succeeded
from tests.dataplane.rig import LATER_S, refusing, reset, silent_target, tcp_target
from tests.dataplane.scenes import Scene

Stack = contextlib.ExitStack
REFUSED = asking.refusal(why.of_error(errno.ECONNREFUSED), "connection refused")


def taken(scene: Scene, answer: bytes = asking.TOOK + b"hello") -> None:
    """The relay that was asked has taken it, and its application says hello."""
    assert scene.rig.receive(scene.served, len(header_of(scene) + REQUEST)) == header_of(scene) + REQUEST
    scene.served.send(answer)
    assert scene.rig.receive(scene.client, 5) == b"hello"
    assert scene.flow.state == State.SPLICE


def ends_well(scene: Scene, received: int) -> dict[str, object]:
    """The client finishes, then the target; both ways were whole."""
    scene.client.shutdown(socket.SHUT_WR)
    assert scene.rig.ending(scene.served) == "fin"
    scene.served.close()
    assert scene.rig.ending(scene.client) == "fin"
    record = scene.rig.ended()
    assert (record["cause"], record["received"], record["sent"]) == ("client_fin", received, 5)
    return record


def comes_last(scene: Scene, piece: bytes) -> bool:
    with contextlib.suppress(BlockingIOError):
        return scene.served.recv(999, socket.MSG_PEEK).endswith(piece)
    return False


def counted(scene: Scene, place: int, word: int) -> int:
    return scene.rig.ledger.target_total(place, word)


def test_what_was_said_goes_with_the_question_and_once(stack: Stack) -> None:
    scene = at_ask(stack)
    taken(scene)
    scene.client.send(b"more")
    assert scene.rig.receive(scene.served, 4) == b"more"
    assert "attempts" not in ends_well(scene, len(REQUEST) + 4)
    assert counted(scene, 0, TargetCount.CONNECTED) == 1


def test_who_speaks_later_is_heard_meanwhile(stack: Stack) -> None:
    scene = at_ask(stack, said=b"")
    for piece in (REQUEST[:3], REQUEST[3:9], REQUEST[9:]):
        scene.client.send(piece)
        scene.rig.until(partial(comes_last, scene, piece), "it is copied")
    assert scene.flow.client.recv(99, socket.MSG_PEEK) == REQUEST, "and stays"
    taken(scene)
    ends_well(scene, len(REQUEST))


def test_a_service_that_speaks_first(stack: Stack) -> None:
    scene = at_ask(stack, said=b"")
    assert scene.rig.receive(scene.served, len(header_of(scene))) == header_of(scene)
    scene.served.send(asking.TOOK + b"hello")
    assert scene.rig.receive(scene.client, 5) == b"hello"
    scene.client.send(b"\x01")
    assert scene.rig.receive(scene.served, 1) == b"\x01"
    ends_well(scene, 1)


def test_much_is_copied_in_part_and_whole_in_the_end(stack: Stack) -> None:
    much = bytes(range(256)) * 1024
    scene = at_ask(stack, said=b"")
    rest = much
    while rest:
        with contextlib.suppress(BlockingIOError):
            rest = rest[scene.client.send(rest) :]
        scene.rig.poller.serve()
        if len(rest) < len(much) - 4 * COPIED_MAX_BYTES:
            break
    come = scene.rig.receive(scene.served, len(header_of(scene)) + COPIED_MAX_BYTES)
    scene.served.send(asking.TOOK)
    while len(come) < len(header_of(scene)) + len(much):
        with contextlib.suppress(BlockingIOError):
            rest = rest[scene.client.send(rest) :] if rest else rest
        with contextlib.suppress(BlockingIOError):
            come += scene.served.recv(65536)
        scene.rig.poller.serve()
    assert come == header_of(scene) + much


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (REFUSED, "connection refused"),
        (asking.refusal(why.http_status(503), "HTTP 503"), "HTTP 503"),
        (b"\x00", "its relay says that it is down"),
        (b"", "its relay: closes the connection without an answer"),
        (None, "its relay: connection reset by peer"),
    ],
)
def test_a_refusal_leads_to_the_next_with_all_that_was_said(refusal: bytes | None, reason: str, stack: Stack) -> None:
    other = tcp_target(stack)
    scene = at_ask(stack, other)
    if refusal is None:
        reset(scene.served)
    else:
        scene.served.send(refusal)
        scene.served.shutdown(socket.SHUT_WR)
    scene.service = other.accept(scene.rig)
    assert scene.flow.reason == reason
    taken(scene)
    assert counted(scene, 0, TargetCount.FAILURES) == counted(scene, 0, TargetCount.RETRIES) == 1
    assert [counted(scene, place, TargetCount.ACTIVE) for place in (0, 1)] == [0, 1]
    assert ends_well(scene, len(REQUEST))["attempts"] == 2


def test_a_silence_leads_to_the_next_and_the_silent_one_is_reset(stack: Stack) -> None:
    other = tcp_target(stack)
    scene = at_ask(stack, other)
    silent = scene.served
    scene.rig.tick(0.9)
    assert scene.flow.state == State.ASK
    assert not other.was_dialled()
    scene.rig.tick(0.2)
    scene.service = other.accept(scene.rig)
    scene.rig.receive(silent, len(header_of(scene) + REQUEST))
    assert scene.rig.ending(silent) == "reset"
    taken(scene)
    ends_well(scene, len(REQUEST))


def test_who_has_taken_it_in_time_keeps_it_however_late_that_is_seen(stack: Stack) -> None:
    other = tcp_target(stack)
    scene = at_ask(stack, other)
    scene.served.send(asking.TOOK + b"hello")
    scene.rig.tick(LATER_S)
    assert scene.flow.state == State.SPLICE
    assert not other.was_dialled()
    taken(scene, b"")


@pytest.mark.parametrize("how", ["reset", "fin"])
def test_once_taken_nothing_goes_to_another(how: str, stack: Stack) -> None:
    other = tcp_target(stack)
    scene = at_ask(stack, other)
    scene.served.send(asking.TOOK)
    scene.rig.until(lambda: scene.flow.state == State.SPLICE, "it is taken")
    scene.rig.receive(scene.served, len(header_of(scene) + REQUEST))
    if how == "reset":
        reset(scene.served)
        assert scene.rig.ending(scene.client) == "reset"
    else:
        scene.served.close()
        assert scene.rig.ending(scene.client) == "fin"
        scene.client.close()
    assert scene.rig.ended()["cause"] == ("target_reset" if how == "reset" else "target_fin")
    assert not other.was_dialled()


def test_who_is_denied_there_is_denied_here(stack: Stack) -> None:
    other = tcp_target(stack)
    scene = at_ask(stack, other)
    scene.served.send(asking.refusal(why.DENIED, why.text_of(why.DENIED)))
    assert scene.rig.ending(scene.client) == "reset"
    record = scene.rig.ended()
    assert (record["cause"], record["reason"]) == ("denied", "its relay refuses this client: see its log")
    assert not other.was_dialled()
    assert counted(scene, 0, TargetCount.FAILURES) == 0


def test_a_busy_instance_has_not_failed(stack: Stack) -> None:
    other = tcp_target(stack)
    scene = at_ask(stack, other)
    scene.served.send(asking.refusal(why.BUSY, why.text_of(why.BUSY)))
    scene.service = other.accept(scene.rig)
    taken(scene)
    assert (counted(scene, 0, TargetCount.FAILURES), counted(scene, 0, TargetCount.RETRIES)) == (0, 1)
    ends_well(scene, len(REQUEST))


def test_none_takes_it(stack: Stack) -> None:
    scene = at_ask(stack, refusing())
    scene.served.send(REFUSED)
    assert scene.rig.ending(scene.client) == "reset"
    record = scene.rig.ended()
    assert (record["cause"], record["attempts"]) == ("connect_failed", 2)
    assert record["received"] == record["sent"] == 0


def test_a_relay_that_does_not_know_the_question_after_all(stack: Stack) -> None:
    """It was replaced by an older one: its application's first byte is the client's, and it is not asked again."""
    scene = at_ask(stack)
    taken(scene, b"hello")
    assert counted(scene, 0, TargetCount.KNOWS) == 0
    ends_well(scene, len(REQUEST))


def test_the_next_one_is_not_asked_where_it_does_not_know(stack: Stack) -> None:
    other = tcp_target(stack)
    scene = at_ask(stack, other, knows=(1, 0))
    scene.served.send(REFUSED)
    scene.service = other.accept(scene.rig)
    header = header_of(scene)
    plain = bytearray(header[:-4])
    plain[15] -= 4
    assert scene.rig.receive(scene.served, len(plain) + len(REQUEST)) == bytes(plain) + REQUEST
    scene.served.send(b"\x01hello")
    assert scene.rig.receive(scene.client, 6) == b"\x01hello"
    scene.client.send(b"?")
    assert scene.rig.receive(scene.served, 1) == b"?"


def test_a_client_that_leaves_meanwhile(stack: Stack) -> None:
    scene = at_ask(stack, said=b"")
    reset(scene.client)
    header = scene.rig.receive(scene.served, len(header_of(scene)))
    assert scene.rig.ended()["cause"] == "client_reset"
    assert header.startswith(b"\r\n")
    assert scene.rig.ending(scene.served) == "reset"


def test_a_client_that_has_finished_is_not_looked_at_over_and_over(stack: Stack) -> None:
    scene = at_ask(stack)
    scene.client.shutdown(socket.SHUT_WR)
    scene.rig.until(lambda: scene.flow.client_interest == UNWATCHED, "its end is seen")
    taken(scene)
    assert scene.rig.ending(scene.served) == "fin"
    scene.served.close()
    assert scene.rig.ended()["cause"] == "client_fin"


# --- a worker dies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [REQUEST, b""])
def test_a_successor_goes_on_with_what_was_copied(said: bytes, stack: Stack) -> None:
    scene = succeeded(at_ask(stack, said=said))
    scene.client.send(REQUEST[len(said) :] or b"")
    taken(scene)
    ends_well(scene, len(REQUEST))


def test_a_successor_asks_where_the_dead_one_had_not(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as killed:
        killed.setattr("relay.dataplane.asking.Asking._offer", lambda _: False)
        scene = at_ask(stack)
    scene = succeeded(scene)
    taken(scene)
    ends_well(scene, len(REQUEST))


@pytest.mark.parametrize("refusal", [REFUSED, b""])
def test_a_successor_finds_a_refusal(refusal: bytes, stack: Stack) -> None:
    other = tcp_target(stack)
    scene = at_ask(stack, other)
    scene.served.send(refusal)
    scene.served.close()
    scene = succeeded(scene)
    scene.service = other.accept(scene.rig)
    taken(scene)
    ends_well(scene, len(REQUEST))


@pytest.mark.parametrize("answer_taken", [False, True])
@pytest.mark.parametrize("discarded", [0, 5, len(REQUEST)])
@pytest.mark.parametrize("client_has_finished", [False, True])
def test_a_successor_takes_out_the_rest(
    answer_taken: bool, discarded: int, client_has_finished: bool, stack: Stack
) -> None:
    scene = at_taken(stack)
    stage = scene.flow.stage
    if answer_taken:
        assert stage._target.recv(1) == asking.TOOK  # type: ignore[attr-defined]  # of Asking
    if discarded:
        scene.flow.client.recv(discarded)
    if client_has_finished:
        scene.client.shutdown(socket.SHUT_WR)
    scene = succeeded(scene)
    assert scene.flow.state == State.SPLICE
    taken(scene, b"hello")
    if client_has_finished:
        assert scene.rig.ending(scene.served) == "fin"
        scene.served.close()
        assert scene.rig.ending(scene.client) == "fin"
    else:
        scene.client.send(b"\x01\x00")
        assert scene.rig.receive(scene.served, 2) == b"\x01\x00"
        ends_well(scene, len(REQUEST) + 2)


def test_a_successor_of_a_target_that_has_finished_already(stack: Stack) -> None:
    scene = at_taken(stack)
    scene.served.send(b"hello")
    scene.served.shutdown(socket.SHUT_WR)
    scene = succeeded(scene)
    assert scene.rig.receive(scene.client, 5) == b"hello"
    assert scene.rig.ending(scene.client) == "fin"


def test_a_silent_target_after_a_refusal_is_a_dial(stack: Stack) -> None:
    scene = at_ask(stack, silent_target(stack))
    scene.served.send(REFUSED)
    scene.rig.until(lambda: scene.flow.state == State.DIAL, "the next one is dialled")
    scene.rig.tick(LATER_S)
    assert scene.rig.ended()["cause"] == "connect_timeout"
