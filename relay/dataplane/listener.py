"""The accept loop: take connections off the backlog, ask the gate, start a session or refuse.

A refused connection is closed with a reset, and nothing was dialled for it. Running out of descriptors or memory
pauses accepting for a moment: clients wait in the backlog, nobody is accepted and then dropped, nothing spins, and the
listening socket stays.
"""

import contextlib
import errno
import os
import socket
import time
from typing import Final

from relay.config.snapshot import EndpointRow, join_host_port
from relay.dataplane.context import Plane
from relay.dataplane.gate import Gate
from relay.dataplane.session import Session
from relay.errors import ListenError, os_reason
from relay.kernel.poller import EXCLUSIVE, READ
from relay.kernel.sockets import (
    CAPACITY,
    RESET_ON_CLOSE,
    Accepted,
    attach_filter,
    detach_filter,
    dropped_packets,
    not_blocking,
)

BACKLOG: Final = 4096  # what the kernel itself allows by default (listen(2), somaxconn since Linux 5.4)
_BURST: Final = 64  # accepted in one go; established flows wait no longer than that takes
_KEEPALIVE_S: Final = 60  # a peer that vanished without a word is noticed after some minutes, idle timeout or not


def open_listener(row: EndpointRow, port: int | None = None) -> socket.socket:
    """A socket listening where `row` says, on its first port or on `port`, and nowhere else. Raises ListenError.

    Accepted sockets inherit its options: no delay, keepalive, and a reset on close, because whatever closes one that did not
    end well (a refusal, or the end of all processes) must not say with a FIN that all was sent.
    """
    port = row.listen_port if port is None else port
    listener = _bound(row, port)
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _refused(row, port, error) from error
    return listener


def try_listener(row: EndpointRow, port: int) -> None:
    """Whether `open_listener` would do, as far as can be told without listening. Raises ListenError."""
    _bound(row, port).close()


def _bound(row: EndpointRow, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in row.listen_host else socket.AF_INET
    listener: socket.socket | None = None
    try:
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # `::` says nothing about IPv4
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_S)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_S)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        listener.bind((row.listen_host, port))
    except OSError as error:
        if listener is not None:
            listener.close()
        raise _refused(row, port, error) from error
    return listener


def _refused(row: EndpointRow, port: int, error: OSError) -> ListenError:
    where = join_host_port(row.listen_host, port)
    return ListenError(f"cannot listen on {where} for {row.name}: {os_reason(error)}; {_remedy(row, error)}")


def _remedy(row: EndpointRow, error: OSError) -> str:
    key = "the door's `listen` under `uses`" if row.type == "door" else "the endpoint's `port`"
    if error.errno == errno.EADDRINUSE:
        return f"stop that program (`ss -ltnp` names it), or change {key}"
    if error.errno == errno.EADDRNOTAVAIL:
        return "write this machine's address in the role's `instances`, or `address:` in instance.yaml"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "a port below 1024 needs CAP_NET_BIND_SERVICE; the unit in systemd/ grants it"
    if error.errno in CAPACITY:
        return "each declared port takes a descriptor: raise LimitNOFILE in the unit, or declare fewer ports"
    return f"see {key} and the instance's address"


class Listener:
    """One listening socket and the gate behind it."""

    def __init__(self, plane: Plane, gate: Gate, sock: socket.socket) -> None:
        self.gate = gate
        self.sock = sock
        self._plane = plane
        self._watched = False
        self._filter: str | None = None  # on the socket; None: whatever a predecessor left
        self._dropped_seen = 0

    def serve(self, gate: Gate) -> None:
        """Ask this gate from now on; and have the kernel drop whom its envelope denies, where it is so declared.

        Every worker puts the same filter on the socket that all of them have. Whoever comes through because a filter is
        late, or the kernel refused it, is decided on as ever.
        """
        self.gate = gate
        wanted = gate.declared.drop_filter
        if wanted == self._filter:
            return
        try:
            if wanted:
                self._replace_filter(bytes.fromhex(wanted))
            else:
                detach_filter(self.sock.fileno())
            self._filter = wanted
        except OSError as error:  # which a socket like this one had not: see reload.prepare
            self._filter = ""
            message = "the kernel refuses the filter: who is denied gets a reset"
            name = gate.declared.name
            self._plane.log.event("error", "no filter", endpoint=name, message=message, reason=os_reason(error))

    def _replace_filter(self, program: bytes) -> None:
        if not self._filter:
            self._dropped_seen = dropped_packets(self.sock)
        try:
            attach_filter(self.sock, program)
        except OSError:
            # Old and new one may be too much memory together; and an old one that stayed would drop who is now permitted.
            detach_filter(self.sock.fileno())
            attach_filter(self.sock, program)

    def count_dropped(self) -> None:
        """Count what the kernel has dropped here since the last time. One worker does: the socket is everybody's."""
        if self._filter:
            dropped = dropped_packets(self.sock)
            growth, self._dropped_seen = (dropped - self._dropped_seen) % 2**32, dropped
            if growth:
                reason = self.gate.declared.denied_reason
                self.gate.denied(reason, growth)
                self._plane.denials.note_unseen(self.gate.declared.name, reason, growth)

    def resume(self) -> None:
        """Accept from now on."""
        if not self._watched:
            # EXCLUSIVE: of several workers on one socket, the kernel wakes one and not all (epoll_ctl(2)).
            self._plane.poller.watch(self.sock.fileno(), READ | EXCLUSIVE, self._on_ready)
            self._watched = True

    def pause(self) -> None:
        """Accept no more for now; clients wait in the backlog."""
        if self._watched:
            self._plane.poller.forget(self.sock.fileno())
            self._watched = False

    def finish(self) -> None:
        """Accept those who wait, and nobody else: they think that they are connected, and closing would reset them."""
        self.pause()
        for _ in range(0, BACKLOG, _BURST):
            self._on_ready(READ)

    def _on_ready(self, _events: int) -> None:
        plane = self._plane
        now_ns = time.monotonic_ns()
        for _ in range(_BURST):
            if not plane.free_records and not plane.has_room():
                return plane.exhausted("flows")
            try:
                fd, address = self.sock._accept()  # type: ignore[attr-defined]  # accept() less a socket object
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno in CAPACITY:
                    return plane.exhausted(errno.errorcode[error.errno])
                continue  # that client's connection broke while it waited; accept(2) says to take the next one
            self.take(fd, address, now_ns)
        return None

    def take(self, fd: int, address: tuple[str, int], now_ns: int) -> None:
        """A connection came off the backlog: ask the gate, and start a session or refuse."""
        plane, gate = self._plane, self.gate
        source, peer = address[0], join_host_port(address[0], address[1])
        if gate.audits and not gate.declared.edges:
            plane.audit(gate, source, peer)
        reason = gate.admit(source, now_ns / 1e9)
        if reason is not None:
            os.close(fd)
            gate.denied(reason)
            plane.denials.note(gate.declared.name, peer, reason)
            return
        not_blocking(fd)
        if gate.declared.drop_filter:
            # The socket has inherited the listener's filter. It would be asked about every packet of a connection that was
            # let in, and hold the memory of a program that is long replaced.
            detach_filter(fd)
        Session(plane, gate, Accepted(fd), source, peer, now_ns, plane.free_records.pop()).start()


def filter_refusal(row: EndpointRow) -> str:
    """Why the kernel does not take the row's filter, tried on a socket of its own, and what to do; empty where it does."""
    family = socket.AF_INET6 if ":" in row.listen_host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            attach_filter(probe, bytes.fromhex(row.drop_filter))
    except OSError as error:
        remedy = {
            errno.EPERM: "this kernel wants CAP_NET_ADMIN for it: grant it to the unit",
            errno.ENOMEM: "the rules take more than net.core.optmem_max: raise it",
        }
        return f"{os_reason(error)}; {remedy.get(error.errno or 0, 'see the kernel log')}, or write `deny: reset`"
    return ""


def close_all(socks: dict[str, socket.socket]) -> None:
    """Close listening sockets by the handful, whatever becomes of one of them."""
    for sock in socks.values():
        with contextlib.suppress(OSError):
            sock.close()
