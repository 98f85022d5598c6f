"""Names at work: they follow roster and health, on a socket and in a hosts file; and what was asked outlives control."""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import dns.message
import dns.rdatatype
import pytest

from relay.config import reading
from relay.config.document import parse
from relay.config.load import parse_service
from relay.config.roster import Member, Roster
from relay.config.settings import Names
from relay.control import name_service as naming_module
from relay.control.discovery import Fleet
from relay.control.name_service import Naming
from relay.ledger.layout import NAMES_RCODES, DaemonWord
from relay.ledger.ledger import Ledger
from relay.names.server import open_names_sockets
from tests.control.rig import Logged
from tests.harness import HANG_S, eventually
from tests.ledger.rig import new_ledger

SERVICE = parse_service(
    parse(
        b"version: 1\nservice: shop\nroles:\n  web: {instances: 3}\n"
        b"  store: {instances: [10.0.1.4], endpoints: {pg: {type: internal, port: 5432, target: 'unix:/x'}}}\n",
        "service.yaml",
    )
).value


def fleet_of(*members: Member, avoided: Iterable[str] = ()) -> Fleet:
    return Fleet(SERVICE, Roster.of_service(SERVICE, members), "store_IN_0", None, dict.fromkeys(avoided, "down"))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes do not wait for one another."""
    monkeypatch.setattr(naming_module, "_PAUSE_S", 0.0)
    monkeypatch.setattr(naming_module, "_END_S", HANG_S)  # an end waits until all is written, on a busy machine too


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with new_ledger() as made:
        yield made


@pytest.fixture
def logged() -> Iterator[Logged]:
    with contextlib.closing(Logged()) as made:
        yield made


async def asked(port: int, name: str, kind: str = "A") -> tuple[str, set[str]]:
    """The response code and the addresses of an answer over UDP."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.connect(("127.0.0.1", port))
        await loop.sock_sendall(client, dns.message.make_query(name, kind).to_wire())
        answer = dns.message.from_wire(await asyncio.wait_for(loop.sock_recv(client, 4096), HANG_S))
    code = answer.rcode().name if hasattr(answer.rcode(), "name") else str(answer.rcode())
    return code, {str(record) for rrset in answer.answer for record in rrset}


async def test_names_follow_roster_and_health(ledger: Ledger, logged: Logged) -> None:
    naming = Naming(Names.model_validate({"listen": "127.0.0.1:5353"}), ledger, logged.log)
    udp, tcp = open_names_sockets("127.0.0.1", 0)
    port = udp.getsockname()[1]
    one, other = Member("web", 0, "10.0.0.4"), Member("web", 2, "10.0.0.6")
    naming.follow(fleet_of(one))
    await naming.serve(udp, tcp)
    try:
        assert await asked(port, "web.shop.internal") == ("NOERROR", {"10.0.0.4"})
        assert (await asked(port, "web-2.web.shop.internal"))[0] == "NXDOMAIN"
        naming.follow(fleet_of(one, other))
        assert await asked(port, "web.shop.internal") == ("NOERROR", {"10.0.0.4", "10.0.0.6"})
        naming.follow(fleet_of(one, other, avoided=("web_IN_0",)))
        assert await asked(port, "web.shop.internal") == ("NOERROR", {"10.0.0.6"})
        naming.follow(fleet_of(one, replace(other, busy=True)))
        assert await asked(port, "web.shop.internal") == ("NOERROR", {"10.0.0.4"})
        assert (await asked(port, "example.org"))[0] == "REFUSED"
    finally:
        await naming.end()
    counted = {rcode: ledger.words[DaemonWord.NAMES_QUERIES + n] for n, rcode in enumerate(NAMES_RCODES)}
    assert counted == dict.fromkeys(NAMES_RCODES, 0) | {"NOERROR": 4, "NXDOMAIN": 1, "REFUSED": 1}


async def test_what_was_asked_is_counted_on_by_the_next_control(ledger: Ledger, logged: Logged) -> None:
    for total in (1, 2):
        naming = Naming(Names.model_validate({"listen": "127.0.0.1:5353"}), ledger, logged.log)
        udp, tcp = open_names_sockets("127.0.0.1", 0)
        naming.follow(fleet_of())
        await naming.serve(udp, tcp)
        await asked(udp.getsockname()[1], "store.shop.internal")
        await naming.end()
        assert ledger.words[DaemonWord.NAMES_QUERIES] == total


async def test_the_hosts_file_follows(ledger: Ledger, logged: Logged, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    naming = Naming(Names.model_validate({"hosts": str(hosts)}), ledger, logged.log)
    naming.follow(fleet_of(Member("web", 1, "10.0.0.5")))
    await naming.end()
    text = hosts.read_text()
    assert text.startswith("127.0.0.1 localhost\n")
    assert "10.0.0.5" in text
    assert "web-1.web.shop.internal" in text
    before = hosts.stat().st_ino
    naming.follow(fleet_of(Member("web", 1, "10.0.0.5")))
    await naming.end()
    assert hosts.stat().st_ino == before, "nothing has changed"
    naming.follow(fleet_of(Member("web", 1, "10.0.0.9")))
    await naming.end()
    assert "10.0.0.5" not in hosts.read_text()


async def test_a_hosts_file_that_somebody_else_wrote_is_looked_at_again(
    ledger: Ledger, logged: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(naming_module, "_LOOK_S", 0.0)
    hosts = tmp_path / "hosts"
    naming = Naming(Names.model_validate({"hosts": str(hosts)}), ledger, logged.log)
    naming.follow(fleet_of())
    await naming.end()
    assert [line["event"] for line in logged.lines()] == ["names"], "there is none"
    for text in ("127.0.0.1 localhost\n", "127.0.0.1 localhost here\n"):
        hosts.write_text(text)
        naming.follow(fleet_of())
        await naming.end()
        assert hosts.read_text().startswith(f"{text}# BEGIN relay shop\n")


async def test_a_hosts_file_that_cannot_be_written_is_told_once(ledger: Ledger, logged: Logged, tmp_path: Path) -> None:
    naming = Naming(Names.model_validate({"hosts": str(tmp_path / "none" / "hosts")}), ledger, logged.log)
    for address in ("10.0.0.4", "10.0.0.5"):
        naming.follow(fleet_of(Member("web", 0, address)))
        await naming.end()
    (line,) = logged.lines()
    assert (line["level"], line["event"]) == ("error", "names")
    assert str(tmp_path / "none" / "hosts") in line["message"]


async def test_a_hosts_file_that_hangs_is_told_and_nobody_waits_for_it(
    ledger: Ledger, logged: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = threading.Event()

    def hang(path: str, **_: object) -> str:
        assert back.wait(HANG_S)
        return path

    monkeypatch.setattr(os.path, "realpath", hang)
    monkeypatch.setattr(reading, "DEADLINE_S", 0.01)
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    naming = Naming(Names.model_validate({"hosts": str(hosts)}), ledger, logged.log)
    naming.follow(fleet_of())
    await naming.end()
    (line,) = logged.lines()
    assert f"cannot write the names to {hosts}: its file system has not answered within 0.01 s" in line["message"]
    back.set()
    eventually(lambda: not any(reading._hanging.values()), "it has ended")
    assert hosts.read_text() == "127.0.0.1 localhost\n", "names that are old by now are not written"
    monkeypatch.setattr(reading, "DEADLINE_S", HANG_S)
    naming.follow(fleet_of(Member("web", 1, "10.0.0.5")))
    await naming.end()
    assert "10.0.0.5" in hosts.read_text()


async def test_the_end_does_not_wait_for_a_hosts_file_that_hangs(
    ledger: Ledger, logged: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = threading.Event()
    monkeypatch.setattr(naming_module, "_END_S", 0.01)
    monkeypatch.setattr("relay.names.hosts.write", lambda *_: back.wait(HANG_S))
    naming = Naming(Names.model_validate({"hosts": str(tmp_path / "hosts")}), ledger, logged.log)
    naming.follow(fleet_of())
    await naming.end()
    assert naming._writing is not None
    assert not naming._writing.done()
    back.set()
    await naming._writing


async def test_a_hosts_file_that_was_removed_is_written_when_there_is_one_again(
    ledger: Ledger, logged: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """relay does not make it: a hosts file without `localhost` is worse than none."""
    monkeypatch.setattr(naming_module, "_LOOK_S", 0.0)
    hosts = tmp_path / "hosts"
    naming = Naming(Names.model_validate({"hosts": str(hosts)}), ledger, logged.log)
    for _ in range(2):
        hosts.write_text("127.0.0.1 localhost\n")
        naming.follow(fleet_of())
        await naming.end()
        assert "# BEGIN relay shop" in hosts.read_text()
        hosts.unlink()
        naming.follow(fleet_of())
        await naming.end()
        assert not hosts.exists()
    assert ["create it" in line["message"] for line in logged.lines()] == [True, True], "each time it was gone"
