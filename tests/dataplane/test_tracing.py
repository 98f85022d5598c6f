"""Where a process is, as the interpreter tells it."""

import ctypes
from collections.abc import Iterator

import pytest

from relay.dataplane.tracing import CALL, LINE, RETURN, Traced, places, trace
from relay.ledger.layout import Word
from tests.ledger.rig import new_ledger


@pytest.fixture
def untraced() -> Iterator[None]:
    yield
    ctypes.pythonapi.PyEval_SetTrace(None, None)
    ctypes.pythonapi.PyEval_SetProfile(None, None)


def test_every_function_has_a_place() -> None:
    place = places()["WorkerLedger.advance"]
    assert place.file == "relay/ledger/ledger.py"
    assert [text.partition(" ")[2] for text in place.lines.values()] == [
        "+2 at = index * _RECORD_INTS",
        "+3 self._ints[at + _TARGET] = target_fd",
        "+4 self._ints[at] = state",
    ]


@pytest.mark.told
@pytest.mark.parametrize("lines", [False, True])
def test_calls_lines_and_returns_are_told(untraced: None, lines: bool) -> None:
    told: list[tuple[str, int, str]] = []

    def follow(place: Traced, what: int, line: int) -> None:
        told.append((place.name, what, place.lines.get(line, "") if what == LINE else ""))

    with new_ledger() as ledger:
        part = ledger.worker(0)
        trace([places()["WorkerLedger.advance"]], follow, lines=lines)
        part.advance(0, 3, 7)
        part.flag(0, 1)
        assert part[Word.PID] == 0
    name = "WorkerLedger.advance"
    at = [(name, LINE, text) for text in places()[name].lines.values()] if lines else []
    assert told == [(name, CALL, ""), *at, (name, RETURN, "")]
