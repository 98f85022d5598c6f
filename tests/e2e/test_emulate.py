"""`relay emulate`: the README's first command. What its table says is tried again, and its end leaves nothing behind."""

import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.e2e.peers import descendants, endpoint, gone, typed
from tests.harness import HANG_S, Echo, denied, dial, echoed, eventually, patched, run_relay
from tests.ports import claim, free_port, free_ports

SAMPLE = Path(__file__).parents[2] / "config" / "service.yaml"
# A machine that is busy with much else gets its time: nothing here ends by that.
PATIENT: Final = patched("relay.cli.emulate._START_S", "relay.cli.emulate._TRY_S", value=HANG_S)
OTHERS_S: Final = 200.0  # the tests of another run; below the time limit of a test
TIMED_OUT: Final = 28  # curl(1), of --max-time
GET = b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n"


class Emulation:
    """One `relay emulate`, as a terminal would have it: its own process group, output read as it comes."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self._errors = (directory / "stderr").open("ab")
        self.directory = Path(tempfile.mkdtemp(prefix="e2e-"))  # short: sockets go into it (unix(7): 108 bytes)
        self.process = subprocess.Popen(
            [sys.executable, *PATIENT, "emulate", *arguments],
            env={**os.environ, "TMPDIR": str(self.directory)},
            stdout=subprocess.PIPE,
            stderr=self._errors,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.text = ""
        self.children: list[int] = []

    def __enter__(self) -> "Emulation":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdout is not None
        try:
            if self.process.poll() is None:
                self.children += self.processes()
                self.process.kill()
            self.process.wait(HANG_S)
            for pid in self.children:  # what it left behind
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            eventually(lambda: all(map(gone, self.children)), "what it left behind has ended")
        finally:
            self.process.stdout.close()
            self._errors.close()
            shutil.rmtree(self.directory)

    def table(self) -> list[dict[str, str]]:
        """Wait for the table; its rows by title."""
        assert self.process.stdout is not None
        fd, deadline_s = self.process.stdout.fileno(), time.monotonic() + HANG_S
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while "admin sockets" not in self.text or not self.text.endswith("\n"):
                assert selector.select(max(0.0, deadline_s - time.monotonic())), f"no table: {self.text}"
                data = os.read(fd, 65536)
                assert data, f"it ended: {self.text}{self.errors()}"
                self.text += data.decode()
        self.children = descendants(self.process.pid)
        titles, *rows = (re.split(r" {2,}", line) for line in self.text.strip().split("\n\n")[0].splitlines())
        return [dict(zip(titles, [*row, ""], strict=False)) for row in rows]

    def errors(self) -> str:
        return Path(self._errors.name).read_text()

    def admin_sockets(self) -> dict[str, str]:
        return dict(re.findall(r"(\w+_IN_\d+)=(\S+)", self.text))

    def processes(self) -> list[int]:
        """Every process of it that there is now, but itself."""
        return descendants(self.process.pid)


@pytest.fixture(autouse=True)
def alone_with_the_addresses() -> Iterator[None]:
    """Emulated machines have fixed addresses, and some have fixed ports: one of these tests has them at a time."""
    with eventually(lambda: claim("emulate"), "nobody else runs these tests", OTHERS_S):
        yield


@pytest.fixture
def emulate(tmp_path: Path) -> Iterator[Any]:
    """Start an emulation with `emulate("FILE", …)`; it ends with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(Emulation(tmp_path, *arguments))


def is_so(claim: str, address: str, source: str, protocol: str) -> bool:
    """Whether a client from `source` meets what the table claims: "yes", an answer; "no", a reset with nothing before it."""
    host, port = address.rsplit(":", 1)
    if claim == "no":
        return denied(int(port), host=host, source=source)
    with dial(int(port), host=host, source=source) as client:
        client.sendall(GET if protocol == "http" else b"hello\n")
        return claim == "yes" and bool(client.recv(1000))


def follow(suggestion: str) -> str:
    """What comes of it when it is typed. Again where its curl waits for a second (-m1), and nothing had come by then."""

    def done() -> subprocess.CompletedProcess[str] | None:
        found = subprocess.run(["sh", "-c", suggestion], capture_output=True, text=True, timeout=HANG_S, check=False)
        late = "-sm1" in suggestion and (found.returncode, found.stdout) == (TIMED_OUT, "")
        return None if late else found

    return str(eventually(done, f"{suggestion} comes to its end").stdout)


def check_denials(admin: str, count: int) -> None:
    """So many were denied, and nobody else was reset: who is let in and sends nothing is, some time later."""

    def account() -> tuple[int, set[str]]:
        endpoints = json.loads(typed("status", "--socket", admin, "--json").stdout)["endpoints"]
        causes = {cause for each in endpoints for cause in each["closed"]}
        return sum(sum(each["denied"].values()) for each in endpoints), causes & {"first_byte_timeout"}

    eventually(lambda: account()[0] >= count, "each denial is counted")
    assert account() == (count, set())


@pytest.mark.real("curl")
def test_the_sample_every_claim_every_suggestion_and_its_end(emulate: Any) -> None:
    emulation = emulate(str(SAMPLE))
    rows = emulation.table()
    assert [(row["INSTANCE"], row["ENDPOINT"]) for row in rows] == [
        ("edge_IN_0", "web/http-in"),
        ("web_IN_0", "http-in"),
        ("web_IN_0", "db (out, to store/postgres)"),
        ("web_IN_1", "http-in"),
        ("web_IN_1", "db (out, to store/postgres)"),
        ("store_IN_0", "postgres"),
        ("store_IN_0", "redis"),
    ]
    sources = {"FROM outside": "127.0.0.1", "FROM web": "127.1.0.1", "FROM store": "127.2.0.1"}
    claims = {(row["ENDPOINT"], title): row[title] for row in rows for title in sources}
    assert set(claims.values()) == {"yes", "no", "-"}
    assert claims["postgres", "FROM outside"] == claims["postgres", "FROM store"] == "no"
    assert claims["http-in", "FROM outside"] == claims["http-in", "FROM web"] == "no", "behind the edge"
    assert (
        claims["web/http-in", "FROM outside"] == claims["postgres", "FROM web"] == claims["redis", "FROM web"] == "yes"
    )
    assert [row["FROM edge"] for row in rows] == ["yes", "yes", "-", "yes", "-", "no", "no"]
    doors = [row for row in rows if "(out" in row["ENDPOINT"]]
    assert [(row["ADDRESS"], row["FROM web"], row["FROM store"]) for row in doors] == [
        ("127.129.0.1:5432", "yes", "-"),
        ("127.129.0.2:5432", "yes", "-"),
    ]
    for row in [row for row in rows if row not in doors]:
        protocol = "http" if "http-in" in row["ENDPOINT"] else "tcp"
        for title, source in sources.items():
            assert is_so(row[title], row["ADDRESS"], source, protocol), (row, title)
    titles = [title for title in rows[0] if title.startswith("FROM ")]
    for instance, admin in emulation.admin_sockets().items():  # the emulation itself has tried as well what it claims
        tried = [row[title] for row in rows if row["INSTANCE"] == instance for title in (*titles, *sources)]
        check_denials(admin, tried.count("no"))

    by_way = [row for row in rows if row["TRY"] == "by way of the edge"]
    assert {row["ENDPOINT"] for row in by_way} == {"http-in"}

    def try_it(row: dict[str, str]) -> None:
        said = "http-in" if row["INSTANCE"] == "edge_IN_0" else f"{row['INSTANCE']} {row['ENDPOINT']}"
        said = "store_IN_0 postgres" if row in doors else said
        assert said in (told := follow(row["TRY"])), (row["TRY"], told)

    with ThreadPoolExecutor() as pool:
        list(pool.map(try_it, [row for row in rows if row not in by_way]))

    for instance, admin in emulation.admin_sockets().items():
        said = typed("status", "--socket", admin)
        assert (said.returncode, said.stdout.split()[0]) == (0, instance)
    assert len(emulation.admin_sockets()) == 4
    processes = emulation.processes()
    assert len(processes) >= 4 * 3
    os.killpg(emulation.process.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    assert emulation.process.wait(HANG_S) == 0
    assert all(map(gone, processes))
    assert list(emulation.directory.iterdir()) == []
    assert "Traceback" not in emulation.errors()


def small(directory: Path, *, target: str = "127.0.0.1:9", port: int = 0) -> tuple[Path, int]:
    """A service file of one instance, and its port."""
    port = port or free_port("127.1.0.1")
    file = directory / "small.yaml"
    roles = {"web": {"instances": ["10.0.0.4"], "endpoints": {"in": endpoint(port, target)}}}
    file.write_text(yaml.safe_dump({"version": 1, "service": "small", "roles": roles}))
    return file, port


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP], ids=["TERM", "the terminal is closed"])
def test_other_ends_leave_nothing_either(emulate: Any, tmp_path: Path, end: signal.Signals) -> None:
    file, port = small(tmp_path)
    emulation = emulate(str(file))
    emulation.table()
    processes = emulation.processes()
    with dial(port, host="127.1.0.1") as client:
        assert echoed(client, b"hi\n")[:3] == b"web"
        os.kill(emulation.process.pid, end)
        emulation.process.wait(HANG_S)
        eventually(lambda: all(map(gone, processes)), "its processes ended")
    assert list(emulation.directory.iterdir()) == []


def test_a_killed_emulation_leaves_no_daemon(emulate: Any, tmp_path: Path) -> None:
    """Nobody could tell the daemons to stop; they must notice."""
    file, _ = small(tmp_path)
    emulation = emulate(str(file))
    emulation.table()
    processes = emulation.processes()
    emulation.process.kill()
    emulation.process.wait(HANG_S)
    eventually(lambda: all(map(gone, processes)), "its daemons ended")


def test_without_demos_the_files_own_targets_are_used(emulate: Any, tmp_path: Path) -> None:
    with Echo(("127.0.0.1", free_port())) as echo:  # a port that stays free when it has ended
        file, port = small(tmp_path, target=echo.target)
        (row,) = emulate("--no-demo", str(file)).table()
        assert (row["FROM outside"], row["FROM web"]) == ("yes", "yes")
        with dial(port, host="127.1.0.1", source="127.0.0.1") as client:
            assert echoed(client) == b"ping"
    assert denied(port, host="127.1.0.1")


def test_a_range_and_a_target_that_is_an_instances_own_address(emulate: Any, tmp_path: Path) -> None:
    """The emulated instance has another address than the file's, and its daemon must not take the target for unsafe."""
    first = free_ports(3, "127.1.0.1")
    file = tmp_path / "range.yaml"
    roles = {
        "web": {
            "instances": ["10.0.0.4"],
            "endpoints": {"in": {"type": "internal", "port": f"{first}-{first + 2}", "target": "10.0.0.4:1-3"}},
        },
        "app": {"instances": ["10.0.0.5"], "endpoints": {"in": endpoint(free_port("127.2.0.1"), "10.0.0.5:9")}},
    }
    file.write_text(yaml.safe_dump({"version": 1, "service": "range", "roles": roles}, sort_keys=False))
    row, _ = emulate(str(file)).table()
    assert row["ADDRESS"] == f"127.1.0.1:{first}-{first + 2}"
    assert (row["FROM outside"], row["FROM web"], row["FROM app"]) == ("no", "yes", "yes")
    for port in range(first, first + 3):
        with dial(port, host="127.1.0.1", source="127.2.0.1") as client:
            assert echoed(client, b"hi\n")[:3] == b"web"


def test_machines_without_relay_and_several_targets(emulate: Any, tmp_path: Path) -> None:
    """A bare instance is a demo service of its own, at its address, and whoever reaches it is served."""
    public, private, many = free_port("127.250.0.1"), free_port("127.1.0.1"), free_port("127.2.0.1")
    file = tmp_path / "bare.yaml"
    http = {"type": "input", "protocol": "http", "public_port": public, "port": private}
    several = {"target": ["127.0.0.1:1", "127.0.0.1:2"], "target_distribution": "round-robin"}
    roles = {
        "old": {
            "bare": True,
            "instances": ["10.0.0.4", {"address": "db.example.com", "weight": 2}],
            "endpoints": {"http": http | {"probe": {"protocol": "http", "path": "/", "interval": "100ms"}}},
        },
        "web": {"instances": ["10.0.0.5"], "endpoints": {"in": endpoint(many, "") | several}},
    }
    edge = {"instances": ["10.0.0.9"]}
    file.write_text(yaml.safe_dump({"version": 1, "service": "bare", "edge": edge, "roles": roles}, sort_keys=False))
    emulation = emulate(str(file))
    rows = {(row["INSTANCE"], row["ENDPOINT"]): row for row in emulation.table()}
    assert [row["FROM outside"] for row in rows.values()] == ["yes", "yes", "yes", "yes", "no"]
    assert rows["old_IN_1", "http"]["ADDRESS"] == f"127.1.0.2:{private}"
    found = set()
    for _ in range(50):
        with socket.create_connection(("127.250.0.1", public)) as client:
            client.sendall(GET)
            found.add(client.recv(4096).split(b"\r\n\r\n")[1])
    assert found == {b"hello from old_IN_0 http\n", b"hello from old_IN_1 http\n"}
    assert "old_IN_0=" not in emulation.text, "there is no admin socket where there is no relay"


def test_an_instance_that_dies_ends_it_all(emulate: Any, tmp_path: Path) -> None:
    file, _ = small(tmp_path)
    emulation = emulate(str(file))
    emulation.table()
    processes = emulation.processes()
    os.kill(emulation.children[0], signal.SIGKILL)
    assert emulation.process.wait(HANG_S) == 1
    eventually(lambda: all(map(gone, processes)), "its processes ended")
    assert "ended by itself" in emulation.errors()
    assert list(emulation.directory.iterdir()) == []


def test_the_longest_names_that_a_file_may_have(emulate: Any, tmp_path: Path) -> None:
    """They are in the paths of sockets, which may not be long."""
    file = tmp_path / "long.yaml"
    roles = {
        "r" * 40: {"instances": ["10.0.0.4"], "endpoints": {"e" * 40: endpoint(free_port("127.1.0.1"), "127.0.0.1:9")}}
    }
    file.write_text(yaml.safe_dump({"version": 1, "service": "long", "roles": roles}))
    assert typed("check", str(file)).returncode == 0
    (row,) = emulate(str(file)).table()
    assert row["FROM outside"] == "yes"


def test_a_port_in_use(emulate: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.1.0.1", 0)) as holder:
        file, port = small(tmp_path, port=holder.getsockname()[1])
        emulation = emulate(str(file))
        assert emulation.process.wait(HANG_S) == 1
    assert f"web_IN_0: relay: cannot listen on 127.1.0.1:{port} for web/in: the address is in use" in emulation.errors()
    assert "Traceback" not in emulation.errors()
    assert list(emulation.directory.iterdir()) == []


def test_a_bad_file(tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text("version: 1\nservice: x\nroles: {web: {instances: [10.0.0.4], endpoint: {}}}\n")
    done = run_relay("emulate", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{file}:3:")
    assert "did you mean `endpoints`" in done.stderr
    missing = run_relay("emulate", str(tmp_path / "missing.yaml"))
    assert (missing.returncode, "no such file" in missing.stderr) == (1, True)
