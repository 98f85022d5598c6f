"""Instances by name: answers change, vanish, lie, come late or not at all; and processes die in the midst of it."""

import os
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.conftest import Daemons
from tests.e2e.installed import Installed, upgraded
from tests.e2e.named import EDGE, NAME, ONE, PORT, SIX, THREE, TWO, Machine, file, machine, said, source, there
from tests.fleet.dnses import NOTHING, NXDOMAIN, SERVFAIL, SILENCE, Says
from tests.harness import Daemon, Scrape, echoed, eventually

pytestmark = [
    pytest.mark.real("ip"),
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which takes root"),
]


@pytest.fixture
def at(daemons: Daemons) -> Iterator[Machine]:
    """The machine; its relays end first."""
    with machine(daemons) as made:
        yield made
        daemons.end()


def control(daemon: Daemon) -> int:
    return int(daemon.status()["control"]["pid"])


def kill_control(daemon: Daemon) -> None:
    pid = control(daemon)
    os.kill(pid, signal.SIGKILL)

    def is_another() -> bool:
        try:
            return control(daemon) != pid
        except (OSError, AssertionError):
            return False

    eventually(is_another, "there is another control")


def test_new_connections_go_where_the_name_leads_now(at: Machine) -> None:
    at.server.say(NAME, "A", ONE)
    metrics = 9464
    daemon = at.edge(NAME, settings={"metrics": {"listen": f"127.0.0.1:{metrics}"}})
    assert at.leads_to() == ONE
    with at.dial() as client:
        assert echoed(client) == b"ping"
        at.server.say(NAME, "A", TWO)
        eventually(lambda: there(daemon) == {TWO: "db_IN_0"}, "the new address is in force")
        eventually(lambda: at.leads_to() == TWO, "it leads there")
        at.server.say(NAME, "A", TWO, THREE)
        at.server.say(NAME, "AAAA", SIX)
        expected = {TWO: "db_IN_0", THREE: "db_IN_1", SIX: "db_IN_2"}
        eventually(lambda: there(daemon) == expected, "both versions are there")
        eventually(lambda: at.leads_to() == SIX, "one of them is IPv6")
        assert echoed(client) == b"ping", "who was connected stays"
    assert source(daemon)["trouble"] == ""
    with at.network.inside("edge"):
        scrape = Scrape(metrics)
    assert scrape.value("relay_source_targets", role="db", source=NAME) == 3
    assert scrape.value("relay_source_failures_total", role="db", source=NAME) == 0
    assert 0 <= scrape.value("relay_source_age_seconds", role="db", source=NAME) < 60
    assert "ROLE  SOURCE   ADDRESSES  ANSWERED" in daemon.relay("status").stdout
    assert f"{SIX}  {NAME}  healthy" in daemon.relay("instances").stdout
    assert set(daemon.relay("resolve", "db/pg", "--all").stdout.split()) == {f"{EDGE}:{PORT}"}


LIES = {
    "another's id": (Says((THREE,), wrong_id=True),),
    "another name": (Says((THREE,), other_name="other.test"),),
    "loopback": (Says(("127.0.0.1",)),),
    "no address": (Says(("0.0.0.0",)),),
    "nothing": (NOTHING,),
    "no such name": (NXDOMAIN,),
    "a failure": (SERVFAIL,),
    "silence": (SILENCE,),
    "too late": (Says((THREE,), late_s=6.0),),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_and_a_failure_change_nothing(at: Machine, lie: str) -> None:
    at.server.say(NAME, "A", ONE)
    daemon = at.edge(NAME)
    eventually(lambda: source(daemon)["ttl_s"] == 1.0, "it has been asked")
    at.server.does(NAME, "A", *LIES[lie])
    eventually(lambda: source(daemon)["trouble"] or source(daemon)["doubted"], "it is heard")
    before = at.asked()
    eventually(lambda: at.asked() > before, "it is asked again")
    assert there(daemon) == {ONE: "db_IN_0"}
    assert at.leads_to() == ONE
    assert daemon.status()["generation"] == 1
    if lie == "loopback":
        assert "127.0.0.1 is this machine itself, which DNS must not lead to; it is left out" in said(daemon)
    at.server.say(NAME, "A", TWO)
    eventually(lambda: there(daemon) == {TWO: "db_IN_0"}, "a good answer stands")
    eventually(lambda: not source(daemon)["trouble"] and not source(daemon)["doubted"], "nothing is wrong any more")


def test_a_truncated_answer_is_whole(at: Machine) -> None:
    at.server.does(NAME, "A", Says((ONE, TWO, THREE), truncated=True))
    daemon = at.edge(NAME)
    assert set(there(daemon)) == {ONE, TWO, THREE}
    assert at.server.asked[NAME, "A", "tcp"]


def test_an_address_that_vanished_is_believed_to_after_half_a_minute(at: Machine) -> None:
    at.server.say(NAME, "A", ONE, TWO)
    daemon = at.edge(NAME)
    assert len(there(daemon)) == 2
    at.server.say(NAME, "A", ONE)
    eventually(lambda: source(daemon)["doubted"], "half of it is doubted")
    eventually(lambda: at.leads_to() == TWO, "the other one is still there")
    os.kill(daemon.worker_pid(), signal.SIGKILL)
    eventually(lambda: there(daemon) == {ONE: "db_IN_0"}, "it is believed")
    doubted, believed = (
        datetime.fromisoformat(line["time"])
        for line in daemon.events("source")
        if "and is believed" in line["message"] or "half of its addresses" in line["message"]
    )
    assert (believed - doubted).total_seconds() > 29.9
    assert at.leads_to() == at.leads_to() == ONE


def test_whoever_dies_the_numbers_stay(at: Machine) -> None:
    at.server.say(NAME, "A", ONE, TWO)
    daemon = at.edge(NAME)
    at.server.say(NAME, "A", TWO, THREE)
    expected = {TWO: "db_IN_1", THREE: "db_IN_0"}
    eventually(lambda: there(daemon) == expected, "one has taken the free number")
    with at.dial() as client:
        assert echoed(client) == b"ping"
        for six, four in ((), (ONE,)), ((SIX,), ()), ((SIX,), (ONE,)):
            os.kill(daemon.worker_pid(), signal.SIGKILL)
            at.server.say(NAME, "A", TWO, THREE, *four)
            at.server.say(NAME, "AAAA", *six)
            kill_control(daemon)
            wanted = {TWO, THREE, *six, *four}
            eventually(lambda wanted=wanted: set(there(daemon)) == wanted, "it is heard all the same")  # type: ignore[misc]
            assert expected.items() <= there(daemon).items()
            assert echoed(client) == b"ping"
        at.server.does(NAME, "A", SERVFAIL)
        at.server.does(NAME, "AAAA", SERVFAIL)
        eventually(lambda: source(daemon)["trouble"], "it fails")
        before, generation = there(daemon), daemon.status()["generation"]
        kill_control(daemon)
        eventually(lambda: source(daemon)["failures"] > 1, "the new one has asked")
        assert (there(daemon), daemon.status()["generation"]) == (before, generation)
        assert source(daemon)["age_s"] is not None
        assert daemon.relay("reload").returncode == 0
        assert there(daemon) == before
        assert echoed(client) == b"ping"


def test_an_upgrade_while_nobody_answers(at: Machine, installed: Installed) -> None:
    at.server.say(NAME, "A", ONE, TWO)
    daemon = at.edge(NAME, wrapper=installed.wrapper)
    at.server.say(NAME, "A", TWO, THREE)
    eventually(lambda: THREE in there(daemon), "it is heard")
    for kind in ("A", "AAAA"):
        at.server.does(NAME, kind, SILENCE)
    before = there(daemon)
    with at.dial() as client:
        assert echoed(client) == b"ping"
        assert daemon.relay("upgrade").returncode == 0
        upgraded(daemon)
        assert echoed(client) == b"ping"
        assert there(daemon) == before
    at.server.say(NAME, "AAAA")
    at.server.say(NAME, "A", TWO)
    at.server.say(NAME, "A", TWO, ONE, THREE)
    eventually(lambda: there(daemon) == {**before, ONE: "db_IN_2"}, "it follows on")


def test_a_start_does_not_wait_for_a_name_that_gives_no_answer(at: Machine) -> None:
    at.server.does(NAME, "A", SILENCE)
    at.server.does(NAME, "AAAA", SILENCE)
    daemon = at.edge(NAME, THREE)
    assert there(daemon) == {THREE: "db_IN_0"}
    warnings = [line["message"] for line in daemon.events("configuration")]
    assert warnings == [f"role db: `{NAME}`: no answer within 2 s; its instances come as soon as it answers"]
    at.server.say(NAME, "AAAA")
    at.server.say(NAME, "A", ONE)
    eventually(lambda: there(daemon) == {THREE: "db_IN_0", ONE: "db_IN_1"}, "it answers")


def test_a_reload_changes_what_is_asked(at: Machine) -> None:
    at.server.say(NAME, "A", ONE)
    at.server.say("other.test", "A", TWO)
    daemon = at.edge(NAME)
    daemon.write_service(file(NAME, {"address": "other.test", "weight": 3, "backup": True}, THREE))
    done = daemon.relay("reload")
    assert done.returncode == 0, done
    assert there(daemon) == {ONE: "db_IN_0", TWO: "db_IN_1", THREE: "db_IN_2"}, "at once"
    daemon.write_service(file("other.test"))
    assert daemon.relay("reload").returncode == 0
    assert there(daemon) == {TWO: "db_IN_1"}
    before = at.asked("other.test"), at.asked()
    eventually(lambda: at.asked("other.test") > before[0] + 1, "one is asked")
    assert at.asked() == before[1], "the other one is not"
    at.server.does("gone.test", "A", SERVFAIL)
    daemon.write_service(file("other.test", "gone.test"))
    done = daemon.relay("reload")
    assert (done.returncode, "role db: `gone.test`: gone.test (A): " in done.stdout) == (0, True)


def test_a_service_record(at: Machine) -> None:
    at.server.say("_pg._tcp.test", "SRV", "10 0 5432 one.test.", "10 300 5432 two.test.", "20 0 5433 three.test.")
    for name, address in (("one.test", ONE), ("two.test", TWO), ("three.test", THREE)):
        at.server.say(name, "A", address)
    daemon = at.edge({"srv": "_pg._tcp.test"})
    (endpoint,) = (each for each in daemon.status()["endpoints"] if each["name"] == "db/pg")
    assert endpoint["targets"] == [f"{ONE}:5432", f"{TWO}:5432", f"{THREE}:5433"]
    _, found = daemon.ask("GET", "/v1/instances?role=db")
    assert {each["name"] for each in found} == {"srv: _pg._tcp.test"}
    at.server.say("_pg._tcp.test", "SRV", "10 1 5432 one.test.", "10 1 5432 three.test.")
    expected = {ONE: "db_IN_0", THREE: "db_IN_1"}
    eventually(lambda: there(daemon) == expected, "two of three, and one of them at another port: another instance")


def test_by_the_files_of_the_machine(at: Machine, tmp_path: Path) -> None:
    """Without a word in instance.yaml: /etc/resolv.conf says whom to ask, /etc/hosts what need not be asked."""
    resolv_conf, hosts = tmp_path / "resolv.conf", tmp_path / "hosts"
    resolv_conf.write_text("nameserver 127.0.0.1\nsearch test\n")
    hosts.write_text(f"{TWO} local.example\n")
    at.server.say(NAME, "A", ONE)
    mounted = f'mount --bind {resolv_conf} /etc/resolv.conf && mount --bind {hosts} /etc/hosts && exec "$@"'
    wrapper = ("unshare", "--mount", "sh", "-c", mounted, "sh")
    daemon = at.edge("db", "local.example", wrapper=wrapper, settings={"names": {}})
    assert there(daemon) == {ONE: "db_IN_0", TWO: "db_IN_1"}
    hosts.write_text(f"{THREE} local.example\n")
    eventually(lambda: there(daemon) == {ONE: "db_IN_0", THREE: "db_IN_1"}, "a change is seen")
    resolv_conf.write_text("nameserver 127.0.0.9\n")
    eventually(lambda: source(daemon, "db")["trouble"], "nobody is there who could be asked")
    assert "127.0.0.9:53" in source(daemon, "db")["trouble"]
    assert there(daemon) == {ONE: "db_IN_0", THREE: "db_IN_1"}


def test_an_edge_is_not_led_to_itself(at: Machine) -> None:
    at.server.say(NAME, "A", EDGE, ONE)
    daemon = at.edge(NAME)
    assert [at.leads_to() for _ in range(6)] == [ONE] * 6
    eventually(
        lambda: f"db/pg: db_IN_0 at {EDGE} port {PORT} is no target: that is this machine itself" in said(daemon),
        "the log says so",
    )
