"""A fleet, a log that remembers and a discovery API for tests of control."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jsonschema  # type: ignore[import-untyped]

from relay.config.compile import compile_snapshot
from relay.config.document import parse
from relay.config.load import parse_service
from relay.config.model import Service
from relay.config.roster import Member, Roster
from relay.config.settings import Settings
from relay.config.snapshot import EndpointRow, Snapshot, TargetRow
from relay.control.discovery import Fleet
from relay.control.in_force import InForce
from relay.control.openapi import document
from relay.control.routes import Discovery
from relay.ledger.ledger import Ledger
from relay.log import Logger
from tests.config.rig import endpoint_row, service
from tests.ledger.rig import new_ledger

TEXT = """\
version: 1
service: shop
edge: {instances: [198.51.100.10, "2001:db8::10"]}
roles:
  web:
    instances: 3
    endpoints:
      http-in: {type: input, protocol: http, public_port: 80, port: 8080, target: "127.0.0.1:3000"}
      each: {type: input, instance_ports: 9001-9003, port: 9000, target: "127.0.0.1:3001"}
      metrics: {type: internal, port: 9464, target: "127.0.0.1:9464"}
    uses:
      db: {endpoint: store/postgres, listen: "127.0.0.1:5432"}
  store:
    instances: [10.0.1.4]
    endpoints:
      postgres: {type: internal, port: 5432, target: "127.0.0.1:5432", from: [web]}
      range: {type: internal, port: 7000-7002, target: "127.0.0.1:7000-7002"}
"""


SHOP: Service = service(TEXT)


WEB_0, WEB_2 = Member("web", 0, "10.0.0.4"), Member("web", 2, "10.0.0.6")


def fleet(*registered: Member, text: str = TEXT, me: str = "store_IN_0", **keys: Any) -> Fleet:
    """What `me` knows when these are registered."""
    shop = SHOP if text is TEXT else service(text)
    return Fleet(shop, Roster.of_service(shop, registered or (WEB_0, WEB_2)), me, **keys)


def spread(distribution: str = "five-tuple") -> EndpointRow:
    targets = tuple(TargetRow(f"10.0.0.{n}:80", slot=n, instance=f"web_IN_{n}") for n in range(4))
    return endpoint_row("web/in", listen_port=80, distribution=distribution, targets=targets)


class Logged:
    """A log, and what was written to it."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._read.setblocking(False)
        self.log = Logger(self._write, "control", "debug")

    def close(self) -> None:
        """End it."""
        self._read.close()
        self._write.close()

    def lines(self) -> list[dict[str, str]]:
        """All lines since the last call."""
        found = []
        while True:
            try:
                found.append(json.loads(self._read.recv(65536)))
            except BlockingIOError:
                return found


def check_answer(method: str, path: str, status: int, value: Any) -> None:
    """Hold an answer of the admin socket against the document. Raises jsonschema's error."""
    told = document(admin=True)
    (content,) = told["paths"][path][method]["responses"][str(status)]["content"].values()
    schema = {**content["schema"], "components": told["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


def standing(snapshot: Snapshot) -> InForce:
    """This snapshot in force, by the file of the shop, which most who read the snapshot never look at."""
    return InForce(parse_service(parse(TEXT.encode(), "service.yaml")), snapshot)


class Truth:
    """What is in force: a snapshot of `store_IN_0`, by a roster that tests change."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.in_force = standing(self.with_roster(Roster.of_service(SHOP, [WEB_0])))

    @property
    def snapshot(self) -> Snapshot:
        return self.in_force.snapshot

    @snapshot.setter
    def snapshot(self, new: Snapshot) -> None:
        self.in_force.snapshot = new

    def with_roster(self, roster: Roster) -> Any:
        return compile_snapshot(SHOP, Settings(), "store_IN_0", generation=1, file="service.yaml", roster=roster)


@contextmanager
def discovery_of() -> Iterator[tuple[Discovery, Truth]]:
    """The discovery API of one that serves nothing yet, and what it tells of."""
    with new_ledger() as ledger:
        truth = Truth(ledger)
        yield Discovery(ledger, Settings(), truth.in_force), truth
