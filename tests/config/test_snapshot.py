"""What one instance does, as JSON and back; and the rows that other tests are made of."""

import json
from dataclasses import MISSING, FrozenInstanceError, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.snapshot import FORMAT, SLOTS_MAX, EndpointRow, LaterFormatError, ProbeRow, Snapshot, TargetRow
from relay.envelope.rules import RuleRow
from relay.ledger.layout import SLOTS
from tests.config.rig import EDGE, SERVICE, compiled, endpoint_row, service, snapshot_of
from tests.harness import examples


def test_what_workers_get_has_no_rules_and_decides_alike() -> None:
    whole = compiled("web_IN_0")
    short = Snapshot.from_json(whole.for_workers().to_json())
    assert [row.rules for row in short.endpoints] == [()] * len(whole.endpoints)
    assert [row.table for row in short.endpoints] == [row.table for row in whole.endpoints]
    assert replace(short, endpoints=whole.endpoints, roster=whole.roster) == whole


def test_who_is_gone_is_told_to_workers_too() -> None:
    snapshot = snapshot_of(endpoint_row(), gone=("10.0.0.4", "2001:db8::1"))
    assert Snapshot.from_json(snapshot.to_json()) == snapshot
    assert Snapshot.from_json(snapshot.for_workers().to_json()).gone == snapshot.gone


def test_a_snapshot_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        compiled("web_IN_0").generation = 2  # type: ignore[misc]


def test_the_ledger_has_a_row_for_every_slot() -> None:
    assert SLOTS_MAX == SLOTS


@pytest.mark.parametrize("instance", ["web_IN_0", "web_IN_1", "store_IN_0"])
def test_json_comes_back_equal(instance: str) -> None:
    for text in (SERVICE, EDGE):
        snapshot = compiled(instance, service=service(text))
        assert Snapshot.from_json(snapshot.to_json()) == snapshot


PROBES = st.builds(
    ProbeRow,
    st.text(),
    st.floats(0.001, 86400),
    st.floats(0.001, 86400),
    port=st.integers(0, 65535),
    send=st.text(st.characters(max_codepoint=255)),
    expect=st.text(st.characters(max_codepoint=255)),
    statuses=st.lists(st.integers(200, 599)).map(tuple),
    tls=st.sampled_from(["auto", "off", "on", "verify"]),
    rise=st.integers(1, 100),
    fall=st.integers(1, 100),
    on_down=st.sampled_from(["keep", "cut"]),
)


@examples(50)
@given(
    st.builds(
        endpoint_row,
        name=st.from_regex(r"\A[a-z]{1,5}/[a-z._-]{1,8}\Z"),
        slot=st.integers(0, SLOTS_MAX - 1),
        targets=st.lists(
            st.builds(
                TargetRow, st.text(), host=st.text(), path=st.text(), slot=st.integers(-1, 9), instance=st.text()
            ),
            min_size=1,
        ).map(tuple),
        edges=st.lists(st.text()).map(tuple),
        distribution=st.sampled_from([None, "five-tuple", "source-ip", "least-connections", "instance"]),
        probe=st.none() | PROBES,
        dial_from=st.text(),
        transparent=st.booleans(),
        port_count=st.integers(1, 1024),
        rules=st.lists(st.builds(RuleRow, st.booleans(), st.text(), st.text())).map(tuple),
        enforce=st.sampled_from(["strict", "audit"]),
        deny=st.sampled_from(["reset", "drop"]),
        drop_filter=st.binary().map(bytes.hex),
        rate_per_s=st.none() | st.floats(0.01, 1e7),
        idle_s=st.none() | st.floats(0.001, 86400),
        keepalive_s=st.none() | st.floats(0.001, 86400),
        dead_s=st.none() | st.floats(0.001, 86400),
        send_proxy=st.sampled_from([None, "v1", "v2"]),
    )
)
def test_any_row_comes_back_equal(row: EndpointRow) -> None:
    snapshot = snapshot_of(row, row)
    assert Snapshot.from_json(snapshot.to_json()) == snapshot


@pytest.mark.parametrize("change", [{"format": 1}, {"format": "1"}, {"format": None}])
def test_another_format_is_refused(change: dict[str, Any]) -> None:
    raw = json.loads(compiled("web_IN_0").to_json()) | change
    with pytest.raises(ValueError, match="another version"):
        Snapshot.from_json(json.dumps(raw).encode())


def test_what_a_later_version_wrote_is_read_as_far_as_it_is_known() -> None:
    """A worker of the program before, in the midst of an upgrade. It works by all that it knows of."""
    snapshot = compiled("web_IN_0")
    raw = json.loads(snapshot.to_json())
    raw |= {"format": FORMAT + 2, "readable_from": FORMAT, "later": 1}
    for row in raw["endpoints"]:
        row["later"] = {"of": ["any", "kind"]}
        for each in (*row["targets"], *row["rules"]):
            each["later"] = True
    assert Snapshot.from_json(json.dumps(raw).encode()) == snapshot


def test_what_must_not_be_passed_over_is_not_read() -> None:
    raw = json.loads(compiled("web_IN_0").to_json()) | {"format": FORMAT + 2, "readable_from": FORMAT + 1}
    with pytest.raises(LaterFormatError, match="later version"):
        Snapshot.from_json(json.dumps(raw).encode())


def test_what_has_its_default_is_not_written() -> None:
    """So a reader that knows no such key, and takes no unknown ones, can read it: that of the first FORMAT 7."""
    [row] = json.loads(snapshot_of(endpoint_row(dead_s=None, keepalive_s=None)).to_json())["endpoints"]
    bare = {each.name for each in fields(EndpointRow) if each.default is MISSING}
    assert set(row) == bare | {"edges", "probe", "table"}
    assert "readable_from" not in json.loads(snapshot_of().to_json())
    [row] = json.loads(snapshot_of(endpoint_row(transparent=True, dead_s=3.0)).to_json())["endpoints"]
    assert (row["transparent"], row["dead_s"]) == (True, 3.0)
    for probe in (ProbeRow("/", 1.0, 2.0), ProbeRow("/", 1.0, 2.0, "relay", fall=2)):
        [row] = json.loads(snapshot_of(endpoint_row(probe=probe)).to_json())["endpoints"]
        fall = {"fall": 2} if probe.fall > 1 else {}
        assert row["probe"] == {"path": "/", "interval_s": 1.0, "timeout_s": 2.0, "kind": probe.kind} | fall


@pytest.mark.parametrize("key", ["endpoints", "generation", "service"])
def test_a_snapshot_that_is_not_whole_is_refused(key: str) -> None:
    raw = json.loads(compiled("web_IN_0").to_json())
    del raw[key]
    with pytest.raises(ValueError, match="not whole"):
        Snapshot.from_json(json.dumps(raw).encode())


def test_one_port_is_an_address_as_ever() -> None:
    row = endpoint_row(listen_port=80)
    assert (row.listen, row.listens) == ("127.0.0.1:80", {"127.0.0.1:80": 80})
