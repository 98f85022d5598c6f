"""What each call of the data plane returns."""

import ctypes
import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from relay import calls
from relay.address import Address
from relay.kernel.sockets import reset_on_close
from tests.conformance.peers import full_backlog
from tests.harness import HANG_S
from tests.ports import free_port


def test_splice_says_how_many_bytes_moved_and_why_none_did() -> None:
    r, w = os.pipe2(os.O_NONBLOCK)
    one, other = socket.socketpair()
    with one, other:
        other.setblocking(False)
        assert calls.splice(other.fileno(), w, 100) == calls.AGAIN
        one.send(b"seven..")
        assert calls.splice(other.fileno(), w, 100) == 7
        one.close()
        assert calls.splice(other.fileno(), w, 100) == 0
        os.close(r)
        assert calls.splice(other.fileno(), r, 1) == -errno.EBADF
    os.close(w)


def test_a_message_by_its_header_in_memory() -> None:
    data = ctypes.create_string_buffer(64)
    part = ctypes.create_string_buffer(struct.pack("@PL", ctypes.addressof(data), 64))
    header = ctypes.create_string_buffer(struct.pack("@PIPLPLi0LI0L", 0, 0, ctypes.addressof(part), 1, 0, 0, 0, 0))
    length_at = struct.calcsize("@PIPLPLi0L")
    one, other = socket.socketpair()
    with one, other:
        at = ctypes.addressof(header)
        assert calls.receive_message(other.fileno(), at) == calls.AGAIN
        one.send(b"hello")
        assert calls.receive_message(other.fileno(), at) == 1
        assert struct.unpack_from("I", header, length_at) == (5,)
        struct.pack_into("@PL", part, 0, ctypes.addressof(data), 5)
        assert calls.send_message(other.fileno(), at) == 1
        assert one.recv(99) == b"hello"
        one.close()
        assert calls.receive_message(other.fileno(), at) == 1
        assert struct.unpack_from("I", header, length_at) == (0,), "the end"
        assert calls.send_message(other.fileno(), at) == -errno.EPIPE, "and no SIGPIPE"


def test_bytes_from_an_address() -> None:
    r, w = os.pipe2(os.O_NONBLOCK)
    data = ctypes.create_string_buffer(b"from here")
    assert calls.write_at(w, ctypes.addressof(data) + 5, 4) == 4
    assert os.read(r, 99) == b"here"
    os.close(r)
    assert calls.write_at(r, ctypes.addressof(data), 1) == -errno.EBADF
    os.close(w)


def test_memory_is_locked_if_it_is_there() -> None:
    data = ctypes.create_string_buffer(8192)
    assert calls.lock_memory(ctypes.addressof(data), 8192)
    assert not calls.lock_memory(1 << 46, 4096)


@pytest.fixture(params=["127.0.0.1", "::1"])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A socket that listens, and does not block: on IPv4, and then on IPv6."""
    with socket.create_server((request.param, 0), family=family_of(request.param)) as made:
        made.setblocking(False)
        yield made


def family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def text_of(sock: socket.socket) -> str:
    """Its own address, as it is told of."""
    return str(Address(*sock.getsockname()[:2]))


def test_a_connection_that_is_accepted_and_who_came(listener: socket.socket) -> None:
    assert calls.accept(listener.fileno()) == calls.AGAIN
    address = listener.getsockname()[:2]
    with socket.create_connection(address) as one, socket.create_connection(address) as other:
        for client in (one, other):
            fd = calls.accept(listener.fileno())
            assert (os.get_blocking(fd), os.get_inheritable(fd)) == (False, False)
            assert (calls.accepted_host(), calls.accepted_peer()) == (client.getsockname()[0], text_of(client))
            with socket.socket(fileno=fd) as accepted:
                accepted.send(b"hello")
                assert client.recv(5) == b"hello"
    assert calls.accept(listener.fileno()) == calls.AGAIN


def test_who_came_as_ipv4_to_a_socket_of_both() -> None:
    listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    with listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1])) as client:
        assert calls.close(calls.accept(listener.fileno())) == 0
        port = client.getsockname()[1]
        assert (calls.accepted_host(), calls.accepted_peer()) == ("::ffff:127.0.0.1", f"[::ffff:127.0.0.1]:{port}")


def test_accepting_from_what_does_not_listen() -> None:
    with socket.socket() as idle, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        assert calls.accept(idle.fileno()) == -errno.EINVAL
        assert calls.accept(datagrams.fileno()) == -errno.EOPNOTSUPP
    assert calls.accept(-1) == -errno.EBADF


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_a_new_socket(family: socket.AddressFamily) -> None:
    with socket.socket(fileno=calls.open_socket(family)) as made:
        assert (made.family, made.type) == (family, socket.SOCK_STREAM)
        assert (os.get_blocking(made.fileno()), made.get_inheritable()) == (False, False)
    assert calls.open_socket(-1) == -errno.EAFNOSUPPORT


def new_socket(host: str) -> socket.socket:
    return socket.socket(fileno=calls.open_socket(family_of(host)))


def test_connecting_to_who_listens(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    with new_socket(host) as made:
        assert calls.connect(made.fileno(), host, port) == 0
        with socket.socket(fileno=calls.accept(listener.fileno())) as accepted:
            assert calls.accepted_peer() == text_of(made)
            made.send(b"hello")
            assert accepted.recv(5) == b"hello"


def test_connecting_to_who_does_not_answer_yet() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        with full_backlog(listener), new_socket("127.0.0.1") as made:
            assert calls.connect(made.fileno(), *listener.getsockname()) == -errno.EINPROGRESS


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connecting_to_who_refuses(host: str) -> None:
    with new_socket(host) as made:
        port = free_port()
        code = calls.connect(made.fileno(), host, port)
        if code == -errno.EINPROGRESS:  # the kernel was slow
            assert select.select([], [made], [], HANG_S)[1]
            code = -calls.pending_error(made.fileno())
        assert code == -errno.ECONNREFUSED


@pytest.mark.parametrize(
    "host", ["", "localhost", "127.0.0.1.", "127.0.1", "1.2.3.256", "::1::", "[::1]", "fe80::1%lo", "::ffff:1.2.3"]
)
def test_connecting_to_what_is_no_address(host: str) -> None:
    with new_socket("127.0.0.1") as ipv4, new_socket("::1") as ipv6:
        assert [calls.connect(made.fileno(), host, 80) for made in (ipv4, ipv6)] == [-errno.EINVAL] * 2


def test_connecting_to_an_address_of_the_other_ip_version() -> None:
    with new_socket("127.0.0.1") as ipv4, new_socket("::1") as ipv6:
        assert calls.connect(ipv4.fileno(), "::1", 80) == -errno.EAFNOSUPPORT
        assert calls.connect(ipv6.fileno(), "127.0.0.1", 80) in (-errno.EAFNOSUPPORT, -errno.EINVAL)
        assert calls.connect(-1, "127.0.0.1", 80) == -errno.EBADF


def test_the_end_of_a_stream_and_of_a_descriptor() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert calls.shut_write(one.fileno()) == 0
        assert other.recv(1) == b""
        other.send(b"the other way")
        assert one.recv(99) == b"the other way"
        fd = one.detach()
        assert [calls.close(fd), calls.close(fd), calls.shut_write(fd)] == [0, -errno.EBADF, -errno.EBADF]
        with pytest.raises(BrokenPipeError):
            other.send(b"x")
    with socket.socket() as idle:
        assert calls.shut_write(idle.fileno()) == -errno.ENOTCONN


def test_an_option_is_set() -> None:
    with socket.socket() as sock:
        for value in (1, 0):
            assert calls.set_option(sock.fileno(), socket.IPPROTO_TCP, socket.TCP_NODELAY, value) == 0
            assert bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is bool(value)
        assert calls.set_option(sock.fileno(), socket.IPPROTO_TCP, 9999, 1) == -errno.ENOPROTOOPT
    with socket.socket(socket.AF_UNIX) as unix:
        assert calls.set_option(unix.fileno(), socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) == -errno.EOPNOTSUPP
    assert calls.set_option(-1, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1) == -errno.EBADF


def test_a_socket_that_was_to_be_reset_finishes_after_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        accepted, _ = listener.accept()
        reset_on_close(accepted)
        assert calls.finish_on_close(accepted.fileno()) == 0
        accepted.send(b"last")
        accepted.close()
        assert (client.recv(99), client.recv(99)) == (b"last", b"")
    assert calls.finish_on_close(-1) == -errno.EBADF


def test_an_error_is_told_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        assert calls.pending_error(client.fileno()) == 0
        accepted, _ = listener.accept()
        reset_on_close(accepted)
        accepted.close()
        assert select.select([client], [], [], HANG_S)[0]
        assert [calls.pending_error(client.fileno()) for _ in range(2)] == [errno.ECONNRESET, 0]
    assert calls.pending_error(-1) == errno.EBADF


def test_what_was_not_acknowledged_yet() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert calls.unsent_bytes(one.fileno()) == 0
        one.send(b"x")
        assert calls.unsent_bytes(one.fileno()) > 0
        assert calls.readable_bytes(other.fileno()) == 1
        assert other.recv(1) == b"x"
        assert calls.unsent_bytes(one.fileno()) == 0
        fd = one.detach()
        os.close(fd)
        assert (calls.unsent_bytes(fd), calls.readable_bytes(fd)) == (0, 0)


@pytest.mark.parametrize(
    ("text", "stored"), [("", b"\0\0\0\0"), ("ab", b"ab\0\0"), ("abcd", b"abcd"), ("abcdefgh", b"abcd")]
)
def test_a_text_has_as_much_room_as_there_is_and_nought_behind_it(text: str, stored: bytes) -> None:
    data = ctypes.create_string_buffer(b"//////", 6)
    calls.put_text(ctypes.addressof(data) + 1, text, 4)
    assert data.raw == b"/" + stored + b"/"


@pytest.mark.parametrize(
    ("does", "interest", "told"),
    [
        (lambda peer: peer.send(b"x"), calls.READ, calls.READ),
        (lambda peer: None, calls.WRITE, calls.WRITE),
        (lambda peer: peer.shutdown(socket.SHUT_WR), calls.PEER_FIN, calls.PEER_FIN),
        (lambda peer: peer.close(), 0, select.EPOLLHUP),
    ],
)
def test_what_a_poller_is_told(does: Callable[[socket.socket], object], interest: int, told: int) -> None:
    one, other = socket.socketpair()
    poller = calls.open_poll()
    with one, other:
        assert calls.control_poll(poller, calls.ADD, one.fileno(), interest) == 0
        does(other)
        assert calls.poll(poller, round(1000 * HANG_S)) == 1
        assert (calls.event_fd(0), calls.event_mask(0)) == (one.fileno(), told)
        assert told & (interest | calls.BROKEN) == told
        assert calls.control_poll(poller, calls.DELETE, one.fileno(), 0) == 0
        assert calls.poll(poller, 0) == 0
        assert calls.control_poll(poller, calls.MODIFY, one.fileno(), interest) == -errno.ENOENT
    calls.close_poll(poller)
