"""How a flow comes by its target: the one whose turn it is, and at its failure the next, while there is time."""

import errno
from socket import SO_ERROR, SOL_SOCKET, SocketType

from relay.address import Address
from relay.config.snapshot import TargetRow
from relay.dataplane.context import Stage
from relay.dataplane.flow import Flow
from relay.dataplane.forwarding import Forwarding
from relay.envelope import proxyproto
from relay.errors import os_reason
from relay.kernel.poller import WRITE
from relay.kernel.sockets import CAPACITY, NOT_TRANSPARENT, AnySocket, connect, reset_on_close, target_socket
from relay.ledger.layout import State
from relay.steps import step


class Dialling(Stage):
    """Connects to one target after the other. Nothing has been taken from the client yet, so a dial can begin anew."""

    __slots__ = ("_deadline_s", "_retry", "_target", "_watched")

    flow: Flow

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._target: SocketType | None = None
        self._watched: int | None = None  # what the poller watches it for
        self._retry: TargetRow | None = None  # to be dialled again at the next tick: epoll will not tell when
        self._deadline_s = 0.0

    def start(self) -> None:
        """Connect to the target whose turn it is; where that fails at once, to the next."""
        flow = self.flow
        try:
            while row := flow.route.begin(flow.client, flow.peer):
                self._retry = None
                if not self._connect(row):
                    return
        except Exception:  # a bug; the flow may not stand here yet, and then its end would leave the target open
            self._drop()
            raise
        flow.cut("connect_failed" if flow.gate.pool is not None else "revoked")

    def _connect(self, row: TargetRow) -> bool:
        """Begin to connect. Whether to go on with the next target."""
        flow, declared = self.flow, self.flow.gate.declared
        try:
            if declared.transparent:
                target = target_socket(row, flow.source, foreign=True)
            else:
                target = target_socket(row, declared.dial_from)
        except OSError as error:  # this machine's trouble, not the target's
            return self._no_socket(row, error)
        self._target = target
        code = connect(target, row)
        if code == 0:
            return self._connected(target)
        self._wait(target.fileno())
        if code == errno.EINPROGRESS:
            flow.context.poller.want(target.fileno(), None, WRITE, self._on_answer)
            self._watched, self._retry = WRITE, None
        elif code == errno.EAGAIN:  # a Unix socket whose backlog is full: unix(7)
            self._retry = row
        else:
            return self._failed("connect_failed")
        return False

    def _no_socket(self, row: TargetRow, error: OSError) -> bool:
        """There is no socket for the dial. Whether to go on with the next target."""
        flow = self.flow
        if error.errno in CAPACITY:  # accept nobody else, and try again until the time is up
            flow.context.exhausted("descriptors for targets")
            self._wait(-1)
            self._retry = row
            return False
        reason = os_reason(error)
        if flow.gate.declared.transparent:
            if error.errno == errno.EAFNOSUPPORT and flow.route.failed():
                return True  # of `localhost`, the address of the client's own IP version
            reason = NOT_TRANSPARENT.get(error.errno or 0, reason)
        elif flow.gate.pool is not None and flow.route.failed():
            return True  # another one's address may be of this machine's own IP version
        flow.context.denials.note(flow.gate.declared.name, flow.peer, reason, event="dial")
        flow.cut("error")
        return False

    def _wait(self, target_fd: int) -> None:
        """Wait for the answer. When the same target is dialled again its time runs on."""
        flow = self.flow
        flow.stand(self, State.DIAL, target_fd)
        flow.watch_client(None, self._on_answer)  # what it sent and we looked at would be reported over and over
        if self._retry is None:
            self._deadline_s = flow.tick_until(flow.route.patience_s())

    def _on_answer(self, _events: int) -> None:
        """The target has answered, or it never will."""
        target = self._target
        assert target is not None  # epoll speaks of it
        failed = target.getsockopt(SOL_SOCKET, SO_ERROR)
        if self._failed("connect_failed") if failed else self._connected(target):
            self.start()

    def _connected(self, target: SocketType) -> bool:
        """The target answered: tell it who the client is, if it wants to know, and let bytes flow.

        Whether to go on with the next target, as this one is gone already.
        """
        flow = self.flow
        gate, route = flow.gate, flow.route
        flow.connect_s = (flow.context.now_ns() - route.dialled_ns) / 1e9
        if gate.declared.send_proxy and not introduce(target, flow.client, gate.declared.send_proxy, flow.peer):
            return self._failed("connect_failed")
        route.reached(flow.connect_s)
        flow.context.ledger.observe_connect(gate.counts_at, flow.connect_s)
        Forwarding(flow, target, self._watched).start()
        return False

    def _failed(self, cause: str) -> bool:
        """Be done with this target. Whether to go on with the next one: if there is none, the flow is over."""
        self._drop()
        if self.flow.route.failed():
            return True
        self.flow.cut(cause)
        return False

    def tick(self, now_s: float) -> None:
        """The target's time is up; or ask it again."""
        if now_s >= self._deadline_s:
            if self._target is None:
                self.flow.cut("error")  # it was never asked
            elif self._failed("connect_timeout"):
                self.start()
        elif self._retry is not None:
            self._drop()
            if self._connect(self._retry):
                self.start()

    def leave(self, cause: str) -> tuple[int, int]:
        """Nothing has moved."""
        self._drop()
        return 0, 0

    def _drop(self) -> None:
        target, self._target, self._watched = self._target, None, None
        if target is not None:
            reset_on_close(target)
            self.flow.context.poller.close(target)


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
