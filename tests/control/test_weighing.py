"""A weight by hand: whom it is for, how it is written, and what is kept of it over a restart of the daemon."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.config.settings import Settings
from relay.config.snapshot import Snapshot, TargetRow
from relay.config.weights import to_plain
from relay.control.weighing import keep, keep_in_force, path_of, recall, weighed_now, weight_in, with_one
from relay.errors import OperatorError
from tests.config.rig import endpoint_row, snapshot_of

MACHINE = "0123456789abcdef0123456789abcdef"


def snapshot(**keys: Any) -> Snapshot:
    targets = tuple(TargetRow(f"10.0.0.{n}:80", host=f"10.0.0.{n}", instance=f"web_IN_{n}", slot=n) for n in range(2))
    twice = tuple(TargetRow(f"10.0.0.9:{n}", host="10.0.0.9", instance=f"db_IN_{n}", slot=n + 2) for n in range(2))
    rows = [
        endpoint_row("web/in", targets=targets, distribution="five-tuple", slot=0),
        endpoint_row("web/db", targets=twice, distribution="least-connections", type="door", slot=1),
        endpoint_row("web/in@instance", targets=targets, distribution="instance", slot=2),
        endpoint_row("web/one", slot=3),
    ]
    return replace(snapshot_of(*rows), **keys)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "machine-id").write_text(MACHINE)
    return Settings.model_validate({"state": str(tmp_path), "machine_id": str(tmp_path / "machine-id")})


@pytest.mark.parametrize("called", ["web_IN_1", "10.0.0.1:80", "10.0.0.1"])
def test_a_target_has_several_names(called: str) -> None:
    weights, target = with_one(snapshot(), "web/in", called, 5)
    assert weights == {("web/in", "10.0.0.1:80"): 5}
    assert target.instance == "web_IN_1"


def test_one_more_and_one_less() -> None:
    before = snapshot(weights=(("web/in", "10.0.0.0:80", 2), ("web/in", "10.0.0.1:80", 3)))
    assert with_one(before, "web/in", "web_IN_0", 7)[0] == {("web/in", "10.0.0.0:80"): 7, ("web/in", "10.0.0.1:80"): 3}
    assert with_one(before, "web/in", "web_IN_0", None)[0] == {("web/in", "10.0.0.1:80"): 3}
    assert with_one(before, "web/db", "db_IN_1", None)[0] == {
        ("web/in", "10.0.0.0:80"): 2,
        ("web/in", "10.0.0.1:80"): 3,
    }


@pytest.mark.parametrize(
    ("name", "target", "told"),
    [
        ("web/in", "web_IN_2", r"no target `web_IN_2` at web/in; it has web_IN_0, web_IN_1"),
        ("web/in", "", r"no target `` at web/in"),
        ("web/db", "10.0.0.9", r"several targets of web/db are at `10.0.0.9`; it has db_IN_0, db_IN_1"),
        ("web/one", "127.0.0.1:3000", r"web/one has one target on web_IN_0, which gets every connection"),
        ("web/in@instance", "web_IN_0", r"web/in@instance has one target on"),
        ("web/x", "web_IN_0", r"no endpoint `web/x` with several targets on web_IN_0, which has web/in, web/db"),
    ],
)
def test_whom_there_is_not(name: str, target: str, told: str) -> None:
    with pytest.raises(OperatorError, match=told):
        with_one(snapshot(), name, target, 1)


def test_how_a_weight_is_written() -> None:
    assert [weight_in(text) for text in ("0", "256", "off")] == [0, 256, None]
    for text in ("257", "-1", "1.0", "", " 1", "\u0663", "On"):
        with pytest.raises(OperatorError, match="is no weight; write 0 to 256, or `off`"):
            weight_in(text)


def test_what_is_kept_is_recalled(settings: Settings) -> None:
    weights = {("web/in", "10.0.0.1:80"): 0, ("web/in", "unix:/run/a b.sock"): 256}
    assert recall(settings, "shop") == ({}, "")
    assert keep(settings, "shop", weights) == ""
    assert recall(settings, "shop") == (weights, "")
    assert recall(settings, "other") == ({}, "")


def test_what_is_in_force_is_kept_where_a_control_that_was_killed_had_yet_to(settings: Settings) -> None:
    before, after = {("web/in", "10.0.0.1:80"): 0}, {("web/in", "10.0.0.1:80"): 7}
    assert keep_in_force(settings, snapshot()) == ""
    assert not path_of(settings, "test").exists(), "there is nothing to keep"
    keep(settings, "test", before)
    assert keep_in_force(settings, snapshot(weights=to_plain(after))) == ""
    assert recall(settings, "test") == (after, "")
    written = path_of(settings, "test").stat().st_mtime_ns
    assert keep_in_force(settings, snapshot(weights=to_plain(after))) == ""
    assert path_of(settings, "test").stat().st_mtime_ns == written, "it stands there already"
    assert keep_in_force(settings, snapshot()) == ""
    assert recall(settings, "test") == ({}, ""), "the last one was taken back"


def test_what_is_no_weights_of_this_machine_stays_unless_there_are_others(settings: Settings) -> None:
    path = path_of(settings, "test")
    path.write_text("damaged")
    assert keep_in_force(settings, snapshot()) == ""
    assert path.read_text() == "damaged"
    weights = {("web/in", "10.0.0.1:80"): 7}
    assert keep_in_force(settings, snapshot(weights=to_plain(weights))) == ""
    assert recall(settings, "test") == (weights, "")


def test_a_copied_disk_carries_another_machines(settings: Settings) -> None:
    assert keep(settings, "shop", {("web/in", "10.0.0.1:80"): 0}) == ""
    Path(settings.machine_id).write_text(MACHINE[::-1])
    weights, told = recall(settings, "shop")
    assert weights == {}
    assert told.endswith("is another machine's: its weights are not in force")


def test_a_machine_without_an_id_keeps_them_all_the_same(settings: Settings) -> None:
    Path(settings.machine_id).unlink()
    assert keep(settings, "shop", {("web/in", "10.0.0.1:80"): 0}) == ""
    assert recall(settings, "shop") == ({("web/in", "10.0.0.1:80"): 0}, "")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', "[" * 100_000])
def test_a_damaged_file_is_said_and_costs_no_start(content: str, settings: Settings) -> None:
    path_of(settings, "shop").write_text(content)
    weights, told = recall(settings, "shop")
    assert weights == {}
    assert "is damaged" in told


def test_one_of_a_later_version(settings: Settings) -> None:
    path_of(settings, "shop").write_text(json.dumps({"format": 2}))
    assert "of a later version" in recall(settings, "shop")[1]


def test_one_that_cannot_be_read_is_said(settings: Settings) -> None:
    path_of(settings, "shop").mkdir()
    weights, told = recall(settings, "shop")
    assert weights == {}
    assert "The weights set by hand are not in force" in told


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    there = Settings.model_validate({"state": str(tmp_path / "nowhere"), "machine_id": "/nowhere"})
    told = keep(there, "shop", {("web/in", "10.0.0.1:80"): 0})
    assert told.startswith(f"cannot write {tmp_path}/nowhere/shop.weights.json: no such file")
    assert told.endswith("set another `state` in instance.yaml")


def test_the_answer_is_of_what_is_in_force() -> None:
    now = snapshot()
    row = now.endpoints[0]
    changed = replace(row.targets[0], weight=0, declared_weight=1)
    now = replace(now, endpoints=(replace(row, targets=(changed, row.targets[1])), *now.endpoints[1:]))
    assert weighed_now(now, "web/in", row.targets[0], "full") == {
        "endpoint": "web/in", "target": "10.0.0.0:80", "instance": "web_IN_0", "weight": 0, "declared_weight": 1,
        "by_hand": True, "trouble": "full",
    }  # fmt: skip
    assert weighed_now(now, "web/in", row.targets[1], "")["by_hand"] is False
