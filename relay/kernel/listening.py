"""Listening sockets: opened exactly where an endpoint declares it; with reason and remedy where that cannot be."""

import contextlib
import errno
import socket
from typing import Final

from relay.address import join_host_port
from relay.config.snapshot import EndpointRow
from relay.errors import ListenError, os_reason
from relay.kernel.sockets import CAPACITY, RESET_ON_CLOSE, attach_filter

BACKLOG: Final = 4096  # what the kernel itself allows by default (listen(2), somaxconn since Linux 5.4)


def open_listener(row: EndpointRow, port: int | None = None) -> socket.socket:
    """A socket listening where `row` says, on its first port or on `port`, and nowhere else. Raises ListenError.

    Accepted sockets inherit its options: no delay, and a reset on close, because whatever closes one that did not end well (a
    refusal, or the end of all processes) must not say with a FIN that all was sent.
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
    keys = {"door": "the door's `listen` under `uses`", "relay": "`relay_port`"}
    key = keys.get(row.type, "the endpoint's `port`")
    if error.errno == errno.EADDRINUSE:
        return f"stop that program (`ss -ltnp` names it), or change {key}"
    if error.errno == errno.EADDRNOTAVAIL:
        return "write this machine's address in the role's `instances`, or `address:` in instance.yaml"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "a port below 1024 needs CAP_NET_BIND_SERVICE; the unit in systemd/ grants it"
    if error.errno in CAPACITY:
        return "each declared port takes a descriptor: raise LimitNOFILE in the unit, or declare fewer ports"
    return f"see {key} and the instance's address"


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
