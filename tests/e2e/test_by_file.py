"""Instances by a file that lists them: behind an edge and behind a door, in names and in discovery."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import dns.reversename

from tests.conftest import Daemons
from tests.e2e.installed import upgraded
from tests.harness import Daemon, Echo, dial, echoed, eventually, patched
from tests.ports import free_port, free_ports

HERE = "127.0.0.1"
ONE, TWO = "127.0.0.2", "127.0.0.3"


def write(directory: Path, *targets: str) -> None:
    """Replace the file, as a program would that writes it: whole."""
    new = directory / "targets.new"
    new.write_text(json.dumps([{"targets": list(targets), "labels": {"job": "db"}}]))
    new.rename(directory / "targets.json")


def there(daemon: Daemon) -> dict[str, str]:
    """Where the endpoint of each instance is, by id."""
    _, found = daemon.ask("GET", "/v1/instances?role=db")
    return {each["id"]: each["endpoints"][0]["address"] for each in found}


def edge(daemons: Daemons, port: int, *targets: str, more: tuple[Any, ...] = (), **keys: Any) -> Daemon:
    pg = {"type": "input", "public_port": port, "port": 5432}
    role = {"bare": True, "instances": [{"file": "targets.json"}, *more], "endpoints": {"pg": pg}}
    service = {"version": 1, "service": "test", "edge": {"instances": [HERE]}, "roles": {"db": role}}
    daemon = daemons.make(service, {"workers": 1}, instance="edge_IN_0", **keys)
    write(daemon.directory, *targets)
    return daemon.start()


def test_an_edge_follows_a_file(daemons: Daemons) -> None:
    with Echo((ONE, 0)) as one, Echo((TWO, 0)) as two:
        daemon = edge(daemons, port := free_port(), one.target)
        with dial(port) as client:
            assert echoed(client) == b"ping"
            write(daemon.directory, two.target)
            eventually(lambda: there(daemon) == {"db_IN_0": two.target}, "the other one is there")
            with dial(port) as new:
                assert echoed(new) == b"ping"
            eventually(lambda: two.accepted, "it got the new connection")
            assert echoed(client) == b"ping", "who was connected stays"


def test_a_file_that_is_gone_broken_or_empty_changes_nothing(daemons: Daemons) -> None:
    with Echo((ONE, 0)) as one, Echo((TWO, 0)) as two:
        daemon = edge(daemons, port := free_port(), one.target, two.target)
        before = there(daemon)
        file = daemon.directory / "targets.json"
        for text in (None, '[{"targets": [', "{}", "[]", json.dumps([{"targets": [one.target]}])):
            if text is None:
                file.unlink()
            else:
                file.write_text(text)

            def is_seen() -> bool:
                (source,) = daemon.status()["sources"]
                return bool(source["trouble"] or source["doubted"])

            eventually(is_seen, "it is seen")
            assert there(daemon) == before
            pid = daemon.status()["control"]["pid"]
            os.kill(pid, signal.SIGKILL)
            eventually(lambda killed=pid: another(daemon, killed), "there is another control")  # type: ignore[misc]
            eventually(is_seen, "and it is seen again")
            assert there(daemon) == before
            write(daemon.directory, one.target, two.target)
            eventually(lambda: not is_seen(), "all is well again")
        with dial(port) as client:
            assert echoed(client) == b"ping"


def another(daemon: Daemon, pid: int) -> bool:
    """Whether another control answers."""
    try:
        return bool(daemon.status()["control"]["pid"] != pid)
    except (OSError, AssertionError):
        return False


def test_a_door_out_names_and_discovery(daemons: Daemons) -> None:
    door, names = free_port(), free_ports(1)
    with Echo((ONE, 0)) as one, Echo((ONE, 0)) as two:
        uses = {"db": {"endpoint": "db/pg", "listen": f"127.0.0.1:{door}"}}
        pg = {"type": "internal", "port": 5432, "from": ["web"]}
        roles = {
            "web": {"instances": [HERE], "uses": uses},
            "db": {"bare": True, "instances": [{"file": "targets.json"}], "endpoints": {"pg": pg}},
        }
        settings = {"workers": 1, "names": {"listen": f"127.0.0.1:{names}"}}
        daemon = daemons.make({"version": 1, "service": "shop", "roles": roles}, settings)
        write(daemon.directory, one.target, two.target)
        daemon.start()
        ids = {address: name for name, address in there(daemon).items()}
        assert set(ids) == {one.target, two.target}
        with dial(door) as first, dial(door) as second:
            assert echoed(first) == echoed(second) == b"ping"
        assert (one.accepted, two.accepted) == (1, 1)
        assert set(daemon.relay("resolve", "db/pg").stdout.split()) == {one.target, two.target}
        assert "file: targets.json" in daemon.relay("instances").stdout

        def records(name: str, kind: str) -> set[str]:
            answer = dns.query.udp(dns.message.make_query(name, kind), HERE, timeout=10, port=names)
            return {str(record) for each in answer.answer for record in each}

        assert records("db.shop.internal.", "A") == {ONE}
        assert records(str(dns.reversename.from_address(ONE)), "PTR") == {f"db-{n}.db.shop.internal." for n in (0, 1)}
        assert records("_pg._tcp.db.shop.internal.", "SRV") == {
            f"0 0 {each.port} db-{ids[each.target][-1]}.db.shop.internal." for each in (one, two)
        }


def test_too_many_are_an_error_that_fails_nothing(daemons: Daemons) -> None:
    with Echo((ONE, 0)) as one:
        most = [f"10.9.{n // 250}.{n % 250}:5432" for n in range(1023)]
        daemon = edge(daemons, port := free_port(), one.target, *most)
        assert len(there(daemon)) == 1024
        service = daemon.service_file.read_text()
        daemon.service_file.write_text(service.replace("- file: targets.json", "- file: targets.json\n    - 10.8.0.1"))
        done = daemon.relay("reload")
        told = "1 address has no place, for a role has 1024 instances at most; split the role"
        assert (done.returncode, told in done.stdout) == (0, True)
        assert len(there(daemon)) == 1024
        assert one.target in there(daemon).values()
        eventually(lambda: told in daemon.status()["sources"][0]["trouble"], "status says so")
        eventually(lambda: any(told in line["message"] for line in daemon.events("source")), "the log says so")
        assert port


def test_a_change_of_more_than_half_is_believed_after_a_while(daemons: Daemons) -> None:
    with Echo((ONE, 0)) as one:
        program = patched("relay.fleet.standing_answer.DOUBT_S", value=3.0)
        daemon = edge(daemons, port := free_port(), one.target, program=program)
        write(daemon.directory)
        eventually(lambda: there(daemon) == {}, "it is believed")
        lines = [line["message"] for line in daemon.events("source")]
        assert lines[0].startswith("it says that half of its addresses or more are gone")
        assert lines[-1] == "it has stayed so, and is believed: it has 0 addresses now"
        write(daemon.directory, one.target)
        eventually(lambda: there(daemon) == {"db_IN_0": one.target}, "it is back at once")
        with dial(port) as client:
            assert echoed(client) == b"ping"


def test_beside_a_registry_each_keeps_what_the_other_knows(daemons: Daemons, tmp_path: Path) -> None:
    registry = tmp_path / "instances"
    registry.mkdir()
    (registry / "web_IN_0.yaml").write_text(f"address: {HERE}\n")
    pg = {"type": "internal", "port": 5432, "from": ["web"]}
    uses = {"db": {"endpoint": "db/pg", "listen": f"127.0.0.1:{free_port()}"}}
    roles = {
        "web": {"instances": 3, "uses": uses},
        "db": {"bare": True, "instances": [{"file": "targets.json"}], "endpoints": {"pg": pg}},
    }
    daemon = daemons.make(
        {"version": 1, "service": "shop", "roles": roles}, {"workers": 1, "registry": {"directory": str(registry)}}
    )
    write(daemon.directory, "10.0.2.1")
    daemon.start()

    def ids() -> dict[str, str]:
        return {each["id"]: each["address"] for each in daemon.ask("GET", "/v1/instances")[1]}

    expected = {"web_IN_0": HERE, "db_IN_0": "10.0.2.1"}
    assert ids() == expected
    write(daemon.directory, "10.0.2.1", "10.0.2.2")
    expected["db_IN_1"] = "10.0.2.2"
    eventually(lambda: ids() == expected, "the file's is there")
    (registry / "db_IN_5.yaml").write_text("address: 10.6.6.6\n")
    (registry / "web_IN_1.yaml").write_text("address: 10.0.0.5\n")
    expected["web_IN_1"] = "10.0.0.5"
    eventually(lambda: ids() == expected, "the registry's is there, in its own role alone")
    write(daemon.directory, "10.0.2.3", "10.0.2.2")
    expected["db_IN_0"] = "10.0.2.3"
    eventually(lambda: ids() == expected, "another one has the number")
    assert daemon.relay("reload").returncode == 0
    assert ids() == expected
    pid = daemon.status()["control"]["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: another(daemon, pid), "there is another control")
    write(daemon.directory, "10.0.2.3", "10.0.2.2", "10.0.2.4")
    expected["db_IN_2"] = "10.0.2.4"
    eventually(lambda: ids() == expected, "it goes on")
    (registry / "web_IN_1.yaml").unlink()
    del expected["web_IN_1"]
    eventually(lambda: ids() == expected, "who leaves the registry takes nobody along")


def test_an_upgrade_of_as_many_as_there_can_be(daemons: Daemons) -> None:
    """What the running program tells the new one of them is longer than an argument may be (execve(2))."""
    with Echo((ONE, 0)) as one:
        most = [f"10.9.{n // 250}.{n % 250}:{6000 + n}" for n in range(1023)]
        daemon = edge(daemons, port := free_port(), one.target, *most)
        before = there(daemon)
        with dial(port):
            assert len(before) == 1024
            done = daemon.relay("upgrade")
            assert done.returncode == 0, done
            upgraded(daemon)
            assert there(daemon) == before
