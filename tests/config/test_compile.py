"""From a service and its roster to what one instance does."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from relay.config.admission import drop_filter
from relay.config.document import parse
from relay.config.load import parse_settings
from relay.config.model import Service
from relay.config.roster import Member, Roster
from relay.config.snapshot import EndpointRow, Snapshot, TargetRow
from relay.envelope.rules import RuleRow, compile_rules
from relay.errors import ConfigError
from tests.config.rig import EDGE, SERVICE, compiled, service
from tests.envelope.interpreter import keeps


def test_an_input_endpoint() -> None:
    row = compiled("web_IN_0").endpoints[0]
    assert row.table == compile_rules(row.rules).to_bytes()
    assert replace(row, table=b"") == EndpointRow(
        name="web/http-in",
        slot=0,
        type="input",
        protocol="http",
        listen_host="10.0.0.4",
        listen_port=8080,
        port_count=1,
        targets=(
            TargetRow("127.0.0.1:3000", host="127.0.0.1", port=3000),
            TargetRow("[::1]:3000", host="::1", port=3000),
        ),
        rules=(
            RuleRow(False, "203.0.113.0/24", "service.yaml:14"),
            RuleRow(True, "203.0.0.0/8", "service.yaml:15"),
        ),
        permit_unmatched=False,
        denied_reason="access",
        enforce="strict",
        deny="reset",
        drop_filter="",
        connections=10,
        per_source=2,
        rate_per_s=0.5,
        connect_s=1.0,
        first_byte_s=2.0,
        idle_s=3.0,
        send_proxy="v2",
        keepalive_s=4.0,
        dead_s=5.0,
        hold_s=6.0,
    )
    assert (row.role, row.endpoint, row.listen) == ("web", "http-in", "10.0.0.4:8080")


def test_what_one_source_is() -> None:
    networks = "{limit: 200, ipv4: 24, ipv6: 64}"
    found = {}
    for written in ("5", "{limit: 5}", networks):
        text = SERVICE.replace("per_source: 2", f"per_source: {written}")
        row = compiled("web_IN_0", service=service(text)).endpoints[0]
        found[written] = row.per_source, row.per_source_ipv4_bits, row.per_source_ipv6_bits
    assert found == {"5": (5, 32, 128), "{limit: 5}": (5, 32, 128), networks: (200, 24, 64)}


def test_who_is_admitted_where_no_rule_matches() -> None:
    by_name = {row.endpoint: row.permit_unmatched for row in compiled("web_IN_0").endpoints}
    assert by_name == {"http-in": False, "open": True, "closed-to-one": True}


def test_an_internal_endpoint_admits_the_roster() -> None:
    postgres, own = compiled("store_IN_0").endpoints
    web = (RuleRow(True, "10.0.0.4/32", "web_IN_0"), RuleRow(True, "2001:db8::5/128", "web_IN_1"))
    assert postgres.rules == web
    assert own.rules == (*web, RuleRow(True, "10.0.1.4/32", "store_IN_0"))
    assert not postgres.permit_unmatched
    assert not own.permit_unmatched
    assert {postgres.denied_reason, own.denied_reason} == {"roster"}
    assert postgres.targets == (TargetRow("unix:/run/pg", path="/run/pg"),)
    assert (postgres.idle_s, postgres.keepalive_s, postgres.dead_s) == (None, None, None)
    assert (own.keepalive_s, own.dead_s) == (15.0, 30.0)


def test_each_instance_listens_on_its_own_address() -> None:
    assert {row.listen for row in compiled("web_IN_1").endpoints} == {
        "[2001:db8::5]:8080", "[2001:db8::5]:81", "[2001:db8::5]:82",
    }  # fmt: skip


def ranges(target: str) -> EndpointRow:
    text = "version: 1\nservice: s\nroles:\n  web:\n    instances: ['2001:db8::5']\n    endpoints:\n"
    text += f"      in: {{type: internal, port: 8995-8997, target: '{target}'}}\n"
    [row] = compiled("web_IN_0", service=service(text)).endpoints
    return row


def test_a_range_of_ports() -> None:
    row = ranges("localhost:5-7")
    assert (row.listen_port, row.port_count, row.listen) == (8995, 3, "[2001:db8::5]:8995-8997")
    assert row.listens == {f"[2001:db8::5]:{port}": port for port in (8995, 8996, 8997)}
    assert row.targets == (
        TargetRow("127.0.0.1:5-7", host="127.0.0.1", port=5, port_count=3),
        TargetRow("[::1]:5-7", host="::1", port=5, port_count=3),
    )
    assert [row.target(n) for n in range(3)] == [*row.targets, row.targets[1]]
    assert row.targets[1].at(2) == TargetRow("[::1]:7", host="::1", port=7)
    for nowhere in (-1, 3):
        assert row.targets[0].at(nowhere) == row.targets[0]
    assert ranges("unix:/x").targets == (TargetRow("unix:/x", path="/x"),)
    assert ranges("127.0.0.1:5").targets == (TargetRow("127.0.0.1:5", host="127.0.0.1", port=5),)


def test_rules_of_a_shared_list_are_the_endpoints_and_stand_where_they_are_written() -> None:
    text = """\
version: 1
service: s
access_lists:
  office:
    - deny: 175.1.0.0/24
    - permit: 175.0.0.0/8
roles:
  web:
    instances: [10.0.0.4]
    endpoints:
      a: {type: input, public_port: 80, target: "unix:/x", access: office}
      b: {type: input, public_port: 81, target: "unix:/x", access: office}
"""
    one, other = compiled("web_IN_0", service=service(text)).endpoints
    assert one.rules == (
        RuleRow(False, "175.1.0.0/24", "service.yaml:5"),
        RuleRow(True, "175.0.0.0/8", "service.yaml:6"),
    )
    assert (one.rules, one.permit_unmatched) == (other.rules, other.permit_unmatched)
    assert not one.permit_unmatched


def with_keys(keys: str, *, address: str = "10.0.0.4") -> EndpointRow:
    text = f"version: 1\nservice: s\nroles:\n  web:\n    instances: ['{address}', 10.0.0.9]\n    endpoints:\n"
    text += f"      in: {{type: input, public_port: 80, target: 'unix:/x', {keys}}}\n"
    [row] = compiled("web_IN_0", service=service(text)).endpoints
    return row


def test_whom_the_kernel_drops() -> None:
    row = with_keys("deny: drop, access: [{deny: 192.0.2.7}]")
    assert row.deny == "drop"
    program = bytes.fromhex(row.drop_filter)
    assert not keeps(program, ip_address("192.0.2.7"))
    assert keeps(program, ip_address("192.0.2.8"))
    assert keeps(program, ip_address("2001:db8::1")), "it does not come to an IPv4 socket"
    v6 = bytes.fromhex(with_keys("deny: drop, access: [{permit: '2001:db8::/32'}]", address="2001:db8::5").drop_filter)
    assert [keeps(v6, ip_address(text)) for text in ("2001:db8::1", "2001:db9::1")] == [True, False]


@pytest.mark.parametrize(
    "keys",
    [
        "access: [{deny: 192.0.2.7}]",
        "deny: reset, access: [{deny: 192.0.2.7}]",
        "deny: drop",
        "deny: drop, access: [{deny: '2001:db8::/32'}]",
        "deny: drop, enforce: audit, access: [{deny: 192.0.2.7}]",
    ],
)
def test_whom_it_does_not(keys: str) -> None:
    assert with_keys(keys).drop_filter == ""


def test_an_internal_endpoint_drops_all_but_the_roster() -> None:
    text = SERVICE.replace('"unix:/run/pg", from: [web]', '"unix:/run/pg", from: [web], deny: drop')
    program = bytes.fromhex(compiled("store_IN_0", service=service(text)).endpoints[0].drop_filter)
    assert [keeps(program, ip_address(text)) for text in ("10.0.0.4", "10.0.1.4", "127.0.0.1")] == [True, False, False]


def isolated(count: int) -> tuple[RuleRow, ...]:
    """Rules for so many networks that nothing joins."""
    return tuple(
        RuleRow(False, f"{10 + n // 65536}.{n // 256 % 256}.{n % 256}.{n % 128 * 2}/32", "") for n in range(count)
    )


def test_more_networks_than_a_filter_has_room_for() -> None:
    assert drop_filter(isolated(1900), True, 4, 1)
    with pytest.raises(ValueError, match="room for the first") as caught:
        drop_filter(isolated(20_000), True, 4, 1)
    fits = int(str(caught.value).split()[8])
    assert str(caught.value) == (
        f"the kernel's filter has room for the first {fits} of these 20000 networks (IPv4); "
        "write `deny: reset`, or fewer networks"
    )
    assert 1900 < fits < 2100
    assert drop_filter(isolated(fits), True, 4, 1)
    with pytest.raises(ValueError, match="room for"):
        drop_filter(isolated(fits + 1), True, 4, 1)


def test_all_ports_of_a_range_share_the_room() -> None:
    assert drop_filter(isolated(20), True, 4, 1024)
    with pytest.raises(
        ValueError, match=r"the kernel's filters for 1024 ports have room for the first [23]. of these 100"
    ):
        drop_filter(isolated(100), True, 4, 1024)


def test_a_filter_of_the_settings_address_that_does_not_fit() -> None:
    """The roster is IPv6 alone, and so it was checked; the settings say IPv4."""
    access = ", ".join(f"{{deny: '{rule.network}'}}" for rule in isolated(3000))
    text = "version: 1\nservice: s\nroles:\n  web:\n    instances: ['2001:db8::5']\n    endpoints:\n"
    text += f"      in: {{type: input, public_port: 80, target: 'unix:/x', deny: drop, access: [{access}]}}\n"
    assert compiled("web_IN_0", service=service(text)).endpoints[0].drop_filter == ""
    found = parse_settings(parse(b"address: 10.0.0.4\n", "instance.yaml")).value
    with pytest.raises(
        ConfigError, match=r"service.yaml:0:0: roles.web.endpoints.in.deny: the kernel's filter has room"
    ):
        compiled("web_IN_0", service=service(text), settings=found)


def test_what_the_settings_say() -> None:
    found = parse_settings(
        parse(b"address: 0.0.0.0\nunsafe_listen: true\ndrain: 2s\nlog: {level: error}\n", "instance.yaml")
    ).value
    snapshot = compiled("web_IN_1", settings=found, generation=7)
    assert {row.listen_host for row in snapshot.endpoints} == {"0.0.0.0"}
    assert (snapshot.generation, snapshot.service, snapshot.instance) == (7, "shop", "web_IN_1")
    assert (snapshot.drain_s, snapshot.log_level) == (2.0, "error")


# --- counted roles, and doors out ---------------------------------------------------------------------------------------

FLEET = """\
version: 1
service: shop
edge: {instances: [198.51.100.10]}
roles:
  web:
    instances: 4
    endpoints:
      http: {type: input, public_port: 80, instance_ports: 8101-8104, port: 8080, target: "127.0.0.1:3000"}
    uses:
      db: {endpoint: store/pg, listen: "127.0.0.1:5432", connect: 2s}
      db6: {endpoint: store/pg, listen: "[::1]:5432"}
  store:
    instances: 2000
    endpoints:
      pg: {type: internal, port: 5432, target: "unix:/run/pg", from: [web], timeouts: {keepalive: 4s, dead: 5s, hold: 6s},
           limits: {connections: 7}}
"""


def in_fleet(instance: str, *members: Member) -> dict[str, EndpointRow]:
    """The rows of an instance, by name, when these are registered."""
    fleet = service(FLEET)
    roster = Roster.of_service(fleet, members)
    return {row.name: row for row in compiled(instance, service=fleet, roster=roster).endpoints}


def test_an_internal_endpoint_admits_who_is_registered() -> None:
    members = [Member("store", 0, "10.0.1.4"), Member("web", 2, "10.0.0.6"), Member("web", 0, "10.0.0.4")]
    rules = in_fleet("store_IN_0", *members)["store/pg"].rules
    assert rules == (RuleRow(True, "10.0.0.4/32", "web_IN_0"), RuleRow(True, "10.0.0.6/32", "web_IN_2"))


def test_an_edge_has_every_public_port_open_whoever_is_there() -> None:
    rows = in_fleet("edge_IN_0")
    assert (rows["web/http"].targets, rows["web/http@instance"].targets) == ((), ())
    rows = in_fleet("edge_IN_0", Member("web", 3, "10.0.0.7"))
    assert [target.text for target in rows["web/http"].targets] == ["10.0.0.7:8080"]
    row = rows["web/http@instance"]
    assert (row.listen_port, row.port_count, [target.instance for target in row.targets]) == (8101, 4, ["web_IN_3"])


def test_a_door_out() -> None:
    me = Member("web", 1, "10.0.0.5")
    stores = [Member("store", n, f"10.0.1.{n}") for n in range(3)]
    rows = in_fleet("web_IN_1", me, *stores)
    row = rows["web/db"]
    assert (row.type, row.listen, row.leads_to, row.connect_s, row.idle_s) == (
        "door", "127.0.0.1:5432", "store/pg", 2.0, None,
    )  # fmt: skip
    assert (row.keepalive_s, row.dead_s) == (4.0, 5.0), "those of the endpoint that it leads to"
    assert (row.hold_s, row.held_max, row.connections) == (6.0, 7, None), "its limit, for those who wait"
    assert (row.distribution, row.dial_from, row.probe, row.send_proxy) == ("least-connections", "10.0.0.5", None, None)
    assert [(each.text, each.instance) for each in row.targets] == [
        (f"10.0.1.{n}:5432", f"store_IN_{n}") for n in range(3)
    ]
    envelope = row.envelope
    for address, permit in {"127.0.0.1": True, "127.9.9.9": True, "10.0.0.5": True, "10.0.0.4": False}.items():
        assert envelope.decide(ip_address(address).packed).permit is permit
    assert rows["web/db6"].envelope.decide(ip_address("::1").packed).permit


def test_a_door_leads_to_those_who_serve() -> None:
    me = Member("web", 1, "10.0.0.5")
    busy, down = Member("store", 0, "10.0.1.1", busy=True), Member("store", 1, "10.0.1.2", down=("pg",))
    other = Member("store", 2, "10.0.1.3", down=("another",))
    assert [target.instance for target in in_fleet("web_IN_1", me, busy, down, other)["web/db"].targets] == [
        "store_IN_2"
    ]
    assert len(in_fleet("web_IN_1", me, busy, down)["web/db"].targets) == 2, "some are better than nobody"


def test_a_door_leads_to_instances_of_this_machines_ip_version() -> None:
    me = Member("web", 1, "fd00::5")
    stores = [Member("store", 0, "10.0.1.4"), Member("store", 1, "fd00::6")]
    assert [target.text for target in in_fleet("web_IN_1", me, *stores)["web/db"].targets] == ["[fd00::6]:5432"]


def test_each_machine_takes_a_few_of_many() -> None:
    stores = [Member("store", n, f"10.1.{n // 250}.{n % 250}") for n in range(1000)]
    webs = [Member("web", n, f"10.0.0.{n}") for n in range(4)]
    taken = [{target.instance for target in in_fleet(me.id, *webs, *stores)["web/db"].targets} for me in webs]
    assert [len(each) for each in taken] == [32] * 4
    assert len(set.union(*taken)) > 100, "not the same ones"
    fewer = [store for store in stores if store.ordinal % 2 or store.id not in taken[0]]
    after = {target.instance for target in in_fleet("web_IN_0", *webs, *fewer)["web/db"].targets}
    assert taken[0] & {store.id for store in fewer} <= after, "who stays is kept"


def with_relay_port(text: str) -> Service:
    return service(text.replace("service: shop\n", "service: shop\nrelay_port: 7400\n"))


def test_where_relays_talk_to_each_other() -> None:
    """The roster's addresses are admitted, the edge's too, and nobody else."""
    snapshot = compiled("web_IN_0", service=with_relay_port(EDGE))
    assert [row.name for row in snapshot.endpoints][-1] == "web/@relay"
    row = snapshot.endpoints[-1]
    assert (row.type, row.listen, row.targets, row.is_brought, row.denied_reason) == (
        "relay", "10.0.0.4:7400", (), True, "roster",
    )  # fmt: skip
    permitted = ["10.0.0.4", "10.0.0.5", "10.0.1.4", "198.51.100.10", "198.51.100.11"]
    for address in (*permitted, "10.0.0.6", "127.0.0.1"):
        assert row.envelope.decide(ip_address(address).packed).permit is (address in permitted)
    assert Snapshot.from_json(snapshot.to_json()) == snapshot


def test_an_edge_and_a_door_know_where_relays_are_talked_to() -> None:
    edge = compiled("edge_IN_0", service=with_relay_port(EDGE))
    assert {row.type for row in edge.endpoints} == {"input"}, "nobody talks to an edge's relay"
    assert {target.relay_port for row in edge.endpoints for target in row.targets} == {7400}
    assert {row.endpoint_there for row in edge.endpoints} == {"web/http-in", "web/open", "web/closed-to-one"}
    without = compiled("edge_IN_0", service=service(EDGE))
    assert {target.relay_port for row in without.endpoints for target in row.targets} == {0}
    uses = "    uses: {db: {endpoint: store/postgres, listen: 127.0.0.1:5432}}\n    endpoints:\n      http-in:"
    shop = with_relay_port(SERVICE.replace("    endpoints:\n      http-in:", uses))
    [door] = [row for row in compiled("web_IN_0", service=shop).endpoints if row.type == "door"]
    assert [(each.text, each.relay_port) for each in door.targets] == [("10.0.1.4:5432", 7400)]
    assert door.endpoint_there == "store/postgres"


@pytest.mark.parametrize(("told", "expected"), [(True, ("https", 3.0)), (False, ("tcp", 5.0))])
def test_who_is_asked_only_by_what_a_program_has_said(told: bool, expected: tuple[str, float]) -> None:
    """An instance says that it took a connection after its first bytes, so the door waits for those."""
    text = SERVICE.replace(
        "    endpoints:\n      http-in:",
        "    uses: {db: {endpoint: store/own, listen: 127.0.0.1:2}}\n" + "    endpoints:\n      http-in:",
    )
    text = text.replace("own: {type: internal,", "own: {type: internal, protocol: https, timeouts: {first_byte: 3s},")
    shop = with_relay_port(text) if told else service(text)
    [door] = [row for row in compiled("web_IN_0", service=shop).endpoints if row.type == "door"]
    assert (door.protocol, door.first_byte_s) == expected


def test_a_port_for_relays_moves_nobodys_counters() -> None:
    before = compiled("store_IN_0")
    after = compiled("store_IN_0", service=with_relay_port(SERVICE), slots=before.slots)
    assert {row.name: row.slot for row in after.endpoints} == {**before.slots.endpoints, "store/@relay": 2}
