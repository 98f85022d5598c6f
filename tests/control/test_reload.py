"""Preparing a configuration: everything that can fail fails here, and then nothing was opened."""

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.config.roster import Member
from relay.control import reload
from relay.control.in_force import InForce
from relay.control.reload import ConfigFiles, Prepared, start
from relay.errors import ConfigError, IdentityError, ListenError, OperatorError
from relay.kernel.listening import close_all
from tests.dataplane.rig import no_descriptors
from tests.ports import free_port, free_ports


class Files:
    """A service and a settings file, and what was prepared from them."""

    def __init__(self, directory: Path) -> None:
        self.service = directory / "service.yaml"
        self.settings = directory / "instance.yaml"
        self.sources = ConfigFiles(str(self.service), str(self.settings), settings_required=False, instance="web_IN_0")
        self.prepared: list[Prepared] = []

    def write(self, ports: dict[str, int], *, host: str = "127.0.0.1", settings: str = "", **keys: Any) -> None:
        """One role with these endpoints, each with `keys` besides."""
        endpoints = {
            name: {"type": "internal", "port": port, "target": "127.0.0.1:9", **keys} for name, port in ports.items()
        }
        roles = {"web": {"instances": [host], "endpoints": endpoints}}
        self.service.write_text(yaml.safe_dump({"version": 1, "service": "s", "roles": roles}))
        self.settings.write_text(settings)

    def prepare(self, old: Prepared | None = None) -> Prepared:
        """Start, or reload what is in force."""
        found = (
            reload.reload(self.sources, old.settings, InForce(old.service, old.snapshot), ())
            if old
            else start(self.sources)
        )
        self.prepared.append(found)
        return found


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    """The files; what was opened is closed."""
    made = Files(tmp_path)
    yield made
    for each in made.prepared:
        close_all(each.opened)


def ports(*names: str) -> dict[str, int]:
    return {name: free_port() for name in names}


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_start(files: Files) -> None:
    files.write(wanted := ports("a", "b"))
    found = files.prepare()
    assert (found.snapshot.generation, found.snapshot.instance) == (1, "web_IN_0")
    assert set(found.opened) == {f"127.0.0.1:{port}" for port in wanted.values()}
    assert all(is_open(port) for port in wanted.values())
    assert [change.action for change in found.plan.changes] == ["open", "open"]
    assert (found.warnings, found.notes) == ((), ())


def test_who_is_gone_comes_into_force_by_the_roster_and_stays_over_a_reload(files: Files) -> None:
    web = [Member("web", n, f"10.0.0.{n}") for n in range(3)]
    files.settings.write_text("")
    files.service.write_text(yaml.safe_dump({"version": 1, "service": "s", "roles": {
        "web": {"instances": 3}, "store": {"instances": ["127.0.0.1"], "endpoints": {}}}}))  # fmt: skip
    sources = replace(files.sources, instance="store_IN_0")
    found = start(sources)
    in_force = InForce(found.service, found.snapshot)

    def follow(registered: list[Member], gone: tuple[str, ...]) -> tuple[str, ...] | None:
        prepared = reload.follow(found.settings, in_force, registered, gone)
        if prepared is not None:
            in_force.snapshot = prepared.snapshot
        return None if prepared is None else prepared.snapshot.gone

    assert follow(web, ()) == ()
    assert follow(web[:1], ("10.0.0.1", "10.0.0.2")) == ("10.0.0.1", "10.0.0.2")
    assert follow(web[:1], ("10.0.0.2",)) is None, "that one is forgotten changes nothing"
    assert follow(web[:1], ()) is None
    assert reload.reload(sources, found.settings, in_force, web[:1]).snapshot.gone == ("10.0.0.1", "10.0.0.2")
    assert reload.reload(sources, found.settings, in_force, web[:2]).snapshot.gone == ("10.0.0.2",)
    assert follow(web[:2], ("10.0.0.2",)) == ("10.0.0.2",), "who is back is gone no more"
    assert follow(web[:2], ("10.0.0.1", "10.0.0.2")) is None, "nor is an address that somebody has"
    assert follow(web[:1], ("10.0.0.1",)) == ("10.0.0.1",)
    assert follow(web[:1], ("10.0.0.1", "127.0.0.1")) is None, "nor this machine's own"
    assert follow(web[:1], ("10.0.0.1", "10.0.0.9")) == ("10.0.0.1", "10.0.0.9"), "one whom the roster had left out"


def test_a_reload_opens_only_what_is_new(files: Files) -> None:
    files.write(first := ports("a", "b"))
    old = files.prepare()
    files.write({"b": first["b"], **(fresh := ports("c"))})
    new = files.prepare(old)
    assert new.snapshot.generation == 2
    assert list(new.opened) == [f"127.0.0.1:{fresh['c']}"]
    assert new.plan.close == (f"127.0.0.1:{first['a']}",)
    assert {row.name: row.slot for row in new.snapshot.endpoints} == {"web/b": 1, "web/c": 2}


def test_a_reload_of_the_same_files_changes_nothing(files: Files) -> None:
    files.write(ports("a"))
    old = files.prepare()
    new = files.prepare(old)
    assert (new.opened, new.plan.changes, new.plan.close, new.notes) == ({}, (), (), ())
    assert new.snapshot.generation == 2


def test_a_bad_file_opens_nothing(files: Files) -> None:
    files.write(ports("a"))
    old = files.prepare()
    files.write(wanted := ports("a", "b"), protcol="tcp")
    with pytest.raises(ConfigError, match="did you mean `protocol`"):
        files.prepare(old)
    assert not any(is_open(port) for port in wanted.values())


def test_a_missing_file(files: Files) -> None:
    files.write(ports("a"))
    old = files.prepare()
    files.service.unlink()
    with pytest.raises(ConfigError, match="no such file"):
        files.prepare(old)


def test_bad_settings_stop_it_too(files: Files) -> None:
    files.write(wanted := ports("a"), settings="drian: 2s\n")
    with pytest.raises(ConfigError, match="did you mean `drain`"):
        files.prepare()
    assert not is_open(wanted["a"])


def test_an_identity_that_is_gone(files: Files) -> None:
    files.write(ports("a"))
    old = files.prepare()
    files.service.write_text(files.service.read_text().replace("web:", "front:"))
    with pytest.raises(IdentityError, match="no role `web`"):
        files.prepare(old)


def test_all_or_nothing_when_the_second_port_is_taken(files: Files) -> None:
    files.write(wanted := ports("a", "b", "c"))
    with socket.create_server(("127.0.0.1", wanted["b"])):
        with pytest.raises(ListenError, match=f"127.0.0.1:{wanted['b']} for web/b: the address is in use"):
            files.prepare()
        assert not is_open(wanted["a"])
        assert not is_open(wanted["c"])
    files.prepare()


def test_a_port_that_is_taken_at_a_reload(files: Files) -> None:
    files.write(first := ports("a"))
    old = files.prepare()
    with socket.create_server(("127.0.0.1", 0)) as other:
        files.write({**first, "b": other.getsockname()[1]})
        with pytest.raises(ListenError, match="web/b"):
            files.prepare(old)
    assert is_open(first["a"]), "what stood still stands"


def test_out_of_descriptors_is_an_error_like_any_other(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload on a machine under load. Nothing but an OperatorError may come out, or nobody says READY=1 again."""
    files.write(ports("a", "b"))
    real = socket.socket
    made: list[socket.socket] = []

    def second_fails(*arguments: Any, **keys: Any) -> socket.socket:
        if not made:
            made.append(real(*arguments, **keys))
            return made[0]
        with no_descriptors():
            return real(*arguments, **keys)

    monkeypatch.setattr(socket, "socket", second_fails)
    try:
        with pytest.raises(OperatorError):
            files.prepare()
        assert [sock.fileno() for sock in made] == [-1], "the first one is closed again"
    finally:
        made[0].close()


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ("workers: 2\n", ["workers"]),
        ("address: 127.0.0.2\n", ["address"]),
        ("metrics: false\nadmin: {socket: /tmp/x.sock}\n", ["metrics", "admin"]),
        ("log: {format: text}\n", ["log.format"]),
        ("id: web_IN_0\n", ["id"]),
        ("log: {level: error}\ndrain: 1s\n", []),
    ],
)
def test_settings_that_take_a_restart(settings: str, keys: list[str], files: Files) -> None:
    files.write(wanted := ports("a"))
    old = files.prepare()
    files.write(wanted, settings=settings)
    new = files.prepare(old)
    assert list(new.notes) == [f"`{key}` in the settings changed; that takes a restart" for key in keys]
    assert new.opened == {}, "the address stays what it was"
    for key in ("id", "address", "workers", "metrics", "admin"):
        assert getattr(new.settings, key) == getattr(old.settings, key)


def test_settings_that_take_effect_at_once(files: Files) -> None:
    files.write(wanted := ports("a"), settings="drain: 9s\n")
    old = files.prepare()
    files.write(wanted, settings="log: {level: error}\ndrain: 1s\n")
    new = files.prepare(old)
    assert (old.snapshot.drain_s, new.snapshot.drain_s, new.snapshot.log_level) == (9.0, 1.0, "error")


def test_a_note_comes_again_until_the_restart(files: Files) -> None:
    files.write(wanted := ports("a"))
    begun = files.prepare()
    files.write(wanted, settings="workers: 2\n")
    first = files.prepare(begun)
    second = reload.reload(files.sources, begun.settings, InForce(first.service, first.snapshot), ())
    assert first.notes == second.notes != ()


@pytest.mark.parametrize("address", ["address: 127.0.0.1\n", ""], ids=["written", "the roster's"])
def test_metrics_where_an_endpoint_is(address: str, files: Files) -> None:
    wanted = ports("a")
    files.write(wanted, settings=f"{address}metrics: {{listen: '127.0.0.1:{wanted['a']}'}}\n")
    with pytest.raises(OperatorError, match=f"metrics.listen 127.0.0.1:{wanted['a']} is also where web/a listens"):
        files.prepare()


def test_metrics_inside_a_range(files: Files) -> None:
    first = free_ports(3)
    files.write({"a": 0}, settings=f"metrics: {{listen: '127.0.0.1:{first + 1}'}}\n")
    files.service.write_text(files.service.read_text().replace("port: 0", f"port: {first}-{first + 2}"))
    with pytest.raises(OperatorError, match=f"metrics.listen 127.0.0.1:{first + 1} is also where web/a listens"):
        files.prepare()


def test_every_port_of_a_range_is_opened_or_none(files: Files) -> None:
    first = free_ports(4)
    files.write({"a": 0})
    text = files.service.read_text()
    files.service.write_text(text.replace("port: 0", f"port: {first}-{first + 2}"))
    old = files.prepare()
    assert list(old.opened) == [f"127.0.0.1:{first + n}" for n in range(3)]
    with socket.create_server(("127.0.0.1", first + 3)):
        files.service.write_text(text.replace("port: 0", f"port: {first + 1}-{first + 3}"))
        with pytest.raises(ListenError, match=f"127.0.0.1:{first + 3} for web/a"):
            files.prepare(old)
    new = files.prepare(old)
    assert (list(new.opened), new.plan.close) == ([f"127.0.0.1:{first + 3}"], (f"127.0.0.1:{first}",))


def input_keys(*access: dict[str, str]) -> dict[str, Any]:
    return {"type": "input", "public_port": free_port(), "access": list(access)}


def test_a_filter_that_the_kernel_takes(files: Files, filters: None) -> None:
    files.write(ports("a"), **input_keys({"deny": "192.0.2.0/24"}), deny="drop")
    found = files.prepare()
    [row] = found.snapshot.endpoints
    assert (row.deny, found.notes) == ("drop", ())
    assert row.drop_filter


def test_a_filter_that_the_kernel_refuses_is_said_and_is_a_reset(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is let in for it, and the daemon starts: a new kernel must not be the end of the service."""
    monkeypatch.setattr(reload, "filter_refusal", lambda row: "no permission; grant it")
    files.write(ports("a"), **input_keys({"deny": "192.0.2.0/24"}), deny="drop")
    found = files.prepare()
    [row] = found.snapshot.endpoints
    assert (row.deny, row.drop_filter) == ("reset", "")
    assert found.notes == ("web/a: `deny: drop` is a reset here: no permission; grant it",)
    again = files.prepare(found)
    assert (again.notes, again.plan.changes) == (found.notes, ())


def test_warnings_come_along(files: Files) -> None:
    files.write(ports("a"), **input_keys({"deny": "192.0.2.7/24"}))
    [warning] = files.prepare().warnings
    assert "host bits" in warning.what


def test_rules_name_the_file_without_its_folders(files: Files) -> None:
    files.write(ports("a"), **input_keys({"deny": "192.0.2.0/24"}))
    [row] = files.prepare().snapshot.endpoints
    [rule] = row.rules
    name, _, line = rule.origin.partition(":")
    assert name == "service.yaml"
    assert "192.0.2.0/24" in files.service.read_text().splitlines()[int(line) - 1]


def test_nothing_is_inherited_by_programs_that_are_started(files: Files) -> None:
    files.write(ports("a"))
    [listener] = files.prepare().opened.values()
    assert not os.get_inheritable(listener.fileno())
