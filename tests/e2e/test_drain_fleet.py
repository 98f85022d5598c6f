"""`relay drain --wait` where a registry tells the doors out, with a real etcd; and where nobody can."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Daemons
from tests.e2e.fleets import Fleet, instance_of, knows
from tests.fleet.etcds import EtcdServer
from tests.harness import Daemon, Echo, dial, echoed, web_and_store
from tests.ports import free_port


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


def ask(host: str, port: int) -> None:
    with dial(port, host=host) as program:
        assert echoed(program) == b"ping"


def accepted(daemon: Daemon) -> int:
    return int(daemon.endpoint("store/pg")["accepted"])


@pytest.mark.real("etcd", "etcdctl")
def test_a_door_is_told_by_the_registry(tmp_path: Path, etcd: EtcdServer) -> None:
    with Fleet(tmp_path, etcd) as fleet:
        stores, web = [fleet.start("store"), fleet.start("store")], fleet.start("web")
        everybody = ("store_IN_0", "store_IN_1", "web_IN_0")
        knows(web, *everybody)
        knows(stores[0], *everybody)
        for _ in range(10):
            ask("127.78.0.3", fleet.door)
        drained = stores[0].relay("drain", "--wait", "--timeout", "60s")
        assert drained.returncode == 0, drained
        assert "web_IN_0: being told" in drained.stdout
        before = accepted(stores[0])
        assert stores[0].status()["senders"] == [{"who": "web_IN_0", "told": True, "by": "registry"}]
        for _ in range(10):
            ask("127.78.0.3", fleet.door)
        assert (instance_of(stores[0]), accepted(stores[0])) == ("store_IN_0", before)
        assert accepted(stores[1]) >= 10


def test_a_door_that_nobody_can_tell_is_named(daemons: Daemons, echo: Echo) -> None:
    pg = {"type": "internal", "port": free_port("0.0.0.0"), "target": echo.target, "from": ["web"]}
    pg["probe"] = {"interval": "100ms", "timeout": "100ms"}
    file = web_and_store(["127.1.0.1"], ["127.1.0.2"], f"127.0.0.1:{free_port()}", {"pg": pg})
    store = daemons(file, instance="store_IN_0")
    assert store.status()["senders"] == [{"who": "web_IN_0", "told": False, "by": None}]
    late = store.relay("drain", "--wait", "--timeout", "300ms")
    assert late.returncode == 3
    assert "web_IN_0: not told, 7 s are waited" in late.stderr
