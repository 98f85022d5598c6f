"""What comes before the dial: who the client is, where an edge says so, and whether it speaks what is declared."""

import time
from abc import ABC, abstractmethod

from relay.address import Address
from relay.dataplane import first_bytes
from relay.dataplane.context import Context
from relay.dataplane.gate import Gate
from relay.envelope.verdict import INCOMPLETE, Incomplete, Reject
from relay.kernel.poller import BROKEN, PEER_FIN
from relay.kernel.sockets import AnySocket, address_text
from relay.ledger.layout import DaemonWord, Flag


class Arrival(ABC):
    """The first part of a session (session.py): its states HEADER and LOOK. Whatever comes of them, it goes on or is cut."""

    __slots__ = ("_looked_bytes", "_probe", "peer", "source")

    _client: AnySocket
    _looked_bytes: int
    _context: Context
    _probe: bool
    _record: int
    gate: Gate
    peer: Address
    source: str

    @abstractmethod
    def cut(self, cause: str) -> None:
        """End the session."""

    @abstractmethod
    def _go_on(self) -> None:
        """The client is known."""

    @abstractmethod
    def _dial(self) -> None:
        """It may have the target."""

    # --- HEADER -------------------------------------------------------------------------------------------------

    def _read_header(self, events: int) -> None:
        """Look at the edge's PROXY header; once it is whole, take it, and no byte more."""
        try:
            header, self._looked_bytes = first_bytes.header(self._client, self._looked_bytes)
        except BlockingIOError:
            return None
        except OSError:
            return self.cut("client_reset")
        if isinstance(header, Reject):
            return self._reject(header)
        if isinstance(header, Incomplete):
            return self._unless_gone(events)
        peer = self.peer if header.src is None else Address(address_text(header.src), header.src_port)
        # First who it is, then the header goes: `resume` asks the kernel whether it did.
        self._context.ledger.identify(self._record, str(peer), Flag.PROBE if header.src is None else 0)
        self._probe = header.src is None
        first_bytes.take(self._client, header.length)
        return self._identified(peer)

    def _identified(self, peer: Address) -> None:
        """The edge has said who the client is; itself, for a probe."""
        now_ns = time.time_ns()
        if self._probe and self._context.ledger.words[DaemonWord.BUSY_UNTIL_NS] > now_ns:
            return self.cut("drain")  # this is how the edge learns to send nobody
        if not self._probe:
            edge, source = self.source, peer.host
            self.peer = peer
            if self.gate.audits:
                self._context.audit(self.gate, source, peer)
            if reason := self.gate.identify(edge, source, time.monotonic()):
                self.gate.denied(reason)
                self._context.denials.note(self.gate.declared.name, peer, reason)
                return self.cut("denied")
            self.source = source
        return self._go_on()

    def _reject(self, verdict: Reject) -> None:
        name = self.gate.declared.name
        self.gate.denied("protocol")
        self._context.denials.note(name, self.peer, "protocol", verdict.reason)
        self.cut("protocol")

    def _unless_gone(self, events: int) -> None:
        """More must come, if anything can."""
        if events & (PEER_FIN | BROKEN) or not self._looked_bytes:
            self.cut("client_gone")

    # --- LOOK ---------------------------------------------------------------------------------------------------

    def _look(self, events: int) -> None:
        """Look at what the client has sent so far, and leave it in the socket."""
        declared = self.gate.declared
        try:
            verdict, self._looked_bytes = first_bytes.first_bytes(self._client, declared.protocol, self._looked_bytes)  # type: ignore[arg-type]
        except BlockingIOError:
            return
        except OSError:
            return self.cut("client_reset")
        if isinstance(verdict, Reject):
            return self._reject(verdict)
        return self._dial() if verdict is not INCOMPLETE else self._unless_gone(events)
