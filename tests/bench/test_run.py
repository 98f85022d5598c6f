"""The command line of the bench, and which axes it measures."""

import pytest
from axes import AXES
from run import chosen, parse_arguments


def names(*arguments: str) -> dict[str, list[str]]:
    return {pin: [axis.name for axis in axes] for pin, axes in chosen(parse_arguments([*arguments]))}


def test_every_axis_is_measured_without_a_word() -> None:
    options = parse_arguments([])
    assert (options.rounds, options.idle) == (10, 20_000)
    assert names() == {"auto": [axis.name for axis in AXES]}


def test_the_gate_has_both_pins_and_no_more_than_its_limits_ask_for() -> None:
    found = names("--gate")
    assert list(found) == ["one", "auto"]
    assert found["auto"] == ["bulk-down", "bulk-up", "bulk-down-8", "bulk-up-8", "tail"]
    assert set(found["one"]) == {axis.name for axis in AXES} - {"tail"}


def test_two_workers_are_measured_once() -> None:
    found = names("--pin", "one", "auto", "--axes", "cps", "workers")
    assert found == {"one": ["cps", "workers"], "auto": ["cps"]}


def test_over_a_network_there_are_messages_and_streams() -> None:
    bulk = ["bulk-down", "bulk-up", "bulk-down-8", "bulk-up-8"]
    assert names("--veth") == {"auto": [*bulk, "rr-1", "rr-64", "rr-4k", "rr-16k"]}


def test_an_edge_leads_to_plain_tcp() -> None:
    (found,) = names("--mode", "edge").values()
    assert set(found) == {axis.name for axis in AXES} - {"denied", "https", "http", "proxy", "idle", "workers"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--veth", "--gate"], "leave --veth out"),
        (["--mode", "edge", "--gate"], "neither --veth nor --gate"),
        (["--mode", "edge", "--veth"], "neither --veth nor --gate"),
        (["--mode", "edge", "--only", "nginx"], "nginx has no edge mode"),
        (["--veth", "--axes", "cps"], "cps is not measured like this"),
        (["--mode", "edge", "--axes", "denied"], "denied is not measured like this"),
        (["--seconds", "0"], "--seconds"),
        (["--rounds", "0"], "--rounds"),
        (["--idle", "0"], "--idle"),
        (["--pin", "two"], "--pin"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(arguments)
    assert complaint in capsys.readouterr().err


def test_a_picture_takes_what_draws_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(["--picture", "there"])
    assert "scripts/bootstrap bench" in capsys.readouterr().err
