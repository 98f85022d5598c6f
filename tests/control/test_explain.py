"""Why a source is let in or not; who would be cut; who may reach what."""

import errno
import ipaddress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.cli.tables import explain_text
from relay.config.compile import compile_snapshot
from relay.config.document import parse
from relay.config.load import parse_service
from relay.config.model import Service
from relay.config.settings import Settings
from relay.config.snapshot import ProbeRow, Snapshot, TargetRow
from relay.control.answers import Explanation
from relay.control.explain import explain, explain_file, find_endpoint, find_source, matrix, route, who_is_cut
from relay.envelope.rules import RuleRow
from relay.errors import OperatorError
from relay.ledger.layout import Health, TargetCount, health_at
from relay.targets import why
from relay.targets.health import packed as packed_health
from relay.targets.pool import Pool
from tests.config.rig import endpoint_row
from tests.control.rig import spread
from tests.harness import examples
from tests.ledger.rig import new_ledger

SERVICE = """\
version: 1
service: shop
roles:
  web:
    instances: [10.0.0.4, 10.0.0.5]
    endpoints:
      http-in:
        type: input
        public_port: 80
        target: 127.0.0.1:3000
        access:
          - deny: 203.0.113.0/24
          - permit: 203.0.0.0/8
          - permit: 10.0.0.4
      open: {type: input, public_port: 81, target: 127.0.0.1:3001}
      closed: {type: input, public_port: 82, target: 127.0.0.1:3002, access: [{deny: 192.0.2.0/24}]}
  store:
    instances: [10.0.1.4]
    endpoints:
      postgres: {type: internal, port: 5432, target: 127.0.0.1:5433, from: [web]}
"""


def service(text: str = SERVICE) -> Service:
    return parse_service(parse(text.encode(), "service.yaml")).value


def snapshot(instance: str = "web_IN_0", text: str = SERVICE) -> Snapshot:
    return compile_snapshot(service(text), Settings(), instance, generation=1, file="service.yaml")


def asked(endpoint: str, source: str, instance: str = "web_IN_0") -> Explanation:
    return explain(find_endpoint(snapshot(instance), endpoint), source)


def test_the_rule_that_decides_and_those_before_it() -> None:
    answer = asked("web/http-in", "203.0.114.9")
    assert (answer["verdict"], answer["reason"]) == ("permit", None)
    assert answer["rule"] == {"action": "permit", "network": "203.0.0.0/8", "source": "service.yaml:13"}
    assert [rule["source"] for rule in answer["looked_at"]] == ["service.yaml:12", "service.yaml:13"]


def test_a_denial_by_a_rule() -> None:
    answer = asked("web/http-in", "203.0.113.9")
    assert (answer["verdict"], answer["reason"]) == ("deny", "access")
    assert answer["rule"] == answer["looked_at"][-1]


@pytest.mark.parametrize(
    ("endpoint", "instance", "source", "verdict", "why"),
    [
        ("web/http-in", "web_IN_0", "8.8.8.8", "deny", "a `permit` stands in the list"),
        ("web/open", "web_IN_0", "8.8.8.8", "permit", "without rules admits everyone"),
        ("web/closed", "web_IN_0", "8.8.8.8", "permit", "with `deny` rules alone"),
        ("store/postgres", "store_IN_0", "8.8.8.8", "deny", "admits the instances of its roles"),
    ],
)
def test_what_no_rule_decides(endpoint: str, instance: str, source: str, verdict: str, why: str) -> None:
    answer = asked(endpoint, source, instance)
    assert (answer["verdict"], answer["rule"], why in answer["why"]) == (verdict, None, True)
    assert len(answer["looked_at"]) == len(find_endpoint(snapshot(instance), endpoint).rules)


def test_an_instance_by_its_id() -> None:
    store = snapshot("store_IN_0")
    assert find_source(store, None, "web_IN_1") == "10.0.0.5"
    answer = explain(store.endpoints[0], "10.0.0.5")
    assert answer["rule"] == {"action": "permit", "network": "10.0.0.5/32", "source": "web_IN_1"}


def test_what_cannot_be_asked() -> None:
    with pytest.raises(
        OperatorError, match="no instance web_IN_7 in service shop; it has web_IN_0, web_IN_1, store_IN_0"
    ):
        find_source(snapshot(), None, "web_IN_7")
    with pytest.raises(OperatorError, match=r"`nobody` is not an IP address"):
        find_source(snapshot(), "nobody", None)
    with pytest.raises(OperatorError, match=r"no endpoint `store/postgres` on web_IN_0, which has web/http-in"):
        find_endpoint(snapshot(), "store/postgres")


def test_a_file_alone_tells_of_every_role(tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(SERVICE)
    assert explain_file(str(file), "store/postgres", None, "web_IN_0")["verdict"] == "permit"
    rule = explain_file(str(file), "web/http-in", "203.0.113.1", None)["rule"]
    assert rule is not None
    assert rule["source"] == "service.yaml:12"
    with pytest.raises(OperatorError, match="no role `shop` with instances"):
        explain_file(str(file), "shop/postgres", "192.0.2.1", None)


def test_who_would_be_cut_by_endpoint_network_and_rule() -> None:
    flows = [("web/http-in", f"203.0.113.{n}") for n in range(5)] + [("web/http-in", "203.9.9.9")]
    flows += [("web/gone", "192.0.2.7"), ("web/gone", "2001:db8::1"), ("web/http-in", "8.8.8.8")]
    assert who_is_cut(flows, snapshot()) == [
        {
            "endpoint": "web/http-in",
            "network": "203.0.113.0/24",
            "why": "deny 203.0.113.0/24, service.yaml:12",
            "connections": 5,
        },
        {"endpoint": "web/gone", "network": "192.0.2.0/24", "why": "the endpoint is closed", "connections": 1},
        {"endpoint": "web/gone", "network": "2001:db8::/64", "why": "the endpoint is closed", "connections": 1},
        {
            "endpoint": "web/http-in",
            "network": "8.8.8.0/24",
            "why": "no rule matches; a `permit` stands in the list, so everyone else may not connect",
            "connections": 1,
        },
    ]


def test_nobody_would_be_cut_where_the_envelope_is_not_enforced() -> None:
    strict = snapshot()
    audit = replace(strict, endpoints=tuple(replace(row, enforce="audit") for row in strict.endpoints))
    flows = [("web/http-in", "203.0.113.1"), ("web/gone", "192.0.2.7")]
    assert [each["endpoint"] for each in who_is_cut(flows, audit)] == ["web/gone"]
    answer = explain(find_endpoint(audit, "web/http-in"), "203.0.113.1")
    assert (answer["verdict"], answer["enforce"]) == ("deny", "audit")
    assert "let in all the same" in explain_text(answer)
    assert "let in all the same" not in explain_text(answer | {"enforce": "strict"})


def test_who_may_reach_what() -> None:
    rows = {row["endpoint"]: (row["outside"], row["roles"]) for row in matrix(service())}
    assert rows == {
        "web/http-in": ("only 2 networks, less 1 network", {"web": "some", "store": "no"}),
        "web/open": ("everyone", {"web": "yes", "store": "yes"}),
        "web/closed": ("all but 1 network", {"web": "yes", "store": "yes"}),
        "store/postgres": ("no", {"web": "yes", "store": "no"}),
    }


def test_where_relays_talk_to_each_other_is_no_endpoint_that_somebody_reaches() -> None:
    told = service(SERVICE.replace("service: shop", "service: shop\nrelay_port: 7400"))
    assert matrix(told) == matrix(service())


def test_who_may_talk_to_a_relay(tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(SERVICE.replace("service: shop", "service: shop\nrelay_port: 7400"))
    assert explain_file(str(file), "store/@relay", None, "web_IN_1")["verdict"] == "permit"
    answer = explain_file(str(file), "store/@relay", "10.0.0.9", None)
    assert (answer["verdict"], answer["reason"], answer["why"]) == (
        "deny", "roster", "the machines of this service and nobody else",
    )  # fmt: skip
    file.write_text(file.read_text().replace("[10.0.0.4, 10.0.0.5]", "3"))
    with pytest.raises(OperatorError, match="does not say where the instances of web are"):
        explain_file(str(file), "store/@relay", "10.0.0.9", None)


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"]))),
    st.sampled_from(["10.1.2.3", "10.1.9.9", "10.9.9.9", "9.9.9.9"]),
)
def test_the_last_rule_that_was_looked_at_decides_or_none_does(rules: list[tuple[bool, str]], source: str) -> None:
    rows = tuple(RuleRow(permit, network, f"f:{n}") for n, (permit, network) in enumerate(rules))
    answer = explain(endpoint_row(rules=rows), source)
    if answer["rule"] is None:
        assert len(answer["looked_at"]) == len(rows)
    else:
        assert answer["looked_at"][-1] == answer["rule"]
        assert answer["verdict"] == answer["rule"]["action"]


@pytest.mark.parametrize("knows", [0, 1])
@pytest.mark.parametrize("distribution", ["five-tuple", "source-ip", "least-connections"])
@pytest.mark.parametrize("address", ["203.0.113.9", "2001:db8::9"])
def test_where_a_client_goes_is_where_a_worker_sends_it(distribution: str, address: str, knows: int) -> None:
    with new_ledger() as ledger:
        row = spread(distribution)
        pool = Pool(row, ledger.worker(0))
        pool.enter(0, 2)
        for n in range(4):
            ledger.words[ledger.worker(0).target_counts_at(n)[0] + TargetCount.KNOWS] = knows
        packed = ipaddress.ip_address(address).packed
        text = f"[{address}]" if ":" in address else address
        for down in (None, *range(4)):
            if down is not None:
                ledger.words[health_at(down)] = packed_health(Health.DOWN, why.of_error(errno.ECONNREFUSED), 1)
            for port in range(40000, 40008):
                place = pool.choose(packed, port, 80, 0, 0)
                answer = route(row, ledger, f"{text}:{port}")
                assert answer["target"] == (None if place is None else row.targets[place].text)
                assert (place is None) == (down == 3 and not knows)
                assert answer["instance"] == (None if place is None else f"web_IN_{place}")
                assert sorted(each["instance"] for each in answer["order"]) == [f"web_IN_{n}" for n in range(4)]
        assert {each["health"] for each in answer["order"]} == {"down"}
        assert ledger.target_total(0, TargetCount.ACTIVE) == 2


def test_what_decides_must_be_said() -> None:
    with new_ledger() as ledger:
        assert route(spread("source-ip"), ledger, "203.0.113.9")["target"]
        with pytest.raises(OperatorError, match="goes by the client's port as well; write `--client ADDRESS:PORT`"):
            route(spread(), ledger, "203.0.113.9")
        for row in (spread("instance"), endpoint_row()):
            with pytest.raises(OperatorError, match="web/in has one target for each port here"):
                route(row, ledger, "203.0.113.9:5")
        for wrong in ("", "nobody", "nobody:5", "203.0.113.9:", "203.0.113.9:x", "203.0.113.9:65536", "203.0.113.9:-1"):
            with pytest.raises(OperatorError, match="is no client; write an address, or `ADDRESS:PORT`"):
                route(spread(), ledger, wrong)


def test_who_came_directly_is_cut_when_an_edge_comes() -> None:
    before, row = snapshot(), find_endpoint(snapshot(), "web/open")
    behind = replace(before, endpoints=(replace(row, edges=("198.51.100.10",)),))
    why = "it is behind the edge now, and this came directly"
    expected = [{"endpoint": "web/open", "network": "8.8.8.0/24", "why": why, "connections": 2}]
    flows = [("web/open", "8.8.8.8"), ("web/open", "8.8.8.9")]
    assert who_is_cut(flows, behind, before) == expected
    assert who_is_cut(flows, behind, behind) == []
    told = explain_text(explain(behind.endpoints[0], "8.8.8.8"))
    assert "(by way of the edge, 198.51.100.10: directly nobody else connects here)" in told


@pytest.mark.parametrize(
    ("written", "source", "share"),
    [
        ("7", "203.0.113.9", {"limit": 7, "network": "203.0.113.9/32"}),
        ("7", "2001:db8::1", {"limit": 7, "network": "2001:db8::1/128"}),
        ("{limit: 7, ipv4: 24, ipv6: 64}", "203.0.113.9", {"limit": 7, "network": "203.0.113.0/24"}),
        ("{limit: 7, ipv4: 24, ipv6: 64}", "::ffff:203.0.113.9", {"limit": 7, "network": "203.0.113.0/24"}),
        ("{limit: 7, ipv4: 24, ipv6: 64}", "2001:db8::1:0:0:1", {"limit": 7, "network": "2001:db8:0:0::/64"}),
        ("", "203.0.113.9", None),
    ],
)
def test_with_whom_a_source_shares_its_limit(written: str, source: str, share: dict[str, object] | None) -> None:
    limits = f", limits: {{per_source: {written}}}" if written else ""
    made = snapshot(text=SERVICE.replace("target: 127.0.0.1:3001}", f"target: 127.0.0.1:3001{limits}}}"))
    answer = explain(find_endpoint(made, "web/open"), source)
    if share is not None:
        share = share | {"network": str(ipaddress.ip_network(str(share["network"])))}
    assert answer["per_source"] == share
    told = f"(of {share['network']} together at most 7 are open: `limits.per_source`)" if share else "per_source"
    assert (told in explain_text(answer)) is bool(share)


def test_a_file_with_counted_roles_tells_what_it_can(tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(
        "version: 1\nservice: shop\nroles:\n"
        "  web:\n    instances: 3\n    endpoints:\n"
        "      in: {type: input, public_port: 80, target: 'unix:/x', access: [{deny: 203.0.113.0/24}]}\n"
        "  store:\n    instances: [10.0.1.4]\n    endpoints:\n"
        "      pg: {type: internal, port: 5432, target: 'unix:/x', from: [web, store]}\n"
    )
    answer = explain_file(str(file), "web/in", "203.0.113.9", None)
    assert (answer["verdict"], answer["listen"]) == ("deny", "port 80")
    assert explain_file(str(file), "store/pg", "10.0.1.4", None)["verdict"] == "permit"
    with pytest.raises(OperatorError, match="does not say where the instances of web are, whom store/pg admits"):
        explain_file(str(file), "store/pg", "10.0.0.4", None)


@examples(200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 3]),  # weight
            st.booleans(),  # backup
            st.sampled_from([Health.UNKNOWN, Health.UP, Health.DOWN]),
            st.integers(0, 3),  # connections
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["five-tuple", "source-ip", "least-connections"]),
    st.sampled_from([None, ProbeRow("", 1, 1), ProbeRow("/", 1, 1)]),
    st.integers(1, 2**32 - 1),
)
def test_the_same_of_any_targets_with_weights_and_backups(
    targets: list[tuple[int, bool, int, int]], distribution: Any, probe: ProbeRow | None, client: int
) -> None:
    rows = tuple(
        TargetRow(f"10.0.0.{n}:80", host=f"10.0.0.{n}", port=80, slot=n, weight=weight, backup=backup)
        for n, (weight, backup, _, _) in enumerate(targets)
    )
    row = endpoint_row(targets=rows, distribution=distribution, probe=probe, direct=True)
    source = ipaddress.ip_address(client)
    with new_ledger() as ledger:
        pool = Pool(row, ledger.worker(0))
        for n, (_, _, health, active) in enumerate(targets):
            reason = why.of_error(111) if health == Health.DOWN else why.NOTHING
            ledger.words[health_at(n)] = packed_health(health, reason, 1)
            pool.enter(n, active)
        place = pool.choose(source.packed, 5, row.listen_port, 0, 1)
        told = route(row, ledger, f"{source}:5")
    assert told["target"] == (None if place is None else rows[place].text)
