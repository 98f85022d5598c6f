"""An edge's endpoints and targets, and the places in the ledger that stay over reloads."""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.document import parse
from relay.config.load import parse_settings
from relay.config.model import Service
from relay.config.snapshot import NO_SLOTS, SLOTS_MAX, ProbeRow, Slots, Snapshot, TargetRow
from relay.errors import ConfigError
from tests.config.rig import EDGE, compiled, service
from tests.envelope.interpreter import keeps
from tests.harness import examples


def slots(snapshot: Snapshot) -> dict[str, int]:
    return {row.name: row.slot for row in snapshot.endpoints}


def test_an_edge_listens_on_the_public_ports_of_input_endpoints() -> None:
    text = EDGE.replace("per_source: 2", "per_source: {limit: 2, ipv6: 64}")
    rows = compiled("edge_IN_1", service=service(text)).endpoints
    assert [(row.name, row.listen, row.distribution) for row in rows] == [
        ("web/http-in", "198.51.100.11:80", "five-tuple"),
        ("web/http-in@instance", "198.51.100.11:8000-8001", "instance"),
        ("web/open", "198.51.100.11:81", "source-ip"),
        ("web/closed-to-one", "198.51.100.11:82", "five-tuple"),
    ]
    assert [row.probe for row in rows] == [
        *[ProbeRow("", 2.0, 5.0, "relay")] * 2,
        ProbeRow("/ok", 1.0, 2.0),
        ProbeRow("", 2.0, 5.0, "relay"),
    ]
    assert {row.dial_from for row in rows} == {"198.51.100.11"}
    assert {row.send_proxy for row in rows} == {"v2"}, (
        "to the instance; what the application gets is the instance's to say"
    )
    assert {(row.transparent, row.edges) for row in rows} == {(False, ())}
    limits = {(row.connections, row.per_source, row.rate_per_s, row.per_source_ipv6_bits) for row in rows}
    assert limits == {(None, None, None, 128)}, "an instance counts, by the client's address"


def test_an_edges_targets_are_the_instances_at_their_private_port() -> None:
    public, each, *_ = compiled("edge_IN_0", service=service(EDGE)).endpoints
    expected = [
        TargetRow("10.0.0.4:8080", host="10.0.0.4", port=8080, slot=0, instance="web_IN_0"),
        TargetRow("10.0.0.5:8080", host="10.0.0.5", port=8080, slot=1, instance="web_IN_1"),
    ]
    assert list(public.targets) == expected
    assert [replace(target, slot=target.slot - 2) for target in each.targets] == expected, "with counts of their own"


def test_an_edge_decides_by_the_same_rules_as_the_instance() -> None:
    edge = compiled("edge_IN_0", service=service(EDGE)).endpoints[0]
    instance = compiled("web_IN_0", service=service(EDGE)).endpoints[0]
    for name in (
        "rules",
        "table",
        "permit_unmatched",
        "denied_reason",
        "protocol",
        "connect_s",
        "first_byte_s",
        "idle_s",
        "keepalive_s",
        "dead_s",
    ):
        assert getattr(edge, name) == getattr(instance, name), name


def test_an_instance_behind_an_edge_takes_nobody_else() -> None:
    rows = compiled("web_IN_0", service=service(EDGE)).endpoints
    assert {row.edges for row in rows} == {("198.51.100.10", "198.51.100.11")}
    row = rows[0]
    assert (row.send_proxy, row.transparent, row.connections, row.listen) == ("v1", True, 10, "10.0.0.4:8080")
    assert (row.distribution, row.probe, row.dial_from) == (None, None, "")
    assert {target.slot for target in row.targets} == {-1}
    internal = compiled("store_IN_0", service=service(EDGE)).endpoints
    assert {row.edges for row in internal} == {()}


def test_a_role_without_instances_is_not_on_the_edge() -> None:
    text = EDGE.replace("instances: [10.0.0.4, 10.0.0.5]", "instances: []")
    assert compiled("edge_IN_0", service=service(text)).endpoints == ()


def test_an_edge_listens_where_its_settings_say_and_dials_as_the_roster_says() -> None:
    found = parse_settings(parse(b"address: 0.0.0.0\nunsafe_listen: true\n", "instance.yaml")).value
    rows = compiled("edge_IN_0", service=service(EDGE), settings=found).endpoints
    assert {(row.listen_host, row.dial_from) for row in rows} == {("0.0.0.0", "198.51.100.10")}


def test_the_kernel_drops_at_the_edge_and_not_behind_it() -> None:
    """Behind it the packets are the edge's own, whoever the client is."""
    text = EDGE.replace("public_port: 82,", "public_port: 82, deny: drop,")
    edge = compiled("edge_IN_0", service=service(text)).endpoints[-1]
    assert [keeps(bytes.fromhex(edge.drop_filter), ip_address(who)) for who in ("192.0.2.7", "192.0.2.8")] == [
        False,
        True,
    ]
    assert compiled("web_IN_0", service=service(text)).endpoints[-1].drop_filter == ""


def test_the_roster_has_the_edge() -> None:
    assert {each.id: each.address for each in compiled("web_IN_0", service=service(EDGE)).roster} == {
        "web_IN_0": "10.0.0.4", "web_IN_1": "10.0.0.5", "store_IN_0": "10.0.1.4",
        "edge_IN_0": "198.51.100.10", "edge_IN_1": "198.51.100.11",
    }  # fmt: skip


def edge_of(*addresses: str) -> Service:
    text = f"version: 1\nservice: s\nedge: {{instances: [198.51.100.10]}}\nroles:\n  web:\n    instances: {list(addresses)}\n"
    return service(text + "    endpoints:\n      a: {type: input, public_port: 80, port: 8080, target: 'unix:/x'}\n")


def target_slots(snapshot: Snapshot) -> dict[str, int]:
    return {target.host: target.slot for row in snapshot.endpoints for target in row.targets}


def test_a_slot_stays_with_its_target() -> None:
    first = compiled("edge_IN_0", service=edge_of("10.0.0.1", "10.0.0.2", "10.0.0.3"))
    assert target_slots(first) == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.3": 2}
    second = compiled("edge_IN_0", service=edge_of("10.0.0.3", "10.0.0.4", "10.0.0.1"), slots=first.slots)
    assert target_slots(second) == {"10.0.0.3": 2, "10.0.0.4": 3, "10.0.0.1": 0}, "and is not handed on at once"
    plain = {"web/a": 0, "web/a 10.0.0.3:8080": 2, "web/a 10.0.0.4:8080": 3, "web/a 10.0.0.1:8080": 0}
    assert second.slots.to_plain() == plain
    assert Slots.from_plain(plain) == second.slots


@examples(30)
@given(st.lists(st.sets(st.integers(1, 9), min_size=1), min_size=2, max_size=6))
def test_targets_slots_over_many_reloads(steps: list[set[int]]) -> None:
    before: Snapshot | None = None
    for members in steps:
        addresses = [f"10.0.0.{n}" for n in sorted(members)]
        after = compiled("edge_IN_0", service=edge_of(*addresses), slots=before.slots if before else NO_SLOTS)
        now, old = target_slots(after), target_slots(before) if before else {}
        assert sorted(now) == sorted(addresses)
        assert len(set(now.values())) == len(now)
        assert all(now[host] == old[host] for host in now if host in old)
        assert not {slot for host, slot in now.items() if host not in old} & set(old.values())
        before = after


def test_more_targets_than_slots() -> None:
    addresses = [f"10.0.{n // 200}.{n % 200 + 1}" for n in range(SLOTS_MAX + 1)]
    with pytest.raises(ConfigError, match=f"declares {SLOTS_MAX + 1} endpoints or their targets; one machine can have"):
        compiled("edge_IN_0", service=edge_of(*addresses))


def with_endpoints(*names: str) -> Service:
    lines = [f"{name}: {{type: internal, port: {1000 + n}, target: 'unix:/x'}}" for n, name in enumerate(names)]
    head = "version: 1\nservice: s\nroles:\n  web:\n    instances: [10.0.0.1]\n    endpoints:\n"
    return service(head + "".join(f"      {line}\n" for line in lines))


def test_a_slot_stays_with_its_endpoint() -> None:
    first = slots(compiled("web_IN_0", service=with_endpoints("a", "b", "c")))
    assert first == {"web/a": 0, "web/b": 1, "web/c": 2}
    second = slots(compiled("web_IN_0", service=with_endpoints("c", "new", "a"), slots=Slots(first)))
    assert second == {"web/a": 0, "web/c": 2, "web/new": 3}, "b's slot is not handed on at once"


@examples(30)
@given(st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=1), min_size=2, max_size=6))
def test_slots_over_many_reloads(steps: list[set[str]]) -> None:
    before: dict[str, int] = {}
    for names in steps:
        after = slots(compiled("web_IN_0", service=with_endpoints(*sorted(names)), slots=Slots(before)))
        assert len(set(after.values())) == len(after)
        assert set(after.values()) <= set(range(SLOTS_MAX))
        assert all(after[name] == before[name] for name in after if name in before)
        assert not {slot for name, slot in after.items() if name not in before} & set(before.values())
        before = after


def test_freed_slots_are_handed_on_when_there_are_no_others() -> None:
    before = {f"web/old{n}": n for n in range(SLOTS_MAX)}
    assert slots(compiled("web_IN_0", service=with_endpoints("old5", "new"), slots=Slots(before))) == {
        "web/old5": 5, "web/new": 0,
    }  # fmt: skip


def test_more_endpoints_than_slots() -> None:
    names = [f"e{n}" for n in range(SLOTS_MAX + 1)]
    with pytest.raises(
        ConfigError, match=f"declares {SLOTS_MAX + 1} endpoints .*; one machine can have {SLOTS_MAX} of"
    ):
        compiled("web_IN_0", service=with_endpoints(*names))
