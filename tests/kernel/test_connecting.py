"""Dialling: what a socket for a target is, and what connect(2) comes to."""

import contextlib
import errno
import os
import select
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from relay.config.snapshot import TargetRow
from relay.kernel.bare_socket import BareSocket
from relay.kernel.connecting import connect, is_no_socket, target_socket
from tests.conformance.peers import full_backlog
from tests.harness import HANG_S
from tests.ports import free_port


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """What a test opened, closed in reverse."""
    with contextlib.ExitStack() as made:
        yield made


def row_at(listener: socket.socket) -> TargetRow:
    if listener.family == socket.AF_UNIX:
        return TargetRow("app", path=listener.getsockname())
    host, port = listener.getsockname()[:2]
    return TargetRow("app", host=host, port=port)


def listening(stack: contextlib.ExitStack, kind: str, directory: Path) -> socket.socket:
    if kind == "unix":
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(directory / "app"))
        listener.listen()
        return listener
    host, family = ("::1", socket.AF_INET6) if kind == "ipv6" else ("127.0.0.1", socket.AF_INET)
    return stack.enter_context(socket.create_server((host, 0), family=family))


def dialling(stack: contextlib.ExitStack, row: TargetRow, speaks_as: str = "") -> BareSocket:
    """A socket for it, closed when the test ends."""
    made = target_socket(row, speaks_as)
    stack.callback(made.close)
    return made


@pytest.mark.parametrize("kind", ["ipv4", "ipv6", "unix"])
def test_a_target_that_listens_is_reached_at_once(kind: str, stack: contextlib.ExitStack, tmp_path: Path) -> None:
    listener = listening(stack, kind, tmp_path)
    target = dialling(stack, row_at(listener))
    assert (os.get_blocking(target.fd), os.get_inheritable(target.fd)) == (False, False)
    assert connect(target, row_at(listener)) == 0
    service = stack.enter_context(listener.accept()[0])
    target.send(b"hello")
    assert service.recv(5) == b"hello"


@pytest.mark.parametrize("kind", ["ipv4", "ipv6", "unix"])
def test_urgent_data_comes_in_its_place(kind: str, stack: contextlib.ExitStack, tmp_path: Path) -> None:
    target = dialling(stack, row_at(listening(stack, kind, tmp_path)))
    assert bool(target.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)) is (kind != "unix")


def test_one_that_does_not_answer_yet_is_waited_for(stack: contextlib.ExitStack) -> None:
    """However often connect(2) was asked meanwhile."""
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    stack.enter_context(full_backlog(listener))
    target = dialling(stack, row_at(listener))
    assert connect(target, row_at(listener)) == errno.EINPROGRESS


def test_one_that_refuses(stack: contextlib.ExitStack) -> None:
    row = TargetRow("gone", host="127.0.0.1", port=free_port())
    target = dialling(stack, row)
    code = connect(target, row)
    if code == errno.EINPROGRESS:  # the kernel was slow; then the poller tells
        assert select.select([], [target], [], HANG_S)[1]
        code = target.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    assert code == errno.ECONNREFUSED


def test_a_unix_target_says_why_not(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    row = TargetRow("app", path=str(tmp_path / "app"))
    assert connect(dialling(stack, row), row) == errno.ENOENT
    listener = listening(stack, "unix", tmp_path)
    listener.listen(0)
    waiting = dialling(stack, row)
    assert connect(waiting, row) == 0
    assert connect(dialling(stack, row), row) == errno.EAGAIN, "its backlog is full"
    listener.close()
    assert connect(dialling(stack, row), row) == errno.ECONNREFUSED
    long = TargetRow("app", path=f"/{'x' * 200}")
    with pytest.raises(OSError, match="too long"):
        connect(dialling(stack, long), long)


def test_where_no_route_leads(stack: contextlib.ExitStack) -> None:
    row = TargetRow("nowhere", host="127.255.255.255", port=80)  # a broadcast address, which TCP does not go to
    assert connect(dialling(stack, row), row) == errno.ENETUNREACH


def test_what_is_no_address(stack: contextlib.ExitStack) -> None:
    row = TargetRow("name", host="app.example", port=80)
    assert connect(dialling(stack, row), row) == errno.EINVAL


def test_a_dead_target_is_not_found_alive_by_meeting_oneself(stack: contextlib.ExitStack) -> None:
    """A dialling socket may be given the very port that it dials, and TCP then connects it to itself."""
    row = TargetRow("dead", host="127.0.0.1", port=1)
    target = dialling(stack, row)
    target.bind(("127.0.0.1", 0))  # the kernel gives it a port as it does when dialling
    port = target.getsockname()[1]
    row = replace(row, port=port)
    assert target.connect_ex(("127.0.0.1", port)) in (0, errno.EINPROGRESS)
    assert target.getpeername() == target.getsockname(), "the kernel does so"
    assert connect(target, row) == errno.ECONNREFUSED


def test_from_another_address(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    listener = listening(stack, "ipv4", tmp_path)
    target = dialling(stack, row_at(listener), "127.0.0.77")
    assert connect(target, row_at(listener)) == 0
    service, peer = listener.accept()
    service.close()
    assert peer[0] == "127.0.0.77"


def test_from_an_address_of_the_other_ip_version_and_nothing_stays_open() -> None:
    row = TargetRow("app", host="127.0.0.1", port=80)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="other IP version") as raised:
        target_socket(row, "::1")
    assert raised.value.errno == errno.EAFNOSUPPORT
    with pytest.raises(OSError, match="assign requested address"):
        target_socket(row, "192.0.2.1")  # which is no machine's
    assert os.listdir("/proc/self/fd") == before


def test_what_lies_at_a_path(tmp_path: Path, stack: contextlib.ExitStack) -> None:
    listening(stack, "unix", tmp_path)
    (tmp_path / "file").touch()
    assert [is_no_socket(str(tmp_path / name)) for name in ("app", "file", "nothing")] == [False, True, False]
    assert not is_no_socket("")
