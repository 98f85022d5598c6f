"""How a session comes by its target: the one whose turn it is, and at its failure the next, while there is time."""

import errno
from abc import abstractmethod

from relay.address import Address
from relay.config.snapshot import TargetRow
from relay.dataplane.arrival import Arrival
from relay.dataplane.route import Route
from relay.envelope import proxyproto
from relay.errors import os_reason
from relay.kernel.poller import WRITE
from relay.kernel.sockets import CAPACITY, NOT_TRANSPARENT, AnySocket, connect, target_socket
from relay.ledger.layout import State
from relay.steps import step


class Dial(Arrival):
    """The middle part of a session (session.py): its state DIAL. It ends in `_connected`, or in `cut`."""

    __slots__ = ("_route", "_state", "_target")

    _route: Route
    _state: int
    _target: AnySocket | None

    @abstractmethod
    def _connected(self) -> None:
        """The target answered."""

    @abstractmethod
    def _stand(self, state: int, target_fd: int) -> None:
        """Put into the ledger where the flow stands."""

    @abstractmethod
    def _await(self, timeout_s: float) -> None:
        """Be asked again when the time is up."""

    @abstractmethod
    def _drop_target(self) -> None:
        """Be done with this one."""

    @abstractmethod
    def _watch_client(self, interest: int | None) -> None:
        """Wait for these events of the client's socket."""

    @abstractmethod
    def _watch_target(self, interest: int | None) -> None:
        """Wait for these events of the target's socket."""

    def _dial(self) -> None:
        """Connect to the target whose turn it is."""
        self._state = State.DIAL
        row = self._route.begin(self._client, self.peer)
        if row is None:
            return self.cut("connect_failed" if self.gate.pool is not None else "revoked")
        self._connect(row)
        return None

    def _connect(self, row: TargetRow, *, again: bool = False) -> None:
        """`again`: the same target once more, and its time runs on."""
        try:
            if (declared := self.gate.declared).transparent:
                target = target_socket(row, self.source, foreign=True)
            else:
                target = target_socket(row, declared.dial_from)
        except OSError as error:  # this machine's trouble, not the target's
            return self._cannot_dial(error, again)
        self._target = target
        code = connect(target, row)
        if code == 0:
            return self._connected()
        self._wait_in_dial(target.fileno(), again)
        if code == errno.EINPROGRESS:
            self._watch_target(WRITE)
        elif code != errno.EAGAIN:  # a Unix socket whose backlog is full: unix(7); the tick tries again
            self._dial_failed("connect_failed")
        return None

    def _cannot_dial(self, error: OSError, again: bool) -> None:
        """There is no socket for the dial."""
        if error.errno in CAPACITY:  # accept nobody else; the tick tries again, until the time is up
            self._context.exhausted("descriptors for targets")
            return self._wait_in_dial(-1, again)
        reason = os_reason(error)
        if self.gate.declared.transparent:
            if error.errno == errno.EAFNOSUPPORT and self._route.failed():
                return self._dial()  # of `localhost`, the address of the client's own IP version
            reason = NOT_TRANSPARENT.get(error.errno or 0, reason)
        elif self.gate.pool is not None and self._route.failed():
            return self._dial()  # another one's address may be of this machine's own IP version
        self._context.denials.note(self.gate.declared.name, self.peer, reason, event="dial")
        return self.cut("error")

    def _wait_in_dial(self, target_fd: int, again: bool) -> None:
        self._stand(State.DIAL, target_fd)
        self._watch_client(None)  # what it sent and we looked at would be reported over and over
        if not again:
            self._await(self._route.patience_s())

    def _dial_failed(self, cause: str) -> None:
        self._drop_target()
        if self._route.failed():
            self._dial()
        else:
            self.cut(cause)


@step
def introduce(target: AnySocket, client: AnySocket, version: str, peer: Address) -> bool:
    """Tell the target who the client is, with a PROXY header (doc/proxy-protocol.txt): `peer`.

    False: the target did not take it. It fits any new socket's buffer, so it goes whole or not at all.
    """
    build = proxyproto.build_v1 if version == "v1" else proxyproto.build_v2
    try:
        # `peer` is known already: getpeername(2) fails for a client that has left.
        local = Address(*client.getsockname()[:2])
        header = build(peer.packed, peer.port, local.packed, local.port)
        return target.send(header) == len(header)
    except OSError:
        return False
