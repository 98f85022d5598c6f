"""Lines from a process to standard error: whole, in order, and never at the cost of the process that wrote them."""

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from relay import log as logging
from relay.log import Level, Logger
from tests.harness import HANG_S
from tests.logs import waiting

Ends = tuple[socket.socket, socket.socket]

LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")


@pytest.fixture
def ends() -> Iterator[Ends]:
    """(writing end, reading end) of the log's channel."""
    sink, source = logging.channel()
    with sink, source:
        yield sink, source


def test_an_event_is_one_json_line(ends: Ends) -> None:
    sink, source = ends
    Logger(sink, "worker-0", "info").event("info", "reloaded", generation=2, changes=["a", "b"])
    [line] = waiting(source)
    record = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("time"))
    assert record == {
        "level": "info", "event": "reloaded", "process": "worker-0", "generation": 2, "changes": ["a", "b"],
    }  # fmt: skip


def test_a_line_break_in_a_fact_makes_no_second_line(ends: Ends) -> None:
    sink, source = ends
    Logger(sink, "x", "info").event("error", "bug", traceback="one\ntwo\u2028three")
    [line] = waiting(source)
    assert json.loads(line)["traceback"] == "one\ntwo\u2028three"


@pytest.mark.parametrize("level", LEVELS)
def test_levels(level: Level, ends: Ends) -> None:
    sink, source = ends
    log = Logger(sink, "x", level)
    for each in LEVELS:
        log.event(each, each)
    written = LEVELS[LEVELS.index(level) :]
    assert tuple(json.loads(line)["event"] for line in waiting(source)) == written
    assert tuple(each for each in LEVELS if log.wants(each)) == written


def test_added_lines_wait_for_the_flush_and_keep_their_order(ends: Ends) -> None:
    sink, source = ends
    log = Logger(sink, "x", "info")
    log.add('{"n":0}')
    log.add('{"n":1}')
    assert waiting(source) == []
    log.event("info", "third")
    assert [json.loads(line).get("n") for line in waiting(source)] == [0, 1, None]


def test_many_lines_are_sent_without_a_flush(ends: Ends) -> None:
    sink, source = ends
    log = Logger(sink, "x", "info")
    for n in range(1000):
        log.add(json.dumps({"n": n}))
    log.flush()
    assert [json.loads(line)["n"] for line in waiting(source)] == list(range(1000))
    assert log.dropped == 0


def test_lines_that_nobody_takes_are_dropped_and_counted(ends: Ends) -> None:
    sink, source = ends
    log = Logger(sink, "x", "info")
    for n in range(5000):
        log.event("info", "line", n=n)
    kept = [json.loads(line)["n"] for line in waiting(source)]
    assert kept == list(range(len(kept)))
    assert 0 < len(kept) < 5000
    assert log.dropped == 5000 - len(kept)
    log.event("info", "room again")
    assert len(waiting(source)) == 1


def test_a_reader_that_is_gone_raises_nothing(ends: Ends) -> None:
    sink, source = ends
    source.close()
    log = Logger(sink, "x", "info")
    log.event("info", "nobody")
    assert log.dropped == 1
    logging.end(sink)


@pytest.mark.parametrize("length", [40_000, 140_000, 400_000])
def test_a_very_long_line_is_not_lost(length: int, ends: Ends, capfd: pytest.CaptureFixture[str]) -> None:
    """A bad file with a thousand mistakes makes one: `reload failed` lists them all."""
    sink, source = ends
    pen = threading.Thread(target=logging.copy_forever, args=(source, "json"), daemon=True)
    pen.start()
    Logger(sink, "control", "info").event("error", "reload failed", message="x" * length)
    sink.send(b"\0")
    pen.join(HANG_S)
    [line] = capfd.readouterr().err.splitlines()
    record = json.loads(line)
    assert record["event"] == "reload failed"
    assert record["message"].startswith("x" * 1000)


def written(
    lines: list[str],
    format_name: Literal["json", "text", "auto"],
    ends: Ends,
    capfd: pytest.CaptureFixture[str],
) -> str:
    """What the pen writes to standard error for these lines."""
    sink, source = ends
    pen = threading.Thread(target=logging.copy_forever, args=(source, format_name), daemon=True)
    pen.start()
    sink.sendall(("\n".join(lines) + "\n").encode())
    sink.send(b"\0")
    pen.join(HANG_S)
    assert not pen.is_alive()
    return capfd.readouterr().err


RECORD: dict[str, Any] = {
    "time": "2026-01-02T03:04:05.678Z", "level": "warning", "event": "denied", "message": "said", "peer": "1.2.3.4:5",
    "n": 0, "empty": "", "none": None,
}  # fmt: skip


@pytest.mark.parametrize("format_name", ["json", "auto"])
def test_json_is_passed_on_as_it_is(
    format_name: Literal["json", "auto"],
    ends: Ends,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    lines = [json.dumps(RECORD), '{"a":1}']
    assert written(lines, format_name, ends, capfd) == "\n".join(lines) + "\n"


def test_text_is_for_people(ends: Ends, capfd: pytest.CaptureFixture[str]) -> None:
    text = written([json.dumps(RECORD), "no json", "{}"], "text", ends, capfd)
    assert text.splitlines()[:2] == ["03:04:05.678 warning denied said peer=1.2.3.4:5 n=0", "no json"]


def test_the_journal_gets_priorities(
    ends: Ends, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{at.st_dev}:{at.st_ino}")
    lines = [json.dumps({"level": level}) for level in LEVELS]
    text = written([*lines, "no json"], "json", ends, capfd)
    assert text.splitlines() == [f"<{n}>{line}" for n, line in zip((7, 6, 4, 3), lines, strict=True)] + ["no json"]


def test_a_closed_standard_error_ends_nothing(ends: Ends) -> None:
    sink, source = ends
    kept = os.dup(2)
    try:
        os.close(2)
        sink.sendall(b"{}\n")
        sink.send(b"\0")
        logging.copy_forever(source, "json")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
