"""A socket by its descriptor: what it knows without asking, what is asked when somebody wants to know, and who closes it."""

import os
import socket
from collections.abc import Iterator

import pytest

from relay.kernel.bare_socket import BareSocket
from relay.kernel.sockets import is_gone


@pytest.fixture
def pair() -> Iterator[tuple[BareSocket, socket.socket]]:
    """A connection that was accepted, which the test closes, and the client's end of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        yield BareSocket(listener.accept()[0].detach()), client


def test_it_is_a_descriptor_and_more_when_asked(pair: tuple[BareSocket, socket.socket]) -> None:
    sock, client = pair
    assert sock.fileno() == sock.fd
    assert not is_gone(sock)
    client.sendall(b"hello")
    assert sock.recv(5) == b"hello"
    assert (sock.getpeername(), sock.family) == (client.getsockname(), socket.AF_INET)
    sock.close()
    assert client.recv(1) == b""


def test_one_that_was_never_asked_is_closed_all_the_same(pair: tuple[BareSocket, socket.socket]) -> None:
    sock, client = pair
    sock.close()
    assert client.recv(1) == b""


def test_nothing_but_close_closes_it(pair: tuple[BareSocket, socket.socket]) -> None:
    sock, client = pair
    fd = sock.fd
    del sock
    os.write(fd, b"still here")
    assert client.recv(10) == b"still here"
    os.close(fd)


def test_the_object_that_was_made_for_asking_closes_nothing_that_has_the_number_by_now(
    pair: tuple[BareSocket, socket.socket],
) -> None:
    sock, client = pair
    fd = sock.fd
    assert sock.getpeername() == client.getsockname()
    sock.close()
    assert os.dup2(client.fileno(), fd) == fd, "somebody else's"
    del sock
    os.fstat(fd)
    os.close(fd)


def test_it_can_be_given_away(pair: tuple[BareSocket, socket.socket]) -> None:
    sock, client = pair
    with socket.socket(fileno=sock.detach()) as taken:
        client.sendall(b"hello")
        assert taken.recv(5) == b"hello"


def test_what_no_socket_has(pair: tuple[BareSocket, socket.socket]) -> None:
    sock, _ = pair
    with pytest.raises(AttributeError):
        _ = sock.nonsense
    sock.close()


def test_closing_it_twice_raises_nothing(pair: tuple[BareSocket, socket.socket]) -> None:
    sock, _ = pair
    sock.close()
    sock.close()


def test_a_descriptor_that_is_no_sockets_is_found_out_when_it_is_asked() -> None:
    r, w = os.pipe()
    os.close(w)
    none = BareSocket(r)
    with pytest.raises(OSError, match="non-socket"):
        none.getsockname()
    none.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(r)
