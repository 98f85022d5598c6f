"""A fleet on one machine: daemons that take their numbers from a real etcd, each on a loopback address of its own."""

import contextlib
import copy
import secrets
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from tests.fleet.etcds import EtcdServer
from tests.harness import Daemon, Echo, dial, echoed, eventually, stop_all, web_and_store
from tests.ports import free_port

TTL_S: Final = 200  # a lease that does not run out, however slow the machine is, nor within any wait of a test
SHORT_TTL_S: Final = 10  # where a lease's time is waited for


class Fleet:
    """Machines of two counted roles: `web`, which has a door out to `store`, and `store` with an internal endpoint."""

    def __init__(self, directory: Path, etcd: EtcdServer) -> None:
        self.directory, self.etcd = directory, etcd
        self.name = f"s{secrets.token_hex(4)}"  # so that one etcd does for many tests
        self.ttl_s = TTL_S
        self.program: tuple[str, ...] = ("-m", "relay")
        self.wrapper: tuple[str, ...] = ()
        self.port, self.door = free_port("0.0.0.0"), free_port("0.0.0.0")  # each machine has an address of its own
        self.machines: dict[str, Daemon] = {}
        self._number = 0

    def __enter__(self) -> "Fleet":
        self.echo = Echo().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as each:
            each.callback(self.echo.__exit__)
            stop_all(self.machines.values())

    def service(self, counts: tuple[int, int] = (3, 3), door: str = "127.0.0.1") -> dict[str, Any]:
        """The service file."""
        store = {"type": "internal", "port": self.port, "target": self.echo.target, "from": ["web"]}
        return web_and_store(*counts, f"{door}:{self.door}", {"pg": store}, name=self.name)

    def machine(self, role: str, **settings: Any) -> Daemon:
        """A machine that has not been started, with an address, a machine id and a directory of its own."""
        self._number += 1
        place = self.directory / f"{self._number}"
        place.mkdir()
        (place / "machine-id").write_text(secrets.token_hex(16))
        address = f"127.77.0.{self._number}"
        own = {
            "role": role,
            "address": address,
            "workers": 1,
            "drain": "1s",
            "machine_id": str(place / "machine-id"),
            "registry": {"etcd": [self.etcd.url], "ttl": f"{self.ttl_s}s", "state": str(place)},
            **settings,
        }
        daemon = Daemon(
            place,
            self.service(door=f"127.78.0.{self._number}"),
            own,
            instance="",
            wrapper=self.wrapper,
            program=self.program,
        )
        self.machines[address] = daemon
        return daemon

    def start(self, role: str, **settings: Any) -> Daemon:
        """The same, started."""
        return self.machine(role, **settings).start()

    def again(self, daemon: Daemon, *, address: str | None = None, wrapper: tuple[str, ...] = ()) -> Daemon:
        """Another daemon of the same machine; or, with another address, a clone of it."""
        self._number += 1
        place = self.directory / f"{self._number}"
        # What is just being written has a name with a dot before it.
        shutil.copytree(daemon.directory, place, ignore=shutil.ignore_patterns("*.sock", "log", ".*"))
        before = str(daemon.directory)
        made = copy.copy(daemon)
        text = daemon.settings_file.read_text().replace(before, str(place))
        if address is not None:
            text = text.replace(address_of(daemon), address)
        Daemon.__init__(made, place, {}, instance="", wrapper=wrapper)
        shutil.copy(daemon.service_file, made.service_file)
        made.settings_file.write_text(text)
        self.machines[f"{self._number}"] = made
        return made


def address_of(daemon: Daemon) -> str:
    """By its settings."""
    return next(
        line.split()[1] for line in daemon.settings_file.read_text().splitlines() if line.startswith("address:")
    )


def instance_of(daemon: Daemon) -> str:
    """Which instance it is."""
    return str(daemon.status()["instance"])


def roster_of(daemon: Daemon) -> set[str]:
    """Whom it knows."""
    code, found = daemon.ask("GET", "/v1/instances")
    assert code == 200
    return {each["id"] for each in found}


def is_applied(daemon: Daemon) -> bool:
    """Whether all workers go by what control knows: they are told after it says so itself."""
    status = daemon.status()
    return all(worker["generation"] == status["generation"] for worker in status["workers"])


def knows(daemon: Daemon, *ids: str) -> None:
    """Wait until it knows exactly these, and goes by that."""
    eventually(lambda: roster_of(daemon) == set(ids) and is_applied(daemon), f"it knows {ids}")


def is_admitted(host: str, port: int, source: str) -> bool:
    """Whether a connection gets an answer."""
    with contextlib.suppress(ConnectionResetError), dial(port, host=host, source=source) as client:
        return echoed(client) == b"ping"
    return False
