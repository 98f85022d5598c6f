"""Whether peers are alive: what is set on their sockets, when the kernel is asked, and peers that are really silent."""

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from relay import calls
from relay.dataplane import peers
from relay.dataplane.peers import Peers
from relay.kernel.bare_socket import AnySocket
from relay.kernel.sockets import attach_filter, transmission
from tests.config.rig import endpoint_row
from tests.dataplane.rig import Rig, rig_to, unix_target
from tests.dataplane.scenes import Scene, at_close, at_splice, fill
from tests.harness import eventually

USUAL = (1, 15, 3, 5, 4000)


def options(sock: AnySocket) -> tuple[int, ...]:
    """SO_KEEPALIVE, its three numbers, and the longest pause before something is sent again, where the kernel has that."""
    tcp = [sock.getsockopt(socket.IPPROTO_TCP, 4 + n) for n in range(3)]
    try:
        longest_ms = sock.getsockopt(socket.IPPROTO_TCP, 44)
    except OSError:  # before Linux 6.15
        longest_ms = USUAL[-1]
    return (sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *tcp, longest_ms)


def both(scene: Scene) -> list[tuple[int, ...]]:
    return [options(scene.flow.client), options(scene.forwarding._target)]


def acknowledged(scene: Scene) -> None:
    """Wait until both kernels have all that was sent: they take up to 40 ms before they say so."""
    fds = (scene.flow.client.fd, scene.forwarding._target.fd)
    eventually(lambda: not any(map(calls.unsent_bytes, fds)), "all is acknowledged")


def declare(rig: Rig, **keys: Any) -> None:
    rig.gate.declare(replace(rig.gate.declared, **keys))


@pytest.fixture
def asked() -> Iterator[list[int]]:
    """The sockets that the kernel was asked about."""
    fds: list[int] = []

    def ask(fd: int) -> Any:
        fds.append(fd)
        return transmission(fd)

    with patch.object(peers, "transmission", ask):
        yield fds


def test_a_short_connection_pays_nothing_for_it(stack: contextlib.ExitStack) -> None:
    """Nor has it inherited anything: whoever lives to see a sweep has both."""
    scene = at_splice(stack)
    assert {each[0] for each in both(scene)} == {0}
    scene.rig.sweep()
    assert both(scene) == [USUAL, USUAL]


def test_a_reload_holds_for_open_connections(stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack)
    for keepalive_s, dead_s, expected in (
        (15.0, 30.0, USUAL),
        (60.0, 120.0, (1, 60, 12, 5, 15_000)),
        (60.0, None, (1, 60, 75, 9, 120_000)),
        (None, 30.0, (0, 60, 75, 9, 4000)),
        (15.0, 30.0, USUAL),
    ):
        declare(scene.rig, keepalive_s=keepalive_s, dead_s=dead_s)
        scene.rig.sweep(1.0)
        for found in both(scene):
            assert found[:-1] == expected[:-1]
            assert found[-1] in (expected[-1], USUAL[-1])


def test_a_reload_that_changes_something_else_sets_nothing(stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack)
    scene.rig.sweep()
    with patch.object(peers, "ask_peer", side_effect=AssertionError):
        declare(scene.rig, idle_s=7.0)
        scene.rig.sweep(1.0)


def test_a_sweep_that_has_lasted_long_sets_nothing_more(stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack)
    found = Peers(scene.forwarding._up, scene.forwarding._down)
    found.dead(100.0, endpoint_row(), lambda: 100.02)
    assert {each[0] for each in both(scene)} == {0}
    found.dead(100.015, endpoint_row(), lambda: 100.02)
    assert both(scene) == [USUAL, USUAL]


def test_who_is_idle_is_not_asked_about(stack: contextlib.ExitStack, asked: list[int]) -> None:
    scene = at_splice(stack)
    for _ in range(3):
        scene.rig.sweep(60.0)
    first = [scene.forwarding._target.fileno(), scene.flow.client.fileno()]
    assert asked == first, "once, for what may have been sent before"


def test_who_was_sent_something_is_asked_about_once(stack: contextlib.ExitStack, asked: list[int]) -> None:
    scene = at_splice(stack)
    rig = scene.rig
    rig.sweep(60.0)
    asked.clear()
    scene.client.send(b"x")
    assert rig.receive(scene.served, 1) == b"x"
    acknowledged(scene)
    for _ in range(3):
        rig.sweep(60.0)
    assert asked == [scene.forwarding._target.fileno()]


def test_who_answers_is_not_asked_about_before_he_falls_silent(stack: contextlib.ExitStack, asked: list[int]) -> None:
    scene = at_splice(stack)
    rig = scene.rig
    for _ in range(3):
        scene.client.send(b"x")
        assert rig.receive(scene.served, 1) == b"x"
        scene.served.send(b"y")
        assert rig.receive(scene.client, 1) == b"y"
        rig.sweep(60.0)
        assert asked == []
    acknowledged(scene)
    for _ in range(3):
        rig.sweep(60.0)
    assert sorted(asked) == sorted([scene.forwarding._target.fileno(), scene.flow.client.fileno()])


def test_who_reads_nothing_is_asked_about_every_now_and_then(stack: contextlib.ExitStack, asked: list[int]) -> None:
    """That is 15 times within `dead`; and he is alive, for his kernel answers."""
    scene = at_splice(stack)
    fill(scene, "target")
    for _ in range(2):
        scene.rig.sweep(60.0)
    asked.clear()
    for _ in range(600):
        scene.rig.sweep(1.0)
    assert scene.rig.context.flows
    assert asked == [scene.flow.client.fileno()] * 300


def test_an_end_that_was_passed_on_is_something_sent(stack: contextlib.ExitStack, asked: list[int]) -> None:
    scene = at_splice(stack)
    scene.rig.sweep(60.0)
    asked.clear()
    scene.client.shutdown(socket.SHUT_WR)
    assert scene.rig.ending(scene.served) == "fin"
    acknowledged(scene)
    scene.rig.sweep(60.0)
    assert asked == [scene.forwarding._target.fileno()]


def test_where_nobody_is_dead_nobody_is_asked_about(stack: contextlib.ExitStack, asked: list[int]) -> None:
    scene = at_splice(stack, dead_s=None)
    fill(scene, "target")
    for _ in range(3):
        scene.rig.sweep(60.0)
    assert asked == []
    declare(scene.rig, dead_s=30.0)
    scene.rig.sweep(60.0)
    scene.rig.sweep(60.0)
    assert scene.flow.client.fileno() in asked


def test_a_unix_target_cannot_vanish(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    target = unix_target(stack, tmp_path / "target")
    rig = rig_to(stack, target)
    client = rig.connect()
    client.send(b"x")
    assert rig.receive(target.accept(rig), 1) == b"x"
    for _ in range(3):
        rig.sweep(60.0)
    assert rig.context.flows


# --- peers that are really silent: a filter on their own socket drops what is sent to them --------------------------------


def dies(scene: Scene, who: str) -> socket.socket:
    """This side hears and answers nothing any more: the other side."""
    dying, left = (scene.client, scene.served) if who == "client" else (scene.served, scene.client)
    attach_filter(dying, struct.pack("=HBBI", 0x06, 0, 0, 0))  # BPF_RET: keep 0 bytes of each packet
    return left


def swept_to_the_end(scene: Scene) -> None:
    """Sweep until it has ended, while the data plane's time passes like the kernel's."""
    last_s = time.monotonic()

    def ended() -> bool:
        nonlocal last_s
        now_s = time.monotonic()
        scene.rig.sweep(now_s - last_s)
        scene.rig.tick()
        last_s = now_s
        return not scene.rig.context.flows

    scene.rig.until(ended, "it ends")


@pytest.mark.parametrize("who", ["client", "target"])
def test_an_idle_peer_is_given_up_by_the_kernel(who: str, stack: contextlib.ExitStack, filters: None) -> None:
    scene = at_splice(stack, keepalive_s=1.0, dead_s=2.0)
    scene.rig.sweep()
    left = dies(scene, who)
    assert scene.rig.ending(left) == "reset"
    assert scene.rig.ended()["cause"] == "peer_dead"


@pytest.mark.parametrize("who", ["client", "target"])
def test_one_that_had_finished_sending(who: str, stack: contextlib.ExitStack, filters: None) -> None:
    """Nothing is read from it any more, so only that the socket is over tells; and why it is."""
    scene = at_splice(stack, keepalive_s=1.0, dead_s=2.0)
    (scene.client if who == "client" else scene.served).shutdown(socket.SHUT_WR)
    assert scene.rig.ending(scene.served if who == "client" else scene.client) == "fin"
    scene.rig.sweep()
    dies(scene, who)
    scene.rig.until(lambda: not scene.rig.context.flows, "the kernel gives it up")
    assert scene.rig.ended()["cause"] == "peer_dead"


@pytest.mark.parametrize("who", ["client", "target"])
def test_a_peer_that_does_not_acknowledge(who: str, stack: contextlib.ExitStack, filters: None) -> None:
    scene = at_splice(stack, keepalive_s=None, dead_s=2.0)
    scene.rig.sweep()
    left = dies(scene, who)
    left.send(b"x" * 1000)
    swept_to_the_end(scene)
    assert scene.rig.ending(left) == "reset"
    assert scene.rig.ended()["cause"] == "peer_dead"


@pytest.mark.parametrize("who", ["client", "target"])
def test_a_reader_that_stood_still_and_died(who: str, stack: contextlib.ExitStack, filters: None) -> None:
    """Nothing is in flight, for its window is closed: it is asked for that, and does not answer."""
    scene = at_splice(stack, keepalive_s=1.0, dead_s=2.0)
    fill(scene, "target" if who == "client" else "client", 8192)
    scene.rig.sweep()
    dies(scene, who)
    swept_to_the_end(scene)
    assert scene.rig.ended()["cause"] == "peer_dead"


def test_a_reader_that_dies_after_the_other_side_was_reset(stack: contextlib.ExitStack, filters: None) -> None:
    """It is not waited for, and the cause is the first one."""
    scene = at_close(stack, "target", keepalive_s=1.0, dead_s=2.0)
    dies(scene, "client")
    swept_to_the_end(scene)
    assert scene.rig.ended()["cause"] == "target_reset"
