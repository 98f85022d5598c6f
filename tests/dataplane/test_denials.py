"""Log lines about refusals: enough to see who it is, and never a flood."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from relay import log as logging
from relay.dataplane.denials import Denials
from relay.log import Logger
from tests.logs import waiting


@pytest.fixture
def denials() -> Iterator[tuple[Denials, socket.socket]]:
    """Refusals, and the socket that their lines come out of."""
    sink, source = logging.channel()
    with sink, source:
        yield Denials(Logger(sink, "worker-0", "info")), source


def records(source: socket.socket) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in waiting(source)]
    assert {line["event"] for line in lines} <= {"denied", "would deny", "dial"}
    return lines


def test_the_first_of_a_second_are_written_in_full(denials: tuple[Denials, socket.socket]) -> None:
    made, source = denials
    made.note("web/in", "192.0.2.1:5", "access")
    [line] = records(source)
    assert (line["endpoint"], line["peer"], line["reason"], line["level"]) == (
        "web/in", "192.0.2.1:5", "access", "warning",
    )  # fmt: skip
    made.tick()
    assert records(source) == []


def test_the_rest_is_counted_by_endpoint_and_reason(denials: tuple[Denials, socket.socket]) -> None:
    made, source = denials
    for n in range(10):
        made.note("web/in", f"192.0.2.1:{n}", "access")
    assert len(records(source)) == 10
    for n in range(1000):
        made.note("web/in", f"192.0.2.1:{n}", "access")
        made.note("web/other", f"192.0.2.1:{n}", "rate")
    assert records(source) == []
    made.tick()
    left = [(line["endpoint"], line["reason"], line["left_out"]) for line in records(source)]
    assert left == [("web/in", "access", 1000), ("web/other", "rate", 1000)]


def test_those_of_whom_only_the_number_is_known(denials: tuple[Denials, socket.socket]) -> None:
    made, source = denials
    made.note_unseen("web/in", "access", 40)
    made.note("web/in", "192.0.2.1:5", "access")
    assert len(records(source)) == 1
    made.tick()
    [line] = records(source)
    assert (line["event"], line["endpoint"], line["reason"], line["left_out"]) == ("denied", "web/in", "access", 40)


def test_each_second_begins_anew(denials: tuple[Denials, socket.socket]) -> None:
    made, source = denials
    for _ in range(3):
        for n in range(15):
            made.note("web/in", f"192.0.2.1:{n}", "access")
        made.tick()
        assert [line.get("left_out") for line in records(source)] == [*[None] * 10, 5]


def test_what_would_be_refused_is_told_apart_and_takes_no_line_away(denials: tuple[Denials, socket.socket]) -> None:
    made, source = denials
    for n in range(30):
        made.note("web/in", f"192.0.2.1:{n}", "access", event="would deny")
    made.note("web/in", "192.0.2.2:1", "access")
    events = [line["event"] for line in records(source)]
    assert events == [*["would deny"] * 10, "denied"]
    made.tick()
    [line] = records(source)
    assert (line["event"], line["endpoint"], line["reason"], line["left_out"]) == ("would deny", "web/in", "access", 20)


def test_what_this_machine_cannot_dial_is_told_once_a_second(denials: tuple[Denials, socket.socket]) -> None:
    made, source = denials
    made.note("web/in", "192.0.2.1:5", "access")
    for n in range(5):
        made.note("web/in", f"192.0.2.9:{n}", "not permitted", event="dial")
    made.tick()
    first, *told = records(source)
    assert (first["event"], first["level"]) == ("denied", "warning")
    assert [(line["level"], line.get("peer"), line.get("left_out")) for line in told] == [
        ("error", "192.0.2.9:0", None),
        ("error", None, 4),
    ]
