"""Files, rows and snapshots for tests: as small as they can be."""

import textwrap
from dataclasses import replace
from ipaddress import ip_network
from typing import Any, Literal

from hypothesis import strategies as st

from relay.config.admission import drop_filter
from relay.config.compile import compile_snapshot
from relay.config.document import Document, parse
from relay.config.load import parse_service
from relay.config.model import Service
from relay.config.settings import Settings
from relay.config.snapshot import EndpointRow, Snapshot, TargetRow
from relay.envelope.rules import RuleRow


def service_of_roles(roles: str, lists: str = "") -> tuple[Service, Document]:
    """A service with these roles, whose YAML starts on line 4, and these access lists after them."""
    text = "version: 1\nservice: shop\nroles:\n" + textwrap.indent(textwrap.dedent(roles).lstrip("\n"), "  ")
    if lists:
        text += "\naccess_lists:\n" + textwrap.indent(textwrap.dedent(lists).lstrip("\n"), "  ")
    document = parse(text.encode(), "service.yaml")
    return Service.model_validate(document.data), document


SERVICE = """\
version: 1
service: shop
roles:
  web:
    instances: [10.0.0.4, "2001:db8::5"]
    endpoints:
      http-in:
        type: input
        protocol: http
        public_port: 80
        port: 8080
        target: localhost:3000
        access:
          - deny: 203.0.113.9/24
          - permit: 203.0.0.0/8
        limits: {connections: 10, per_source: 2, rate: 30/m}
        timeouts: {connect: 1s, first_byte: 2s, idle: 3s, keepalive: 4s, dead: 5s, hold: 6s}
        send_proxy: v2
      open: {type: input, public_port: 81, target: "[::1]:1"}
      closed-to-one: {type: input, public_port: 82, target: "127.0.0.1:1", access: [{deny: 192.0.2.7}]}
  store:
    instances: [10.0.1.4]
    endpoints:
      postgres:
        {type: internal, port: 5432, target: "unix:/run/pg", from: [web], timeouts: {idle: off, keepalive: off, dead: off}}
      own: {type: internal, port: 5433, target: "127.0.0.1:9"}
"""


def service(text: str = SERVICE) -> Service:
    return parse_service(parse(text.encode(), "service.yaml")).value


def compiled(instance: str, **keys: Any) -> Snapshot:
    given: dict[str, Any] = {"generation": 1, "file": "service.yaml", **keys}
    return compile_snapshot(given.pop("service", service()), given.pop("settings", Settings()), instance, **given)


EDGE = (
    SERVICE.replace('"2001:db8::5"', "10.0.0.5")  # an edge and its instances are of one IP version
    .replace("service: shop\n", "service: shop\nedge: {instances: [198.51.100.10, 198.51.100.11]}\n")
    .replace(
        "        send_proxy: v2\n",
        "        send_proxy: v1\n        transparent: true\n        instance_ports: 8000-8004\n",
    )
    .replace(
        "      open: {",
        "      open: {probe: {protocol: http, path: ok, interval: 1s, timeout: 2s}, distribution: source-ip, ",
    )
)


def endpoint_row(name: str = "web/in", **keys: Any) -> EndpointRow:
    """A row that admits everybody without a limit on 127.0.0.1; `keys` differ."""
    row = EndpointRow(
        name=name,
        slot=0,
        type="input",
        protocol="tcp",
        listen_host="127.0.0.1",
        listen_port=0,
        port_count=1,
        targets=(TargetRow("127.0.0.1:1", host="127.0.0.1", port=1),),
        rules=(),
        permit_unmatched=True,
        denied_reason="access",
        enforce="strict",
        deny="reset",
        drop_filter="",
        connections=None,
        per_source=None,
        rate_per_s=None,
        connect_s=5.0,
        first_byte_s=10.0,
        idle_s=None,
        send_proxy=None,
        keepalive_s=15.0,
        dead_s=30.0,
    )
    return replace(row, **keys)


def dropping(*denied: str, version: Literal[4, 6] = 4) -> dict[str, Any]:
    """The keys of a row that has the kernel drop these sources."""
    rules = tuple(RuleRow(False, str(ip_network(source)), "f:1") for source in denied)
    return {"rules": rules, "deny": "drop", "drop_filter": drop_filter(rules, True, version, 1).hex()}


def snapshot_of(*rows: EndpointRow, **keys: Any) -> Snapshot:
    """A snapshot of these endpoints; `keys` differ."""
    return replace(Snapshot(1, "test", "web_IN_0", rows, drain_s=30.0, log_level="info"), **keys)


YAML_TEXT = st.text(alphabet="ab:-?[]{},&*!|>'\"%@`#<~.01 \t\n\r\\u\x85\u2028é\ufeff", max_size=60)


YAML_LINES = st.lists(
    st.sampled_from(
        [
            "a: 1",
            "  b: [",
            "- x",
            "]",
            "? k",
            ": v",
            "---",
            "...",
            "%YAML 1.1",
            "<<: *a",
            "&a x",
            "*a",
            "'",
            '"\\U',
            "|",
            "\t",
            "{",
            "}",
        ]
    ),
    max_size=12,
).map("\n".join)
