"""What each call of the data plane returns."""

import ctypes
import errno
import os
import socket
import struct

from relay import calls


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
