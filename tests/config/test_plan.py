"""The difference of two snapshots, applied: it leads from the one to the other, and says no more than that."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.plan import Change, plan
from relay.config.snapshot import EndpointRow, Snapshot
from relay.envelope.rules import RuleRow
from tests.config.rig import compiled, endpoint_row, service, snapshot_of
from tests.harness import examples


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """A few endpoints, no two on one port: what a service file that checks can hold."""
    names = draw(st.lists(st.sampled_from("abcdef"), unique=True, max_size=6))
    ports = draw(st.lists(st.sampled_from(range(1, 40, 5)), unique=True, min_size=len(names), max_size=len(names)))
    counts = draw(st.lists(st.integers(1, 5), min_size=len(names), max_size=len(names)))
    host = draw(st.sampled_from(["10.0.0.1", "2001:db8::1"]))
    idles = draw(st.lists(st.sampled_from([None, 5.0]), min_size=len(names), max_size=len(names)))
    return snapshot_of(
        *(
            endpoint_row(f"web/{name}", listen_port=port, port_count=count, listen_host=host, idle_s=idle_s, slot=slot)
            for slot, (name, port, count, idle_s) in enumerate(zip(names, ports, counts, idles, strict=True))
        ),
        generation=draw(st.integers(1, 9)),
    )


def listening(snapshot: Snapshot | None) -> set[str]:
    return {address for row in snapshot.endpoints for address in row.listens} if snapshot else set()


def named(snapshot: Snapshot | None) -> dict[str, EndpointRow]:
    # The slot is bookkeeping, not a promise of the file.
    return {row.name: replace(row, slot=0) for row in snapshot.endpoints} if snapshot else {}


@examples(80)
@given(old=st.none() | snapshots(), new=snapshots())
def test_applied_it_gives_exactly_what_is_declared(old: Snapshot | None, new: Snapshot) -> None:
    found = plan(old, new)
    opened = {each.address for each in found.open}
    assert opened.isdisjoint(listening(old)), "a socket that stands is kept, and its backlog with it"
    assert set(found.close) <= listening(old)
    assert (listening(old) - set(found.close)) | opened == listening(new)
    assert len(found.open) == len(opened)
    assert len(found.close) == len(set(found.close))
    assert {each.row for each in found.open} <= set(new.endpoints)
    assert all(each.row.listens[each.address] == each.port for each in found.open)


@examples(80)
@given(old=st.none() | snapshots(), new=snapshots())
def test_it_names_every_endpoint_that_differs_and_no_other(old: Snapshot | None, new: Snapshot) -> None:
    before, after = named(old), named(new)
    actions = {change.endpoint: change.action for change in plan(old, new).changes}
    assert len(actions) == len(plan(old, new).changes)
    assert actions == (
        {name: "close" for name in before if name not in after}
        | {name: "open" for name in after if name not in before}
        | {name: "change" for name in after if name in before and before[name] != after[name]}
    )


@examples(30)
@given(snapshots())
def test_no_difference(snapshot: Snapshot) -> None:
    found = plan(snapshot, replace(snapshot, generation=snapshot.generation + 1))
    assert (found.changes, found.open, found.close) == ((), (), ())


@pytest.mark.parametrize(
    ("keys", "named_keys"),
    [
        ({"idle_s": 1.0}, ("idle_s",)),
        ({"listen_port": 81}, ("listen_port",)),
        ({"port_count": 2}, ("port_count",)),
        ({"protocol": "http", "per_source": 3}, ("protocol", "per_source")),
        ({"per_source_ipv4_bits": 24, "per_source_ipv6_bits": 64}, ("per_source_ipv4_bits", "per_source_ipv6_bits")),
        ({"rules": (RuleRow(True, "10.0.0.0/8", "f:1"),), "permit_unmatched": False}, ("rules", "permit_unmatched")),
        ({"slot": 9}, ()),
    ],
)
def test_a_change_names_what_differs(keys: dict[str, Any], named_keys: tuple[str, ...]) -> None:
    old = endpoint_row(listen_port=80)
    new = replace(old, **keys)
    expected = (Change("change", "web/in", new.listen, named_keys),) if named_keys else ()
    assert plan(snapshot_of(old), snapshot_of(new)).changes == expected


def test_in_words() -> None:
    old = snapshot_of(endpoint_row("web/a", listen_port=1), endpoint_row("web/b", listen_port=2))
    new = snapshot_of(endpoint_row("web/b", listen_port=2, idle_s=1.0), endpoint_row("web/c", listen_port=3))
    assert [str(change) for change in plan(old, new).changes] == [
        "close web/a on 127.0.0.1:1",
        "change web/b on 127.0.0.1:2 (idle_s)",
        "open web/c on 127.0.0.1:3",
    ]


def test_a_range_that_moves_opens_and_closes_only_what_differs() -> None:
    old = snapshot_of(endpoint_row(listen_port=10, port_count=3))
    new = snapshot_of(endpoint_row(listen_port=11, port_count=4))
    found = plan(old, new)
    assert [(each.address, each.port) for each in found.open] == [("127.0.0.1:13", 13), ("127.0.0.1:14", 14)]
    assert found.close == ("127.0.0.1:10",)
    assert [str(change) for change in found.changes] == ["change web/in on 127.0.0.1:11-14 (listen_port, port_count)"]


def test_an_address_that_changes_hands_stays_open() -> None:
    old = snapshot_of(endpoint_row("web/a", listen_port=1), endpoint_row("web/b", listen_port=2))
    new = snapshot_of(endpoint_row("web/a", listen_port=2), endpoint_row("web/b", listen_port=1))
    found = plan(old, new)
    assert (found.open, found.close) == ((), ())
    assert [change.action for change in found.changes] == ["change", "change"]


def test_a_comment_in_the_file_is_no_change() -> None:
    """A rule's line moves, and nothing else does."""
    text = """\
version: 1
service: s
roles:
  web:
    instances: [10.0.0.4]
    endpoints:
      in: {type: input, public_port: 80, target: "127.0.0.1:1", access: [{deny: 192.0.2.7}]}
"""
    old = compiled("web_IN_0", service=service(text))
    new = compiled("web_IN_0", service=service("# a comment more\n" + text))
    assert plan(old, new).changes == ()


def test_other_settings_of_the_snapshot_are_changes_too() -> None:
    """`relay reload` says "nothing changed" when there is no change: it must not, with another drain in force."""
    old = snapshot_of(endpoint_row(listen_port=80))
    assert plan(old, replace(old, drain_s=1.0)).changes
    assert plan(old, replace(old, log_level="debug")).changes
