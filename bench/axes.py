"""What the bench measures: one Axis each. Pure."""

from dataclasses import dataclass

IDLE, WORKERS = "idle", "workers"


@dataclass(frozen=True, slots=True)
class Axis:
    """One thing that is measured.

    `mode`, `count` and `extra` are the load generator's arguments, `server` is its server mode, `kind` what the endpoint
    has to do (forwarders.KINDS). With `versus` each forwarder is measured beside itself: with many idle connections
    open (IDLE) beside none, or with two workers (WORKERS) beside one.
    """

    name: str
    title: str
    server: str
    mode: str
    count: int
    extra: tuple[str, ...] = ()
    kind: str = "tcp"
    versus: str = ""

    @property
    def is_bulk(self) -> bool:
        """Whether the unit is a GiB, not an operation."""
        return self.mode == "bulk"

    @property
    def is_open(self) -> bool:
        """Whether the rate is given, and what is asked for is the latency."""
        return self.mode == "open"

    @property
    def crosses_a_network(self) -> bool:
        """Whether it is measured over a veth pair too."""
        return self.mode in ("rr", "bulk") and not self.versus


AXES = (
    Axis("bulk-down", "bulk from the target to the client, 1 stream", "source", "bulk", 1, ("down",)),
    Axis("bulk-up", "bulk from the client to the target, 1 stream", "sink", "bulk", 1, ("up",)),
    Axis("bulk-down-8", "bulk from the target to the client, 8 streams", "source", "bulk", 8, ("down",)),
    Axis("bulk-up-8", "bulk from the client to the target, 8 streams", "sink", "bulk", 8, ("up",)),
    Axis("rr-1", "64-byte round trips, 1 connection", "echo", "rr", 1, ("64",)),
    Axis("rr-64", "64-byte round trips, 64 connections", "echo", "rr", 64, ("64",)),
    Axis("rr-4k", "4 KiB round trips, 16 connections", "echo", "rr", 16, ("4096",)),
    Axis("rr-16k", "16 KiB round trips, 16 connections", "echo", "rr", 16, ("16384",)),
    Axis("cps", "connections: connect, 1 byte there and back, close; 16 at a time", "echo", "cps", 16),
    Axis("denied", "denied connections: connect, be thrown out; 16 at a time", "echo", "denied", 16, kind="denied"),
    Axis("https", "connections that begin with a ClientHello; 16 at a time", "answer", "cps", 16, kind="https"),
    Axis("http", "connections that begin with an HTTP request; 16 at a time", "answer", "cps", 16, kind="http"),
    Axis("proxy", "connections from an edge, PROXY header first; 16 at a time", "answer", "cps", 16, kind="proxy"),
    Axis("tail", "64-byte messages at half of HAProxy's knee, 64 connections", "echo", "open", 64, ("64",)),
    Axis("idle", "64-byte round trips, 64 connections, beside idle ones", "echo", "rr", 64, ("64",), versus=IDLE),
    Axis("workers", "connections as in cps; 1 worker, and 2 on 2 CPUs", "echo", "cps", 16, versus=WORKERS),
)
