"""Single sockets: what the kernel does that one would not expect."""

import contextlib
import errno
import os
import resource
import select
import socket
import struct

import pytest

from relay import calls
from relay.kernel.sockets import (
    ask_peer,
    attach_filter,
    descriptors,
    detach_filter,
    dropped_packets,
    hear_no_more,
    listening_address,
    other_descriptors,
    readable_now,
    transmission,
    wake_watchers,
)
from tests.harness import dial, eventually, unanswered


def test_a_listening_socket_says_where() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        host, port = listener.getsockname()
        assert listening_address(listener.fileno()) == (host, port)
        assert listening_address(client.fileno()) is None
        assert descriptors()[client.fileno()].startswith("socket:[")


def test_other_descriptors_are_all_but_the_known_ones() -> None:
    known = descriptors()
    assert other_descriptors(known) == set()
    far = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 5000) - 1
    with socket.socket() as one, socket.socket() as two:
        assert descriptors([one.fileno(), 10**6]).keys() == {one.fileno()}
        os.dup2(one.fileno(), far)
        try:
            assert other_descriptors(known) == {one.fileno(), two.fileno(), far}
            assert other_descriptors(descriptors()) == set()
            # A number that was known, and is another's now.
            assert other_descriptors({**descriptors(), far: known[0]}) == {far}
        finally:
            os.close(far)
    assert other_descriptors(known) == set()


def test_who_has_something_to_say() -> None:
    pairs = [socket.socketpair() for _ in range(4)]
    ours = [one.fileno() for one, _ in pairs]
    pairs[1][1].send(b"bytes")
    pairs[2][1].shutdown(socket.SHUT_WR)
    assert readable_now(ours) == {ours[1], ours[2]}
    assert readable_now([]) == set()
    for pair in pairs:
        for sock in pair:
            sock.close()


@pytest.mark.parametrize("nofile", [100, 127, 128])
def test_descriptors_are_found_whatever_the_limit_is_now(nofile: int) -> None:
    """The table may be larger than the limit allows to ask for at once, and descriptors may stand above it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    known, far = descriptors(), min(soft, 700) - 1
    with socket.socket() as one:
        os.dup2(one.fileno(), far)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, hard))
            assert other_descriptors(known) == {one.fileno(), far}
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            os.close(far)


def test_who_watches_a_listening_socket_is_woken_and_nothing_else_happens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.closing(select.epoll()) as watching:
        watching.register(listener, select.EPOLLIN | select.EPOLLET)
        wake_watchers(listener)
        assert watching.poll(0) == [], "nobody is there"
        with socket.create_connection(listener.getsockname()) as client:
            assert (len(watching.poll(0)), watching.poll(0)) == (1, [])
            wake_watchers(listener)
            assert watching.poll(0) == [(listener.fileno(), select.EPOLLIN)]
            with listener.accept()[0] as accepted:
                wake_watchers(listener)
                client.sendall(b"there")
                assert accepted.recv(5) == b"there"
                accepted.sendall(b"back")
                assert client.recv(4) == b"back"
        with socket.create_connection(listener.getsockname()):
            assert len(watching.poll(0)) == 1, "it listens as before"


def test_a_filter_drops_counts_and_goes(filters: None) -> None:
    deny_all = struct.pack("=HBBI", 0x06, 0, 0, 0)  # BPF_RET | BPF_K, 0: keep nothing
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        before = dropped_packets(listener)
        attach_filter(listener, deny_all)
        assert unanswered(port, "127.0.0.2", for_s=0.3)
        assert dropped_packets(listener) > before
        detach_filter(listener.fileno())
        dial(port, source="127.0.0.2").close()
        detach_filter(listener.fileno())  # there is none: as well


def test_a_filter_that_is_none_is_refused(filters: None) -> None:
    with socket.socket() as sock, pytest.raises(OSError, match="Invalid argument"):
        attach_filter(sock, struct.pack("=HBBI", 0x05, 0, 0, 7))  # a jump out of the program


def test_what_the_kernel_knows_of_the_way_to_a_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        peer, _ = listener.accept()
        with peer:
            before = transmission(client.fileno())
            assert before is not None
            assert (before.in_flight, before.unsent, before.probes, before.timeouts) == (False, False, 0, 0)
            peer.send(b"x")
            eventually(lambda: transmission(client.fileno()).segments_in > before.segments_in, "something came")  # type: ignore[union-attr]
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    client.send(b"x" * 65536)
            eventually(lambda: transmission(client.fileno()).unsent, "the peer does not read")  # type: ignore[union-attr]
    left, right = socket.socketpair()
    with left, right:
        assert transmission(left.fileno()) is None


def test_a_peer_is_asked_as_it_is_set() -> None:
    with socket.socket() as sock:
        ask_peer(sock.fileno(), 7, 2, 4, 3)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        assert [sock.getsockopt(socket.IPPROTO_TCP, each) for each in options] == [7, 2, 4]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        ask_peer(sock.fileno(), 0, 2, 4, 3)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_what_came_is_read_before_an_end_that_nobody_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        peer, _ = listener.accept()
        with peer:
            peer.send(b"last words")
            eventually(lambda: select.select([client], [], [], 0)[0], "they have come")
            hear_no_more(client)
            assert (client.recv(99), client.recv(99)) == (b"last words", b"")
            client.send(b"?")
            assert peer.recv(99) == b"?"
        assert calls.pending_error(client.fileno()) in (0, errno.EPIPE, errno.ECONNRESET)
    hear_no_more(client)  # it is over already
