"""How a flow comes by its target: the one whose turn it is, and at its failure the next, while there is time."""

import errno
from typing import Final

from relay import calls
from relay.address import Address
from relay.config.snapshot import TargetRow
from relay.dataplane.asking import Asking
from relay.dataplane.flow import Flow, Stage
from relay.dataplane.forwarding import Forwarding
from relay.dataplane.holding import Holding, patience_s
from relay.dataplane.telling import tell
from relay.envelope import proxyproto
from relay.errors import os_reason
from relay.kernel import connecting
from relay.kernel.bare_socket import BareSocket
from relay.kernel.connecting import NOT_BEGUN, NOT_TRANSPARENT, is_no_socket
from relay.kernel.poller import UNWATCHED
from relay.kernel.sockets import CAPACITY, no_delay, reset_on_close
from relay.ledger import layout
from relay.ledger.record import FlowRecord
from relay.targets import why

_NO_PORT_LEFT: Final = errno.EADDRNOTAVAIL
_FURTHER_MAX: Final = 3  # source addresses in one dial: each that has no port left costs the kernel a search of some ms


class Dialling(Stage):
    """Connects to one target after the other. Nothing has been taken from the client yet, so a dial can begin anew."""

    __slots__ = ("_deadline_s", "_fault", "_holding", "_not_begun", "_retry", "_target", "_watched")

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._target: BareSocket | None = None
        self._watched = UNWATCHED  # what the poller watches it for
        self._retry: TargetRow | None = None  # to be dialled again at the next tick: epoll will not tell when
        self._deadline_s = 0.0
        self._holding: Holding | None = None  # it has waited for a target
        self._not_begun = ""  # why this machine could not even begin the last dial
        self._fault: tuple[str, int] | None = None  # of the last one that failed: the cause that it is, and why

    def start(self) -> None:
        """Connect to the target whose turn it is; where that fails at once, to the next."""
        flow = self.flow
        if flow.gate.was_held() and self._is_held():
            return
        try:
            while row := flow.route.begin(flow.client, flow.peer_text):
                self._retry = None
                if not self._connect(row):
                    return
        except Exception:  # a bug; the flow may not stand here yet, and then its end would leave the target open
            self._drop()
            raise
        if not flow.route.has_several:
            flow.cut("revoked")
        elif self._not_begun:
            self._give_up(why.TOLD)
        else:
            self._end(*self._none_left())

    def resume_hold(self) -> None:
        """Go on waiting where a dead worker's flow did. Its time begins anew: nobody has less of it for a worker's death."""
        if not self._hold("connect_failed"):
            self.start()

    def resume(self, record: FlowRecord, target: BareSocket) -> None:
        """Go on where a dead worker had asked this target's relay."""
        self._target = target
        Asking(self.flow, self, target, UNWATCHED).resume(record)

    def _connect(self, row: TargetRow) -> bool:
        """Begin to connect. Whether to go on with the next target."""
        flow, declared = self.flow, self.flow.gate.declared
        sources = flow.context.sources
        try:
            if flow.gate.dials_plainly and not sources.in_use:
                target = connecting.target_socket(row)
            elif declared.transparent:
                target = connecting.target_socket(row, flow.source, True)
            elif declared.dial_from:
                target = connecting.target_socket(row, declared.dial_from)
            else:
                target = connecting.target_socket(row, sources.of(row, flow.route.dialled_ns))
            self._target = target
            code = connecting.connect(target, row)
            if code == _NO_PORT_LEFT:
                code = self._dial_further(row)
                target = self._target
        except OSError as error:
            return self._no_socket(row, error)
        if code == 0:
            return self._connected(target)
        if code in CAPACITY:
            self._drop()
            return self._exhausted(row)
        if not row.path and code in NOT_BEGUN:
            return self._no_way(row, code, NOT_BEGUN[code])
        self._wait(target.fd)
        if code == errno.EINPROGRESS:
            flow.context.poller.want(target.fd, UNWATCHED, calls.WRITE, self)
            self._watched, self._retry = calls.WRITE, None
        elif code == errno.EAGAIN:  # a Unix socket whose backlog is full: unix(7)
            self._retry = row
        else:
            return self._not_connected(code, _fault(row, code))
        return False

    def _dial_further(self, row: TargetRow) -> int:
        """The address that it was to connect from has no port left: from the ones that follow, if they may.

        `_target` is another one then. What connect(2) said last. Raises OSError where there is no socket for it.
        """
        flow, declared, code = self.flow, self.flow.gate.declared, _NO_PORT_LEFT
        if (
            declared.many_sources
            and not declared.dial_from
            and not declared.transparent
            and row.host.startswith("127.")
        ):
            for _ in range(_FURTHER_MAX):
                self._drop()
                speaks_as = flow.context.sources.further(row, flow.route.dialled_ns)
                if flow.gate.from_other_source():
                    message = f"no local port is free towards {row.text}: it is dialled from {speaks_as} as well"
                    flow.context.log.event("warning", "source addresses", endpoint=declared.name, message=message)
                target = self._target = connecting.target_socket(row, speaks_as)
                if (code := connecting.connect(target, row)) != _NO_PORT_LEFT:
                    break
        return code

    def _no_socket(self, row: TargetRow, error: OSError) -> bool:
        """There is no socket for the dial. Whether to go on with the next target."""
        if error.errno in CAPACITY:
            return self._exhausted(row)
        code, reason = error.errno or 0, os_reason(error)
        if self.flow.gate.declared.transparent:
            reason = NOT_TRANSPARENT.get(code, reason)
            if code != errno.EAFNOSUPPORT:
                self.flow.reason = reason
                self._give_up(why.of_error(code))
                return False
        return self._no_way(row, code, reason)

    def _exhausted(self, row: TargetRow) -> bool:
        """This machine has no more to give: accept nobody else, and try again until the time is up."""
        self.flow.context.exhausted("descriptors for targets")
        self.flow.reason = "this machine has no descriptors or memory left"
        self._wait(-1)
        self._retry = row
        return False

    def _no_way(self, row: TargetRow, code: int, reason: str) -> bool:
        """This machine cannot dial this target, which is not to blame. Whether to go on with the next one.

        Another one's address may be of this machine's own IP version; of `localhost`, of the client's own.
        """
        self._drop()
        flow = self.flow
        flow.reason = self._not_begun = f"{row.text}: {reason}"
        if flow.route.skip():
            return True
        self._give_up(why.of_error(code))
        return False

    def _give_up(self, fault: int) -> None:
        """This machine is in trouble: say so, and end the flow."""
        flow = self.flow
        flow.context.denials.note(flow.gate.declared.name, flow.peer_text, flow.reason, "", "dial")
        self._end("error", fault)

    def _end(self, cause: str, fault: int) -> None:
        """There is no target for the flow: it waits, if it may. An edge that asks is told why (targets/why.py)."""
        if cause != "error" and self._hold(cause):
            return
        tell(self.flow, fault, self.flow.reason)
        self.flow.cut(cause)

    def _none_left(self) -> tuple[str, int]:
        """Why no target is left to be dialled: the cause that it is, and what an edge that asks is told."""
        if self._fault is None:  # none was dialled
            self._fault = "connect_failed", self.flow.route.fault() or why.TOLD
            self.flow.reason = self.flow.reason or why.text_of(self._fault[1])
        return self._fault

    def _is_held(self) -> bool:
        """Whether it waits without a dial, as somebody has asked by hand."""
        return self.flow.gate.is_held(self.flow.context.now_ns()) and self._hold("")

    def _hold(self, cause: str) -> bool:
        """Have the flow wait for a target, if it may: whether it does. See `Holding.wait`."""
        if self._holding is None and (for_s := patience_s(self.flow)):
            self._holding = Holding(self.flow, self, for_s)
        return self._holding is not None and self._holding.wait(cause)

    def _wait(self, target_fd: int) -> None:
        """Wait for the answer. When the same target is dialled again its time runs on."""
        flow = self.flow
        flow.stand(self, layout.State.DIAL, target_fd)
        flow.watch_client(UNWATCHED, self)  # what it sent and we looked at would be reported over and over
        if self._retry is None:
            self._deadline_s = flow.tick_until(flow.route.patience_s())

    def ready(self, fd: int, events: int) -> None:
        """The target has answered, or it never will."""
        target = self._target
        assert target is not None  # epoll speaks of it
        code = calls.pending_error(target.fileno())
        if self._not_connected(code, why.of_error(code)) if code else self._connected(target):
            self.start()

    def _not_connected(self, code: int, reason: int) -> bool:
        """connect(2) failed. Whether to go on, with the next target or with another port of this one."""
        if code == errno.ECONNREFUSED and self.flow.route.leave_relay_port():
            self._drop()
            return True
        return self.failed("connect_failed", self._blamed(reason))

    def _connected(self, target: BareSocket) -> bool:
        """The target answered: tell it who the client is, if it wants to know, and let bytes flow.

        Whether to go on with the next target, as this one is gone already.
        """
        flow = self.flow
        if flow.route.asks():
            return Asking(flow, self, target, self._watched).start()
        if flow.gate.sends_proxy and not introduce(target, flow):
            return self.failed("connect_failed", self._blamed(why.RESET))
        flow.reached()
        Forwarding(flow, target, self._watched).start()
        return False

    def _blamed(self, reason: int) -> int:
        """On an edge it is the instance's relay that was dialled, and not the application."""
        return why.of_relay(reason) if self.flow.gate.declared.is_edge else reason

    def failed(self, cause: str, reason: int) -> bool:
        """Be done with this target, for this reason. Whether to go on with the next: if there is none, the flow is over."""
        self._drop()
        flow = self.flow
        target = flow.route.target
        flow.reason, self._not_begun = why.text_of(reason, target.path if target is not None else ""), ""
        self._fault = cause, reason
        if flow.route.failed(reason):
            return True
        self._end(cause, reason)
        return False

    def tick(self, now_s: float) -> None:
        """The target's time is up; or ask it again."""
        if now_s >= self._deadline_s:
            if self._target is None:
                self._end("error", why.of_error(errno.EMFILE))  # it was never asked
            elif self.failed("connect_timeout", self._blamed(self._silence())):
                self.start()
        elif self._retry is not None:
            self._drop()
            if self._connect(self._retry):
                self.start()

    def _silence(self) -> int:
        """Why there is no answer."""
        if self._retry is not None:
            return why.BACKLOG_FULL
        return why.no_answer((self.flow.context.now_ns() - self.flow.route.dialled_ns) / 1e9)

    def leave(self, cause: str) -> tuple[int, int]:
        """Nothing has moved."""
        self._drop()
        return 0, 0

    def _drop(self) -> None:
        target, self._target, self._watched = self._target, None, UNWATCHED
        if target is not None:
            reset_on_close(target)
            self.flow.context.poller.close(target)


def _fault(row: TargetRow, code: int) -> int:
    """Why connect(2) failed at once."""
    return why.NOT_A_SOCKET if code == errno.ECONNREFUSED and is_no_socket(row.path) else why.of_error(code)


def introduce(target: BareSocket, flow: Flow) -> bool:
    """Tell the target who the client is, with a PROXY header as it is declared (doc/proxy-protocol.txt).

    False: the target did not take it. It fits any new socket's buffer, so it goes whole or not at all.
    """
    build = proxyproto.build_v1 if flow.gate.declared.send_proxy == "v1" else proxyproto.build_v2
    try:
        # The peer is known already: getpeername(2) fails for a client that has left.
        peer, local = flow.peer, flow.local()
        if flow.gate.declared.type == "door":  # a program of this machine is for another one this machine
            peer, local = Address(*target.getsockname()[:2]), Address(*target.getpeername()[:2])
        header = build(peer.packed, peer.port, local.packed, local.port)
        # Before the first byte: else what the client says would wait until the header is acknowledged, for a round trip.
        no_delay(target)
        return bool(target.send(header) == len(header))
    except OSError:
        return False
