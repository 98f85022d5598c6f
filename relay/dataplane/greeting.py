"""What comes before the dial: who the client is, where an edge says so, and whether it speaks what is declared."""

from typing import Final

from relay import calls
from relay.address import Address, host_text, join_host_port
from relay.dataplane import first_bytes
from relay.dataplane.dialling import Dialling
from relay.dataplane.flow import Flow, Stage
from relay.dataplane.line import Line
from relay.dataplane.passing import endpoint_of
from relay.dataplane.telling import tell
from relay.envelope import asking
from relay.envelope.proxyproto import Header
from relay.envelope.verdict import Incomplete, Reject
from relay.kernel.byte_counts import taken_bytes
from relay.kernel.sockets import hear_beyond
from relay.ledger import layout
from relay.ledger import record as records
from relay.ledger.clocks import busy_left_ns
from relay.ledger.record import FlowRecord
from relay.targets import why

_ASKS: Final = {
    asking.NOTHING: 0,
    asking.THROUGH: layout.Flag.ASKS_WHY,
    asking.RELAY: layout.Flag.ASKS_RELAY,
    asking.TAKEN: layout.Flag.ASKS_TAKEN,
    asking.LINE: layout.Flag.ASKS_LINE,
}


def begin(flow: Flow) -> None:
    """The first stage of a connection that was just let in."""
    if flow.via:
        Greeting(flow).expect(layout.State.HEADER)
    else:
        _go_on(flow)


def _go_on(flow: Flow) -> None:
    """The client is known."""
    if not flow.gate.looks or flow.probe:
        Dialling(flow).start()
    else:
        Greeting(flow).expect(layout.State.LOOK)


class Greeting(Stage):
    """Waits for the client's first bytes. HEADER: those that its edge sends before them; LOOK: its own."""

    __slots__ = ("_deadline_s", "_looked_bytes", "_looks", "_protocol", "_so_far")

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._looked_bytes = 0
        self._looks = 0
        self._protocol = ""  # that what comes is held against, also when another one is declared meanwhile
        self._so_far: first_bytes.SoFar | None = None
        self._deadline_s = flow.tick_until(flow.gate.declared.first_byte_s)

    def expect(self, state: int) -> None:
        """Wait in HEADER or LOOK until enough has come."""
        flow = self.flow
        flow.stand(self, state)
        if state == layout.State.LOOK:
            self._protocol = flow.gate.declared.protocol
        flow.watch_client(calls.READ, self)
        flow.context.poller.soon(flow.client.fd, self)  # as a rule something has come with the connection

    def ready(self, fd: int, events: int) -> None:
        """The client has sent something, or nothing more will come."""
        if self.flow.state == layout.State.HEADER:
            self._on_header(events)
        else:
            self._on_first_bytes(events)

    def resume(self, record: FlowRecord) -> None:
        """Go on where a dead worker stood: look anew, for nothing was taken; unless it took the header."""
        client = self.flow.client
        hear_beyond(client.fd, 0)
        if record.state == layout.State.HEADER and taken_bytes(client):
            self._identified(Address.parse(record.peer).host, record.peer)
        elif record.state == layout.State.LOOK and self.flow.gate.declared.protocol == "tcp":  # since a reload
            Dialling(self.flow).start()
        else:
            self.expect(record.state)

    def _on_header(self, events: int) -> None:
        """Look at the edge's PROXY header; once it is whole, take it, and no byte more."""
        flow = self.flow
        header = self._judged(events)
        if header is None:
            return
        assert isinstance(header, Header)  # it was looked at as one
        flow.probe = header.is_local
        source, peer = flow.source, flow.peer_text
        if header.src is not None:
            source = host_text(header.src)
            peer = join_host_port(source, header.src_port)
        asked = asking.asked_in(header.tlvs) if header.tlvs else asking.NOTHING
        flow.asks = asked if flow.probe or asked == asking.TAKEN else asking.NOTHING
        names_endpoint = flow.gate.declared.type == "relay" and flow.asks != asking.LINE
        gate = endpoint_of(flow, header.tlvs, source, peer) if names_endpoint else flow.gate
        if gate is None:
            return
        # Whoever else brings a client was not dialled by it.
        if gate.has_edges and header.src is not None and header.dst is not None:
            flow.came_to = Address(host_text(header.dst), header.dst_port)
            who = records.by_ends(header.src, header.src_port, header.dst, header.dst_port)
        else:
            who = records.by_text(peer)
        # First who it is and for what, then the header goes: `resume` asks the kernel whether it did.
        flags = _ASKS[flow.asks] | (layout.Flag.PROBE if flow.probe else 0)
        flow.context.ledger.identify(flow.record, who, flags)
        if gate is not flow.gate:
            flow.pass_on(gate)
        first_bytes.take(flow.client, header.length)
        self._identified(source, peer)

    def _identified(self, source: str, peer: str) -> None:
        """The edge has said who the client is (`peer`: with the port): itself, for a probe, and where it knows of none."""
        flow = self.flow
        context, gate = flow.context, flow.gate
        if flow.asks == asking.LINE:
            return Line(flow).begin()
        asks_taken = flow.asks == asking.TAKEN  # then the edge has what the client sent, for another instance
        if (flow.probe or asks_taken) and busy_left_ns(context.ledger.words, context.now_ns()):
            tell(flow, why.BUSY)
            return flow.cut("drain")  # this is how the edge learns to send nobody
        is_held = flow.asks != asking.NOTHING and gate.is_held(context.now_ns())
        if asks_taken and is_held:
            tell(flow, why.HELD)
            return flow.cut("told")
        if flow.asks == asking.RELAY:
            fault = gate.fault()
            tell(flow, why.HELD if fault and is_held else fault)
            return flow.cut("told")
        if not flow.probe:
            edge, flow.peer_text = flow.source, peer
            if gate.audits:
                context.audit(gate, source, flow.peer_text)
            if reason := gate.identify(edge, source, context.now_s()):
                context.deny(gate, flow.peer_text, reason)
                tell(flow, why.DENIED)
                return flow.cut("denied")
            flow.source = source
        return _go_on(flow)

    def _on_first_bytes(self, events: int) -> None:
        """Look at what the client has sent so far, and leave it in the socket."""
        flow = self.flow
        if self._looks and self._so_far is None:  # most need no second one
            self._so_far = first_bytes.so_far(self._protocol)
        if self._judged(events) is not None:
            Dialling(flow).start()

    def _judged(self, events: int) -> first_bytes.Right | None:
        """What is right, as soon as it is whole. Until then None: more must come, or this was the end of the flow."""
        flow, seen_bytes = self.flow, self._looked_bytes
        verdict: Incomplete | Reject | first_bytes.Right
        if flow.state == layout.State.HEADER:
            verdict, come = first_bytes.header(flow.client, seen_bytes)
        else:
            verdict, come = first_bytes.first_bytes(flow.client, self._protocol, seen_bytes, self._so_far)
        if come == calls.AGAIN:
            return None
        if come < 0:
            flow.cut("client_reset")
            return None
        self._looked_bytes = come
        self._looks += 1
        if isinstance(verdict, Incomplete) and self._looks >= first_bytes.LOOKS_MAX:
            verdict = first_bytes.too_many_looks(self._protocol)
        if isinstance(verdict, Reject):
            flow.context.deny(flow.gate, flow.peer_text, "protocol", verdict.reason)
            self._refuse("protocol")
        elif not isinstance(verdict, Incomplete):
            return verdict
        elif events & (calls.PEER_FIN | calls.BROKEN) or not self._looked_bytes:
            flow.cut("client_gone")  # nothing more can come
        else:
            flow.watch_client(calls.READ | calls.PEER_FIN, self)
        return None

    def tick(self, now_s: float) -> None:
        """The client has said too little for too long."""
        if now_s >= self._deadline_s:
            self._refuse("first_byte_timeout")

    def _refuse(self, cause: str) -> None:
        """It is the client who is to blame, at every instance."""
        tell(self.flow, why.DENIED)
        self.flow.cut(cause)
