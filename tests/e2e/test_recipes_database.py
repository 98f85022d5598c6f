"""The recipe of a managed database as it is: where its name leads, over fail-overs and without DNS, and TLS untouched."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Daemons
from tests.e2e import apps, patroni
from tests.e2e.named import source
from tests.e2e.netns import Network
from tests.e2e.patroni import Writer
from tests.e2e.programs import other_user, run
from tests.e2e.recipes import machines, started, targets
from tests.fleet.dnses import SILENCE, Lying
from tests.harness import Daemon, eventually

pytestmark = [
    pytest.mark.real("ip", "postgres", "initdb", "psql", "openssl"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which takes root"),
]

NAME = "db.example.com"
ONE, TWO = "10.0.9.21", "10.0.9.22"
DOOR = "web/db"


class Provider:
    """Two machines with the same data and one certificate, the name that leads to one of them, and a machine of ours."""

    def __init__(self, network: Network, names: Lying, certificate: Path) -> None:
        self.network, self.names, self.certificate = network, names, certificate

    def leads_to(self, address: str) -> None:
        """From now on the name is that address."""
        self.names.say(NAME, "A", address)

    def who_answers(self) -> str:
        """The server's own address, asked for by its name and by TLS, and whose certificate is for that name."""
        by_tls = f"hostaddr=127.0.0.1 host={NAME} sslmode=verify-full sslrootcert={self.certificate}"
        asked = "SELECT host(inet_server_addr()) FROM pg_stat_ssl WHERE ssl AND pid = pg_backend_pid()"
        with self.network.inside("web"):
            return run("psql", f"{by_tls} user=relay dbname=postgres", "-Atqc", asked).decode().strip()


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(machines({"web": ["10.0.0.4"], "one": [ONE], "two": [TWO]}))
        # Not below the test's directory, which is closed to the user that PostgreSQL runs as.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-managed-")))
        directory.chmod(0o755)
        certificate, key = directory / "certificate.pem", directory / "key.pem"
        request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        names = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
        run("openssl", *request, *names, "-keyout", str(key), "-out", str(certificate))
        if (user := other_user()) is not None:
            shutil.chown(key, user)
        for host, address in (("one", ONE), ("two", TWO)):
            here = directory / host
            here.mkdir()
            with (apps.database(here) / "pg_hba.conf").open("a") as rules:
                rules.write("host all all all trust\n")
            tls = ("ssl=on", f"ssl_cert_file={certificate}", f"ssl_key_file={key}")
            database = patroni.listening(network, host, here, address, *tls)
            stack.callback(database.stop)
            database.start()
            run("psql", "-h", str(here), "-U", "relay", "-d", "postgres", "-qc", patroni.CREATE)
        with network.inside("web"):
            server = stack.enter_context(Lying(port=53))
        yield Provider(network, server, certificate)


@pytest.fixture
def door(provider: Provider, daemons: Daemons, tmp_path: Path) -> Iterator[Daemon]:
    """The relay of our machine, which asks that machine's DNS; it ends before the network does."""
    provider.names.say(NAME, "AAAA")
    provider.leads_to(ONE)
    settings = {"names": {"resolvers": ["127.0.0.1:53"]}, "state": str(tmp_path)}
    yield started(daemons, provider.network, "web", "managed-database", settings)
    daemons.end()


def test_a_name_that_leads_elsewhere(provider: Provider, door: Daemon) -> None:
    """By a switch that leaves the old machine at work, and by one that does not; TLS is between the two ends alone."""
    assert provider.who_answers() == ONE
    with provider.network.inside("web"), Writer(("127.0.0.1", 5432)).writing() as writer:
        writer.wait_for(ONE)
        provider.leads_to(TWO)
        eventually(lambda: list(targets(door, DOOR)) == [f"{TWO}:5432"], "the name leads to the new one")
        assert provider.who_answers() == TWO
        assert writer.written[-1].server == ONE, "who is there stays, until its lifetime is over"
        eventually(lambda: door.endpoint(DOOR)["active"] == 1, "it alone")
        provider.leads_to(ONE)
        eventually(lambda: list(targets(door, DOOR)) == [f"{ONE}:5432"], "it leads back")
        provider.network.cable("one", plugged=False)
        try:
            eventually(lambda: door.endpoint(DOOR)["closed"].get("target_down") == 1, "who is there is cut off")
            provider.leads_to(TWO)
            writer.wait_for(TWO)
        finally:
            provider.network.cable("one", plugged=True)


def test_without_dns_the_last_answer_stands(provider: Provider, door: Daemon) -> None:
    for kind in ("A", "AAAA"):
        provider.names.does(NAME, kind, SILENCE)
    eventually(lambda: source(door, NAME)["trouble"], "nobody answers")
    assert provider.who_answers() == ONE
    assert f"{NAME}" in door.relay("status").stdout
