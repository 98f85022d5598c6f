"""A fleet whose members come and go, with a real etcd that is killed, cloned machines, and an envelope that follows."""

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.fleets import SHORT_TTL_S, Fleet, address_of, instance_of, is_admitted, is_applied, knows, roster_of
from tests.e2e.peers import records
from tests.fleet.etcds import EtcdServer
from tests.harness import HANG_S, Daemon, Echo, Scrape, dial, echoed, eventually, patched
from tests.ports import free_port

pytestmark = [
    pytest.mark.real("etcd", "etcdctl", "unshare"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes a pid namespace, which takes root"),
]

# relay that looks for changed files ten times a second, and not once.
ATTENTIVE: Final = patched("relay.fleet.directory._POLL_S", value=0.1)

# relay that goes on looking for who is lost for longer than any wait of a test.
HOPEFUL: Final = patched("relay.fleet.believed.AWAY_S", value=1e6)

# As on another machine: no process of this one can be seen.
ELSEWHERE: Final = ("unshare", "--pid", "--fork", "--mount-proc")


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def fleet(tmp_path: Path, etcd: EtcdServer) -> Iterator[Fleet]:
    with Fleet(tmp_path, etcd) as made:
        yield made


def test_the_envelope_follows_who_joins_and_who_leaves(fleet: Fleet) -> None:
    store = fleet.start("store")
    assert instance_of(store) == "store_IN_0"
    where = address_of(store)
    web = fleet.machine("web")
    source = address_of(web)
    assert not is_admitted(where, fleet.port, source), "nobody is there by that address"
    web.start()
    assert instance_of(web) == "web_IN_0"
    knows(store, "store_IN_0", "web_IN_0")
    (joined,) = eventually(
        lambda: [each["joined"] for each in store.events("roster") if each["joined"]], "it is logged"
    )
    assert joined == ["web_IN_0"]
    assert is_admitted(where, fleet.port, source)
    with dial(fleet.port, host=where, source=source) as client, dial(fleet.door, host="127.78.0.2") as program:
        assert echoed(client) == echoed(program) == b"ping"
        assert web.stop() == 0
        knows(store, "store_IN_0")
        client.settimeout(HANG_S)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    eventually(lambda: store.endpoint("store/pg")["closed"].get("revoked"), "it is cut as revoked")
    assert not is_admitted(where, fleet.port, source)


def test_numbers_are_the_lowest_and_stay_with_their_machine(fleet: Fleet) -> None:
    first, second = fleet.start("web"), fleet.start("web")
    assert [instance_of(first), instance_of(second)] == ["web_IN_0", "web_IN_1"]
    assert first.stop() == 0
    third = fleet.start("web")
    assert instance_of(third) == "web_IN_2", "the first one's number is held for it"
    back = fleet.again(first).start()
    assert instance_of(back) == "web_IN_0"
    told = back.relay("identity")
    assert told.returncode == 0
    assert "web_IN_0" in told.stdout
    knows(second, "web_IN_0", "web_IN_1", "web_IN_2")


def test_all_numbers_are_taken(fleet: Fleet) -> None:
    fleet.machine("store")
    for _ in range(2):
        daemon = fleet.machine("store")
        daemon.write_service(fleet.service((3, 2)))
        daemon.start()
    late = fleet.machine("store")
    late.write_service(fleet.service((3, 2)))
    with pytest.raises(AssertionError, match="all 2 numbers of role store are held by store_IN_0"):
        late.start()


def test_a_clone_is_refused_and_so_is_a_second_daemon(fleet: Fleet) -> None:
    fleet.ttl_s = SHORT_TTL_S  # a clone waits whether the presence outlives its lease
    web = fleet.start("web")
    clone = fleet.again(web, address="127.77.9.9", wrapper=ELSEWHERE)
    with pytest.raises(AssertionError, match="has the same machine id as this machine, so one is a clone of the other"):
        clone.start()
    with pytest.raises(
        AssertionError, match=f"relay runs on this machine already, as web_IN_0: process {web.pid}; stop"
    ):
        fleet.again(web).start()
    assert instance_of(web) == "web_IN_0"


def test_a_daemon_that_was_killed_need_not_wait_for_its_lease(fleet: Fleet) -> None:
    web = fleet.start("web")
    assert instance_of(web) == "web_IN_0"
    web.kill()
    back = fleet.again(web).start()
    assert instance_of(back) == "web_IN_0"


def test_so_it_is_where_the_unit_hides_which_boot_it_is(fleet: Fleet) -> None:
    """The lease outlasts the test: the former run is known to be dead, by the boot that the unit tells."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    hidden = ("unshare", "--mount", "sh", "-c", 'mount -t proc -o subset=pid proc /proc && exec "$@"', "sh")
    fleet.wrapper = (*hidden, "env", f"RELAY_BOOT_ID={boot}")
    web = fleet.start("web")
    assert not (Path(f"/proc/{web.pid}/root/proc/sys")).exists()
    web.kill()
    back = fleet.again(web, wrapper=fleet.wrapper).start()
    assert instance_of(back) == "web_IN_0"


def test_nobody_is_cut_because_etcd_is_down(fleet: Fleet, tmp_path: Path) -> None:
    with EtcdServer(tmp_path / "own") as etcd:
        fleet.etcd, fleet.ttl_s = etcd, SHORT_TTL_S
        metrics = free_port()
        store, web = fleet.start("store"), fleet.start("web", metrics={"listen": f"127.0.0.1:{metrics}"})
        knows(store, "store_IN_0", "web_IN_0")
        knows(web, "store_IN_0", "web_IN_0")
        where, source = address_of(store), address_of(web)
        with dial(fleet.port, host=where, source=source) as client, dial(fleet.door, host="127.78.0.2") as program:
            assert echoed(client) == echoed(program) == b"ping"
            said = len(list(web.events("registry")))
            etcd.kill()
            eventually(lambda: web.status()["registry"]["trouble"], "it says that etcd is down")
            eventually(lambda: Scrape(metrics).value("relay_roster_age_seconds") > SHORT_TTL_S + 1, "the age grows")
            text = web.relay("status").stdout
            assert "REGISTRY (etcd): " in text
            assert "in force are web 1 of 3, store 1 of 3, as it said " in text
            (*_, warned) = records(web, "registry", said + 1)
            assert "the last roster stays in force" in warned["message"]
            assert echoed(client) == echoed(program) == b"ping", "longer than a lease"
            assert is_admitted(where, fleet.port, source), "and new ones"

            assert store.stop() == 0  # it starts again while etcd is down
            back = fleet.again(store).start()
            assert instance_of(back) == "store_IN_0"
            assert roster_of(back) == {"store_IN_0", "web_IN_0"}
            eventually(
                lambda: any("until the registry answers" in each["message"] for each in back.events("configuration")),
                "it says so",
            )
            assert is_admitted(where, fleet.port, source)

            etcd.start()
            eventually(lambda: not web.status()["registry"]["trouble"], "it is well again")
            eventually(lambda: Scrape(metrics).value("relay_roster_age_seconds") < SHORT_TTL_S, "the age is small")
            knows(web, "store_IN_0", "web_IN_0")
            assert not [each for each in web.events("roster") if each["left"]], "nobody has left meanwhile"


def test_who_loses_its_lease_and_is_there_keeps_its_connections(fleet: Fleet) -> None:
    """A leader that stood still takes leases away which have not run out; their machines register again at once."""
    fleet.program = HOPEFUL
    store, web = fleet.start("store"), fleet.start("web")
    for daemon in (store, web):
        knows(daemon, "store_IN_0", "web_IN_0")
    where, source = address_of(store), address_of(web)
    with dial(fleet.port, host=where, source=source) as client, dial(fleet.door, host="127.78.0.2") as program:
        assert echoed(client) == echoed(program) == b"ping"
        for lost, other in ((store, web), (web, store)):
            role = instance_of(lost).partition("_")[0]
            control = lost.status()["control"]["pid"]
            os.kill(control, signal.SIGSTOP)  # or it would be back before anybody could look
            try:
                key = f"/relay/{fleet.name}/members/{role}/0"
                (found,) = json.loads(fleet.etcd.ctl("get", key, "-w", "json"))["kvs"]
                fleet.etcd.ctl("lease", "revoke", f"{found['lease']:x}")
                eventually(lambda: is_busy(other, role), "it is missing")  # noqa: B023
                assert roster_of(other) == {"store_IN_0", "web_IN_0"}
                assert echoed(client) == echoed(program) == b"ping"
                assert is_admitted(where, fleet.port, source)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(control, signal.SIGCONT)
            eventually(lambda: not is_busy(other, role), "it is back")  # noqa: B023
        assert echoed(client) == echoed(program) == b"ping"
    for daemon in (store, web):
        assert not [each for each in daemon.events("roster") if each["left"]]


def is_busy(daemon: Daemon, role: str) -> bool:
    """Whether it has it that the role's one instance wants no new connections, and goes by that."""
    _, [found] = daemon.ask("GET", f"/v1/instances?role={role}")
    return bool(found["busy"]) and is_applied(daemon)


def test_who_is_busy_or_whose_service_is_gone_is_sent_nobody(fleet: Fleet) -> None:
    one, other = fleet.start("store"), fleet.start("store")
    web = fleet.start("web")
    knows(web, "store_IN_0", "store_IN_1", "web_IN_0")
    door = "127.78.0.3"

    def targets() -> set[str]:
        return {each["instance"] for each in web.endpoint("web/db")["target_set"]}

    eventually(lambda: targets() == {"store_IN_0", "store_IN_1"}, "neither is busy any more")
    assert one.relay("drain", "--for", "1m").returncode == 0
    eventually(lambda: targets() == {"store_IN_1"}, "the busy one is left out")
    assert json.loads(web.relay("instances", "--json", "--role", "store").stdout)[0]["busy"] is True
    assert web.relay("resolve", "store/pg").stdout == f"{address_of(other)}:{fleet.port}\n"
    assert one.relay("drain", "off").returncode == 0
    eventually(lambda: targets() == {"store_IN_0", "store_IN_1"}, "it is back")

    dead = free_port()
    file = fleet.service()
    file["roles"]["store"]["endpoints"]["pg"]["target"] = f"127.0.0.1:{dead}"
    one.write_service(file)
    assert one.relay("reload").returncode == 0
    assert not is_admitted(address_of(one), fleet.port, address_of(web)), "which is how it finds out"
    eventually(lambda: targets() == {"store_IN_1"}, "the one whose service is gone is left out")
    for _ in range(3):
        with dial(fleet.door, host=door) as client:
            assert echoed(client) == b"ping"


def test_control_that_is_killed_and_an_upgrade_keep_number_and_roster(fleet: Fleet) -> None:
    store, web = fleet.start("store"), fleet.start("web")
    knows(store, "store_IN_0", "web_IN_0")
    with dial(fleet.port, host=address_of(store), source=address_of(web)) as client:
        assert echoed(client) == b"ping"
        os.kill(store.status()["control"]["pid"], signal.SIGKILL)
        eventually(lambda: answers(store) and store.status()["control"]["restarts"] == 1, "control is back")
        done = store.relay("upgrade")
        assert done.returncode == 0, done.stderr
        assert echoed(client, b"again") == b"again"
        assert roster_of(store) == {"store_IN_0", "web_IN_0"}
        late = fleet.start("web")
        knows(store, "store_IN_0", "web_IN_0", "web_IN_1")
        assert is_admitted(address_of(store), fleet.port, address_of(late))
        assert not [each for each in web.events("roster") if "store_IN_0" in each["left"]]


def test_what_etcd_knows_a_machine_by_does_not_change_under_it(fleet: Fleet) -> None:
    store = fleet.start("store")
    renamed, listed = fleet.service(), fleet.service()
    renamed["service"] = "another"
    listed["roles"]["store"]["instances"] = [address_of(store)]
    restart = "; etcd knows this machine by it, so that takes a restart"
    for file, why in (
        (renamed, f"the service is called another, and was {fleet.name}{restart}"),
        (listed, f"role store has addresses under `instances`, and had a count{restart}"),
    ):
        store.write_service(file)
        done = store.relay("reload")
        assert done.returncode == 1
        assert why in done.stderr
    assert instance_of(store) == "store_IN_0"
    other = fleet.start("store")
    other.write_service(fleet.service((3, 1)))
    done = other.relay("reload")
    assert (done.returncode, "so the last id is store_IN_0, and this machine is store_IN_1" in done.stderr) == (1, True)
    assert "last reload FAILED" in other.relay("status").stdout


def test_an_address_has_one_instance_and_a_start_that_fails_takes_no_number(fleet: Fleet) -> None:
    store = fleet.start("store")
    late = fleet.machine("web")
    late.settings_file.write_text(late.settings_file.read_text().replace(address_of(late), address_of(store)))
    with pytest.raises(
        AssertionError, match=f"store_IN_0 is at the address {address_of(store)} already; write another"
    ):
        late.start()
    failing = fleet.machine("store")
    taken = socket.create_server((address_of(failing), fleet.port))
    with taken, pytest.raises(AssertionError, match="the address is in use by another program"):
        failing.start()
    assert instance_of(fleet.start("store")) == "store_IN_1"


def answers(daemon: object) -> bool:
    """Whether its control process is there."""
    try:
        return bool(daemon.status())  # type: ignore[attr-defined]
    except OSError:
        return False


def test_a_directory_of_files_is_a_registry_too(tmp_path: Path) -> None:
    instances = tmp_path / "instances"
    instances.mkdir()
    (instances / "store_IN_0.yaml").write_text("address: 127.77.1.1\n")
    with Echo() as echo:
        port = free_port("127.77.1.1")
        pg = {"type": "internal", "port": port, "target": echo.target, "from": ["web"]}
        roles = {"web": {"instances": 2}, "store": {"instances": 1, "endpoints": {"pg": pg}}}
        file = {"version": 1, "service": "shop", "roles": roles}
        registry = {"directory": str(instances)}
        settings = {"workers": 1, "registry": registry}
        with Daemon(tmp_path, file, settings, instance="store_IN_0", program=ATTENTIVE) as store:
            assert roster_of(store) == {"store_IN_0"}
            assert not is_admitted("127.77.1.1", port, "127.77.1.2")
            (instances / "web_IN_1.yaml").write_text("address: 127.77.1.2\n")
            knows(store, "store_IN_0", "web_IN_1")
            assert is_admitted("127.77.1.1", port, "127.77.1.2")
            (instances / "web_IN_0.yaml").write_text("adress: 127.77.1.3\n")
            eventually(
                lambda: "did you mean `address`" in store.status()["registry"]["trouble"], "it says what is wrong"
            )
            with dial(port, host="127.77.1.1", source="127.77.1.2") as client:
                assert echoed(client) == b"ping"
                (instances / "web_IN_1.yaml").unlink()
                client.settimeout(HANG_S)
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
