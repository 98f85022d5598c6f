"""Messages between processes: whole, in order, with their descriptors."""

import os
import socket
from collections.abc import Iterator

import pytest

from relay.kernel import channel

Ends = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Both ends of a channel."""
    one, other = channel.pair()
    with one, other:
        yield one, other


def test_messages_come_whole_and_in_order(ends: Ends) -> None:
    one, other = ends
    for n in range(20):
        assert channel.send(one, {"op": "count", "n": n, "text": "é" * n})
    for n in range(20):
        assert channel.receive(other) == ({"op": "count", "n": n, "text": "é" * n}, [])
    assert channel.receive(other) is None


def test_both_ways(ends: Ends) -> None:
    one, other = ends
    channel.send(one, {"from": "one"})
    channel.send(other, {"from": "other"})
    assert channel.receive(one) == ({"from": "other"}, [])
    assert channel.receive(other) == ({"from": "one"}, [])


@pytest.mark.parametrize("count", [1, 3, channel.FDS_MAX])
def test_descriptors_come_with_their_message(count: int, ends: Ends) -> None:
    one, other = ends
    files = [os.memfd_create(f"file-{n}", os.MFD_CLOEXEC) for n in range(count)]
    for n, file in enumerate(files):
        os.write(file, b"%d" % n)
    channel.send(one, {"n": 0})
    channel.send(one, {"n": 1}, tuple(files))
    channel.send(one, {"n": 2})
    for file in files:
        os.close(file)
    assert channel.receive(other) == ({"n": 0}, [])
    received = channel.receive(other)
    assert received is not None
    message, fds = received
    assert message == {"n": 1}
    assert [os.pread(fd, 10, 0) for fd in fds] == [b"%d" % n for n in range(count)]
    for fd in fds:
        os.close(fd)
    assert channel.receive(other) == ({"n": 2}, [])


def test_descriptors_that_came_are_not_inherited(ends: Ends) -> None:
    """PEP 446: a descriptor outlives exec only where that is meant."""
    one, other = ends
    channel.send(one, {}, (one.fileno(),))
    received = channel.receive(other)
    assert received is not None
    [fd] = received[1]
    try:
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_no_room_is_told(ends: Ends) -> None:
    one, other = ends
    sent = 0
    while channel.send(one, {"n": sent, "filling": "x" * 1000}):
        sent += 1
    assert sent > 10
    assert channel.receive(other) == ({"n": 0, "filling": "x" * 1000}, [])
    while channel.receive(other) is not None:
        pass
    assert channel.send(one, {"n": "room again"})


def test_a_large_snapshots_addresses_fit(ends: Ends) -> None:
    one, other = ends
    message = {"op": "listeners", "addresses": [f"[2001:db8:1111:2222:3333:4444:5555:{n:x}]:65535" for n in range(200)]}
    assert channel.send(one, message)
    assert channel.receive(other) == (message, [])
