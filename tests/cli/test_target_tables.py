"""What is behind an endpoint, for people: shares that are not all alike are told, and those set by hand catch the eye."""

from typing import Any

import pytest

from relay.cli.tables import status_text
from relay.cli.target_tables import by_hand, leads_to, target_sets, weight_of, weights_text


def target(number: int, **keys: Any) -> dict[str, Any]:
    return {
        "target": f"10.0.0.{number}:80", "instance": f"web_IN_{number}", "health": "up", "reason": "", "since_s": 9.0,
        "looked_s": 1.0, "looked": "probed", "active": 2, "connected": 30, "failures": 0, "ejections": 0, "retries": 0,
        "ejected_for_s": 0.0, "mean_connect_s": None, "weight": 1, "declared_weight": None, "share": 1.0, "backup": False,
    } | keys  # fmt: skip


def endpoint(*targets: dict[str, Any], **keys: Any) -> Any:
    found: Any = {
        "name": "web/in", "distribution": "five-tuple", "leads_to": "", "targets": [each["target"] for each in targets],
        "target_set": list(targets),
    }  # fmt: skip
    return found | keys


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({}, "1"),
        ({"weight": 0}, "0"),
        ({"weight": 0, "declared_weight": 3}, "0 by hand (3 in the file)"),
        ({"weight": 3, "backup": True}, "3 backup"),
        ({"weight": 3, "share": 0.4}, "3 (40% so far)"),
    ],
)
def test_a_weight_in_words(keys: dict[str, Any], text: str) -> None:
    assert weight_of(target(0, **keys)) == text


def test_weights_are_a_column_where_they_say_something() -> None:
    alike = target_sets([endpoint(target(0), target(1))])
    assert "WEIGHT" not in alike[1]
    lines = target_sets([endpoint(target(0), target(1, weight=2))])[1].splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "ENDPOINT INSTANCE TARGET IS WEIGHT ACTIVE CONNECTED FAILURES EJECTIONS",
        "web/in web_IN_0 10.0.0.0:80 up, probed 1s ago 1 2 30 0 0",
        "web_IN_1 10.0.0.1:80 up, probed 1s ago 2 2 30 0 0",
    ]


def test_what_was_set_by_hand_is_said_with_the_way_back() -> None:
    own = target(1, target="unix:/run/a.sock", instance="", weight=0, declared_weight=1)
    assert by_hand([endpoint(target(0, weight=5, declared_weight=1), own)]) == [
        "WEIGHT: web/in: web_IN_0 has 5 by hand (1 in the file) (`relay weight web/in web_IN_0 off`)",
        "WEIGHT: web/in: unix:/run/a.sock has 0 by hand (1 in the file) (`relay weight web/in unix:/run/a.sock off`)",
    ]
    assert by_hand([endpoint(target(0))]) == []


def test_how_many_are_behind_it() -> None:
    assert leads_to(endpoint(target(0))) == "1 instance"
    assert leads_to(endpoint(target(0), target(1), leads_to="store/pg")) == "store/pg: 2 instances"
    own = [target(n, instance="") for n in range(3)]
    assert leads_to(endpoint(*own)) == "3 targets"
    assert leads_to(endpoint()) == "0 instances"


def test_all_weights() -> None:
    lines = weights_text([endpoint(target(0), target(1, weight=4, backup=True))]).splitlines()
    assert [line.split() for line in lines] == [
        ["ENDPOINT", "INSTANCE", "TARGET", "WEIGHT", "ACTIVE"],
        ["web/in", "web_IN_0", "10.0.0.0:80", "1", "2"],
        ["web/in", "web_IN_1", "10.0.0.1:80", "4", "backup", "2"],
    ]
    assert weights_text([]) == "no endpoint has several targets here"


def test_the_status_begins_with_it() -> None:
    """So that a canary that was forgotten is seen at three in the morning."""
    from tests.cli.test_tables import status

    [plain] = status()["endpoints"]
    edge = plain | endpoint(target(0, weight=0, declared_weight=1))
    assert status_text(status(endpoints=[edge])).splitlines()[3].startswith("WEIGHT: web/in: web_IN_0 has 0 by hand")
