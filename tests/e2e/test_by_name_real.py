"""Instances by name with a real DNS server, whose zone is changed and loaded again."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Daemons
from tests.e2e.named import ONE, THREE, TWO, Machine, machine, source, there
from tests.e2e.programs import serving
from tests.harness import eventually

pytestmark = [
    pytest.mark.real("ip", "dnsmasq", "dig"),
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which takes root"),
]

SERVER = "127.0.0.1"
PORT = 5353


@pytest.fixture
def at(daemons: Daemons) -> Iterator[Machine]:
    """The machine; its relays end first."""
    with machine(daemons) as made:
        yield made
        daemons.end()


class Zone:
    """The server's names: addresses by name, in a file that it reads again at SIGHUP."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "hosts"
        self.pid = 0

    def says(self, **names: tuple[str, ...]) -> None:
        """From now on these, each below `test`, and no others."""
        lines = [f"{address} {name}.test\n" for name, addresses in names.items() for address in addresses]
        self.file.write_text("".join(lines))
        if self.pid:
            os.kill(self.pid, signal.SIGHUP)


def test_a_zone_is_changed_and_loaded_again(at: Machine, tmp_path: Path) -> None:
    directory = tmp_path / "dns"
    directory.mkdir()
    zone = Zone(directory)
    zone.says(db=(ONE,), other=(THREE,))
    command = [
        *at.wrapper, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--no-poll",
        f"--addn-hosts={zone.file}", "--local-ttl=1", f"--port={PORT}", f"--listen-address={SERVER}", "--bind-interfaces",
        "--user=root", "--group=root", f"--pid-file={directory}/pid", "--log-facility=-", "--local=/test/",
        "--srv-host=_pg._tcp.test,other.test,5432,10,5", "--cname=alias.test,db.test",
    ]  # fmt: skip
    ready = [*at.wrapper, "dig", "+short", "+time=1", "+tries=1", f"@{SERVER}", "-p", str(PORT), "db.test"]
    with serving(
        command, directory, lambda: ONE in subprocess.run(ready, capture_output=True, text=True).stdout
    ) as server:
        zone.pid = server.pid
        settings = {"names": {"resolvers": [f"{SERVER}:{PORT}"]}}
        daemon = at.edge("alias.test", {"srv": "_pg._tcp.test"}, settings=settings)
        assert there(daemon) == {ONE: "db_IN_0", THREE: "db_IN_1"}
        assert daemon.endpoint("db/pg")["targets"] == [f"{ONE}:5432", f"{THREE}:5432"]
        zone.says(db=(TWO, ONE), other=(THREE,))
        eventually(lambda: there(daemon) == {ONE: "db_IN_0", THREE: "db_IN_1", TWO: "db_IN_2"}, "one is added")
        many = tuple(f"10.99.0.{n}" for n in range(1, 120))
        zone.says(db=(TWO, *many), other=(THREE,))
        eventually(lambda: len(there(daemon)) == 121, "more than a packet has room for")
        assert ONE not in there(daemon)
        zone.says(other=(THREE,))
        eventually(lambda: source(daemon, "alias.test")["doubted"], "the zone has lost it")
        zone.says(db=(TWO, *many), other=(THREE,))
        eventually(lambda: not source(daemon, "alias.test")["doubted"], "it is there again")
        before = there(daemon)
        server.send_signal(signal.SIGSTOP)
        eventually(lambda: source(daemon, "alias.test")["failures"], "nobody answers")
        assert there(daemon) == before
        server.send_signal(signal.SIGCONT)
        eventually(lambda: not source(daemon, "alias.test")["trouble"], "it answers again")
        assert there(daemon) == before
