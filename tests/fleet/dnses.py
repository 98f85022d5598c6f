"""A DNS server whose answers a test decides, and changes: right ones, none, late ones, and lies."""

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.ports import free_port

HOST: Final = "127.0.0.1"
SOA: Final = "ns.test. root.test. 1 3600 600 86400 {}"


@dataclass(frozen=True)
class Says:
    """What is answered to one question: these records, or an rcode without any."""

    records: tuple[str, ...] = ()
    ttl_s: int = 1
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR
    aliases: tuple[tuple[str, str, int], ...] = ()  # owner, where it leads to, ttl: before the records
    negative_s: int | None = 1  # of the SOA that goes with no records; None: there is none
    drops: bool = False
    late_s: float = 0.0
    wrong_id: bool = False
    other_name: str = ""  # the question and the owner of the records
    truncated: bool = False  # by UDP: half of the records, and TC


NXDOMAIN: Final = Says(rcode=dns.rcode.NXDOMAIN)
NOTHING: Final = Says()
SERVFAIL: Final = Says(rcode=dns.rcode.SERVFAIL)
SILENCE: Final = Says(drops=True)


@dataclass
class Lying:
    """A server on a loopback port, by UDP and TCP. Use as a context manager. What it is not told of is NXDOMAIN.

    One that is told the address of a name says that it has none of the other version.
    """

    port: int = field(default_factory=free_port)
    asked: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # name, type, udp or tcp
    _says: dict[tuple[str, str], list[Says]] = field(default_factory=dict)

    def say(self, name: str, kind: str, *records: str, **keys: object) -> None:
        """From now on this is the answer to such a question."""
        self.does(name, kind, replace(Says(records), **keys))  # type: ignore[arg-type]

    def does(self, name: str, kind: str, *says: Says) -> None:
        """As `say`; several are different answers to the same question, one packet each."""
        self._says[name.rstrip(".") + ".", kind] = list(says)
        for other in {"A", "AAAA"} - {kind} if kind in ("A", "AAAA") else ():
            self._says.setdefault((name.rstrip(".") + ".", other), [NOTHING])

    def forget(self, name: str) -> None:
        """The name is not there any more."""
        for key in [key for key in self._says if key[0] == name.rstrip(".") + "."]:
            del self._says[key]

    @property
    def server(self) -> str:
        """As `names.resolvers` has it."""
        return f"{HOST}:{self.port}"

    def __enter__(self) -> "Lying":
        self._ended = threading.Event()
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for each in (self._udp, self._tcp):
            each.bind((HOST, self.port))
        self._tcp.listen(16)
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._by_udp, self._by_tcp)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            self._udp.sendto(b"", (HOST, self.port))  # wakes the thread; close(2) would not
        self._tcp.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._udp.close()
        self._tcp.close()

    def _by_udp(self) -> None:
        while True:
            packet, peer = self._udp.recvfrom(65535)
            if self._ended.is_set():
                return
            for late_s, reply in self._replies(packet, "udp"):
                if late_s:
                    threading.Thread(target=self._later, args=(late_s, reply, peer), daemon=True).start()
                else:
                    self._udp.sendto(reply, peer)

    def _later(self, late_s: float, reply: bytes, peer: tuple[str, int]) -> None:
        time.sleep(late_s)
        with contextlib.suppress(OSError):
            self._udp.sendto(reply, peer)

    def _by_tcp(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._tcp.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError, struct.error):
                client.settimeout(5)
                (length,) = struct.unpack("!H", client.recv(2, socket.MSG_WAITALL))
                for _, reply in self._replies(client.recv(length, socket.MSG_WAITALL), "tcp"):
                    client.sendall(struct.pack("!H", len(reply)) + reply)

    def _replies(self, packet: bytes, way: str) -> list[tuple[float, bytes]]:
        query = dns.message.from_wire(packet)
        question = query.question[0]
        name, kind = question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype)
        self.asked[name.rstrip("."), kind, way] += 1
        says = self._says.get((name, kind), [NXDOMAIN])
        return [(each.late_s, self._reply(query, each, way)) for each in says if not each.drops]

    @staticmethod
    def _reply(query: dns.message.Message, says: Says, way: str) -> bytes:
        question = query.question[0]
        reply = dns.message.make_response(query)
        reply.flags |= dns.flags.RA
        reply.set_rcode(says.rcode)
        owner, records = question.name, says.records
        if says.other_name:
            owner = dns.name.from_text(says.other_name)
            reply.question = [dns.rrset.RRset(owner, question.rdclass, question.rdtype)]
        for alias, target, ttl_s in says.aliases:
            reply.answer.append(dns.rrset.from_text(alias, ttl_s, "IN", "CNAME", target))
            owner = dns.name.from_text(target)
        if says.truncated and way == "udp":
            reply.flags |= dns.flags.TC
            records = records[: len(records) // 2]
        if records:
            kind = dns.rdatatype.to_text(question.rdtype)
            reply.answer.append(dns.rrset.from_text(owner, says.ttl_s, "IN", kind, *records))
        elif says.negative_s is not None:
            text = SOA.format(says.negative_s)
            reply.authority.append(dns.rrset.from_text("test.", says.negative_s, "IN", "SOA", text))
        wired = bytearray(reply.to_wire(max_size=65535))
        if says.wrong_id:
            wired[0] ^= 0xFF
        return bytes(wired)
