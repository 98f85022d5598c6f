"""Dialling: a socket for a target, and connect(2)."""

import errno
import os
import socket
import stat
from typing import Final

from relay import calls
from relay.config.snapshot import TargetRow
from relay.kernel.bare_socket import BareSocket

NOT_TRANSPARENT: Final = {  # why a target cannot be dialled from the client's address
    errno.EPERM: "`transparent` needs CAP_NET_RAW: grant it to the unit, see systemd/README.md",
    errno.EAFNOSUPPORT: "`transparent` needs a target of the client's IP version: write `localhost` for both",
}
# connect(2): why this machine does not even begin. The target is not asked, and not to blame. Of a Unix socket EACCES and
# EPERM are the target's own: it is a file.
NOT_BEGUN: Final = {
    errno.EADDRNOTAVAIL: "no local port is free towards it: see net.ipv4.ip_local_port_range",
    errno.EACCES: "this machine's own rules forbid it (ip rule, SELinux)",
    errno.EPERM: "this machine's own rules forbid it (nftables)",
    errno.ENETUNREACH: "this machine has no route to it",
    errno.ENETDOWN: "this machine's network is down",
    errno.EAFNOSUPPORT: "this machine does not speak its IP version",
}
_EPHEMERAL_MIN: Final = 32768  # ip(7), ip_local_port_range: below it no connection is given its own port
_IP_TRANSPARENT: Final = 19  # linux/in.h
_IP_BIND_ADDRESS_NO_PORT: Final = 24  # the port is chosen by connect(2), when it knows which are free for the target
_IPV6_TRANSPARENT: Final = 75  # linux/in6.h
_IPV4, _IPV6, _UNIX = int(socket.AF_INET), int(socket.AF_INET6), int(socket.AF_UNIX)
_SOCKET, _OOBINLINE = int(socket.SOL_SOCKET), int(socket.SO_OOBINLINE)


def target_socket(row: TargetRow, speaks_as: str = "", foreign: bool = False) -> BareSocket:
    """A socket for dialling `row`, not blocking, from the address `speaks_as` if given: see `_speak_as`.

    Raises OSError where the machine has none to give, and what `_speak_as` raises.
    """
    family = _UNIX if row.path else _IPV6 if ":" in row.host else _IPV4
    fd = calls.open_socket(family)
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd))
    made = BareSocket(fd)
    if family != _UNIX:
        calls.set_option(fd, _SOCKET, _OOBINLINE, 1)  # see `sockets.keep_urgent`
    if speaks_as:
        try:
            _speak_as(made, speaks_as, is_ipv6=family == _IPV6, foreign=foreign)
        except OSError:
            made.close()
            raise
    return made


def _speak_as(target: BareSocket, address: str, *, is_ipv6: bool, foreign: bool) -> None:
    """Connect from `address`. A `foreign` one is not this machine's: ip(7), IP_TRANSPARENT.

    Raises OSError: EPERM for a foreign one without CAP_NET_RAW or CAP_NET_ADMIN, EAFNOSUPPORT for one of the other IP
    version. Its answers come back here only with the routing rules of systemd/transparent.
    """
    if (":" in address) is not is_ipv6:
        raise OSError(errno.EAFNOSUPPORT, "the address is of the other IP version")
    if foreign:
        level, option = (socket.IPPROTO_IPV6, _IPV6_TRANSPARENT) if is_ipv6 else (socket.IPPROTO_IP, _IP_TRANSPARENT)
        target.setsockopt(level, option, 1)
    target.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    target.bind((address, 0))


def connect(target: BareSocket, row: TargetRow) -> int:
    """Begin to connect: 0 when it is connected already, EINPROGRESS when that will be told, else what went wrong."""
    if row.path:
        return int(target.connect_ex(row.path))
    host, port = row.host, row.port
    code = calls.connect(target.fd, host, port)
    if code == 0 and port >= _EPHEMERAL_MIN and _met_itself(target):
        return errno.ECONNREFUSED
    return -code


def is_no_socket(path: str) -> bool:
    """Whether there is a file of another kind. connect(2) refuses it like a socket that nobody listens on."""
    try:
        return bool(path) and not stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _met_itself(target: BareSocket) -> bool:
    """Whether a socket is connected to itself: TCP lets it, where nobody listens on the port that it was given as its own."""
    return bool(target.getsockname() == target.getpeername())
