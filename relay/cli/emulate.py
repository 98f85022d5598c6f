"""`relay emulate`: a whole service on one machine, each instance a real daemon on a loopback address of its own.

The daemons are the same `relay run` that a machine would have; only the roster's addresses are replaced by 127.x.y.z and,
with demo services, the targets. The table that is printed is not derived from the file: each entry was tried.
"""

import asyncio
import contextlib
import copy
import functools
import os
import signal
import socket
import ssl
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from relay.address import join_host_port
from relay.cli import demo
from relay.cli.columns import table
from relay.config.load import Loaded, load_service
from relay.config.model import Service
from relay.config.roster import EDGE
from relay.config.snapshot import BY_INSTANCE
from relay.config.values import Ports
from relay.envelope import proxyproto
from relay.errors import OperatorError
from relay.kernel import process

_START_S = 20.0  # a daemon is up in well under a second; a loaded machine gets its time
_TRY_S = 3.0
_OUTSIDE = "127.0.0.1"  # no instance has it, so it stands for everybody else
_METRICS_PORT = 9464
_PRIVILEGED = 1024  # ip(7), ip_unprivileged_port_start
_OUT = 128  # between the second numbers of an instance's address and of its doors'
_DEMOS_PROBE = ("protocol", "path", "interval", "timeout")
_INSTANCES_MAX = 100  # three processes each: more say nothing new, and take the machine down


@dataclass(frozen=True, slots=True)
class Instance:
    """One emulated machine."""

    id: str
    role: str
    address: str
    bare: bool = False  # there is no relay on it


@dataclass(frozen=True, slots=True)
class EmulatedPort:
    """One endpoint of one emulated machine, or its door out."""

    instance: Instance
    name: str
    protocol: str
    ports: Ports
    behind_edge: bool = False
    out: str = ""  # of a door out: where it leads to

    @property
    def port(self) -> int:
        """The one that is tried: the first."""
        return self.ports.first

    @property
    def address(self) -> str:
        """Where it listens. A door out is a loopback port of its machine: here of 127.129.0.1, where that is 127.1.0.1."""
        first, second, *rest = self.instance.address.split(".")
        return ".".join([first, str(_OUT + int(second)), *rest]) if self.out else self.instance.address


def instances(service: Service) -> list[Instance]:
    """Every machine with its loopback address: the edge's are 127.250.0.1 …, the first role's 127.1.0.1, 127.1.0.2 …"""
    edges = service.edge.instances if service.edge is not None else ()
    return [Instance(f"{EDGE}_IN_{n}", EDGE, f"127.250.0.{1 + n}") for n in range(len(edges))] + [
        Instance(f"{name}_IN_{ordinal}", name, f"127.{1 + number}.{ordinal // 250}.{1 + ordinal % 250}", role.bare)
        for number, (name, role) in enumerate(service.roles.items())
        for ordinal in range(role.count if role.counted else len(role.items))
    ]


def emulate(path: str, *, demo: bool) -> int:
    """Run the service in the file at `path` until SIGINT or SIGTERM; the exit status. Raises OperatorError."""
    loaded = load_service(path, piped=True)
    if (count := len(instances(loaded.value))) > _INSTANCES_MAX:
        raise OperatorError(
            f"{path} has {count} instances, each a daemon here; emulate one with {_INSTANCES_MAX} or fewer"
        )
    for warning in loaded.warnings:
        print(warning, file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="relay-emulate-") as directory:
        return asyncio.run(_Emulation(loaded, Path(directory), demo).run())


class _Emulation:
    def __init__(self, loaded: Loaded[Service], directory: Path, demo: bool) -> None:
        self._loaded = loaded
        self._directory = directory
        self._demo = demo
        self._instances = instances(loaded.value)
        self._edges = {each.address for each in self._instances if each.role == EDGE}
        self._daemons: list[asyncio.subprocess.Process] = []
        self._servers: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = asyncio.Event()
        self._shown = asyncio.Event()  # the table stands; before that, log lines wait

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(sig, self._stop.set)
        try:
            if self._demo:
                await self._start_demos()
            await asyncio.gather(*(self._start(instance) for instance in self._instances if not instance.bare))
            print(await self._table(), flush=True)
            self._shown.set()
            await self._until_end()
        finally:
            self._shown.set()
            await self._end()
        return 0

    # --- start --------------------------------------------------------------------------------------------------

    async def _start_demos(self) -> None:
        tls: ssl.SSLContext | None = None
        for port in self._ports():
            if port.instance.role == EDGE or port.out:
                continue
            name, where = f"{port.instance.id} {port.name}", self._demo_path(port.instance.id, port.name)
            at = (port.address, port.port) if port.instance.bare else where
            if port.protocol == "https":
                tls = tls or demo.self_signed(self._directory)
                if tls is not None:
                    self._servers.append(await demo.serve_http(at, name, tls))
            elif port.protocol == "http":
                self._servers.append(await demo.serve_http(at, name))
            else:
                self._servers.append(await demo.serve_echo(at, name))

    async def _start(self, instance: Instance) -> None:
        service, settings = self._write_files(instance)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.setblocking(False)
            notify.bind(str(self._directory / f"{self._number(instance.id)}.notify"))
            daemon = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "relay", "run", "--id", instance.id),
                *("--service", str(service), "--settings", str(settings)),
                env={**_environment(), "NOTIFY_SOCKET": notify.getsockname()},
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for us; we tell them
                preexec_fn=functools.partial(process.die_with_parent, os.getpid(), signal.SIGTERM),
            )
            self._daemons.append(daemon)
            self._tasks.append(asyncio.create_task(self._copy_log(instance.id, daemon), name=f"log of {instance.id}"))
            ended = asyncio.create_task(daemon.wait())
            ready = asyncio.create_task(_until_ready(notify))
            await asyncio.wait((ended, ready), timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
            up = ready.done()
            for task in (ended, ready):
                task.cancel()
        if not up:
            raise OperatorError(f"{instance.id} did not start; its log is above")

    def _write_files(self, instance: Instance) -> tuple[Path, Path]:
        data: dict[str, Any] = copy.deepcopy(self._loaded.document.data)
        if self._loaded.value.edge is not None:
            data["edge"]["instances"] = [each.address for each in self._instances if each.role == EDGE]
        for role_name, role in data["roles"].items():
            role["instances"] = [each.address for each in self._instances if each.role == role_name]
            for name, used in (role.get("uses") or {}).items():
                door = next((each for each in self._doors_out(instance) if each.name == name), None)
                if role_name == instance.role and door is not None:
                    used["listen"] = join_host_port(door.address, door.port)
            for name, endpoint in (role.get("endpoints") or {}).items():
                if not role.get("bare"):  # the file was checked as it stands; here instances have other addresses
                    endpoint["unsafe_target"] = True
                if self._loaded.value.edge is not None and endpoint.get("public_port"):
                    endpoint.setdefault("port", endpoint["public_port"])
                    endpoint["public_port"] = _unprivileged(endpoint["public_port"])
                if self._demo:
                    _lead_to_demo(endpoint)
                if self._demo and role_name == instance.role:
                    endpoint["target"] = f"unix:{self._demo_path(instance.id, name)}"
        settings = {
            "metrics": {"listen": join_host_port(instance.address, _METRICS_PORT)},
            "admin": {"socket": str(self._admin_path(instance.id))},
            "log": {"format": "text"},
            "drain": "500ms",
        }
        files = self._directory / f"{instance.id}.service.yaml", self._directory / f"{instance.id}.instance.yaml"
        for file, content in zip(files, (data, settings), strict=True):
            file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return files

    async def _copy_log(self, name: str, daemon: asyncio.subprocess.Process) -> None:
        assert daemon.stderr is not None
        await self._shown.wait()
        while line := await daemon.stderr.readline():
            sys.stderr.write(f"{name}: {line.decode(errors='replace')}")
            sys.stderr.flush()

    # --- what is reachable where --------------------------------------------------------------------------------

    async def _table(self) -> str:
        sources = {"outside": _OUTSIDE}
        for instance in self._instances:
            sources.setdefault(instance.role, instance.address)
        titles = ["INSTANCE", "ENDPOINT", "ADDRESS", *(f"FROM {name}" for name in sources), "TRY"]
        ports = list(self._ports())
        tried = await asyncio.gather(*(self._try_as(port, name, sources) for port in ports for name in sources))
        answers = iter(tried)
        rows = []
        for port in ports:
            cells = [next(answers) for _ in sources]
            source = next((address for address, cell in zip(sources.values(), cells, strict=True) if cell == "yes"), "")
            name = f"{port.name} (out, to {port.out})" if port.out else port.name
            rows.append([port.instance.id, name, f"{port.address}:{port.ports}", *cells, _suggestion(port, source)])
        tried_how = "FROM x: a connection from there was just tried, to the first port of a range. Ctrl-C ends it all."
        lines = [table(titles, rows), "", tried_how]
        admin = "  ".join(f"{each.id}={self._admin_path(each.id)}" for each in self._instances if not each.bare)
        return "\n".join(["", *lines, f"admin sockets, for `relay status --socket …`: {admin}", ""])

    async def _try_as(self, port: EmulatedPort, name: str, sources: dict[str, str]) -> str:
        if not port.out:
            return await self._try(port, sources[name])
        # All of 127.0.0.0/8 is this machine, and so let in; elsewhere each instance has its own.
        return await self._try(port, port.instance.address) if name == port.instance.role else "-"

    async def _try(self, port: EmulatedPort, source: str) -> str:
        """Whether a connection from `source` is let in: yes, no, or what else came of it."""
        request = b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n" if port.protocol == "http" else b"hello\n"
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if port.protocol == "https" else None
        if tls is not None:  # the demo's certificate is its own; this asks who is let in, not who answers
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
            request = b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n"
        try:
            async with asyncio.timeout(_TRY_S):
                reader, writer = await asyncio.open_connection(port.address, port.port, local_addr=(source, 0))
                with contextlib.closing(writer):
                    if port.behind_edge and source in self._edges:
                        writer.write(proxyproto.LOCAL_V2)  # an edge says who it speaks for: here for itself
                    if tls is not None:
                        await writer.start_tls(tls)
                    writer.write(request)
                    try:
                        return "yes" if await reader.readline() else "no answer"
                    except OSError:
                        # What broke it stands in the writer too. If nobody asks there, asyncio may write on standard error
                        # that an exception was never retrieved.
                        await writer.wait_closed()  # raises the same
                        raise
        except ConnectionResetError:
            return "no" if self._demo else "no, or no target"
        except TimeoutError:
            return "no answer"
        except OSError as error:
            return type(error).__name__

    # --- the end ------------------------------------------------------------------------------------------------

    async def _until_end(self) -> None:
        waits = [asyncio.create_task(daemon.wait()) for daemon in self._daemons]
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait([stop, *waits], return_when=asyncio.FIRST_COMPLETED)
        for task in (stop, *waits):
            task.cancel()
        if not self._stop.is_set():
            raise OperatorError("an instance ended by itself; its log is above")

    async def _end(self) -> None:
        for daemon in self._daemons:
            with contextlib.suppress(ProcessLookupError):
                daemon.terminate()
        for daemon in self._daemons:
            await daemon.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            server.close()

    # --- small parts --------------------------------------------------------------------------------------------

    def _ports(self) -> Iterator[EmulatedPort]:
        service = self._loaded.value
        for instance in self._instances:
            if instance.role == EDGE:
                yield from self._public_ports(instance)
                continue
            for name, endpoint in service.roles[instance.role].endpoints.items():
                behind_edge = service.edge is not None and endpoint.type == "input" and not instance.bare
                yield EmulatedPort(instance, name, endpoint.protocol, endpoint.listen_ports, behind_edge)
            yield from self._doors_out(instance)

    def _doors_out(self, instance: Instance) -> Iterator[EmulatedPort]:
        roles = self._loaded.value.roles
        for name, door in roles[instance.role].uses.items() if instance.role in roles else ():
            role, endpoint = door.endpoint
            port = _unprivileged(door.listen.port)
            protocol = roles[role].endpoints[endpoint].protocol
            yield EmulatedPort(instance, name, protocol, Ports(port, port), out=f"{role}/{endpoint}")

    def _public_ports(self, edge: Instance) -> Iterator[EmulatedPort]:
        for role_name, role in self._loaded.value.roles.items():
            for name, endpoint in role.endpoints.items():
                if endpoint.public_port is not None and role.count:
                    port = _unprivileged(endpoint.public_port)
                    yield EmulatedPort(edge, f"{role_name}/{name}", endpoint.protocol, Ports(port, port))
                if endpoint.instance_ports is not None and role.count:
                    first = endpoint.instance_ports.first
                    ports = Ports(first, first + role.count - 1)
                    yield EmulatedPort(edge, f"{role_name}/{name}{BY_INSTANCE}", endpoint.protocol, ports)

    def _demo_path(self, instance: str, endpoint: str) -> Path:
        # A Unix socket's path has 107 bytes at most (unix(7)), and names may be long.
        names = list(self._loaded.value.roles[instance.rpartition("_IN_")[0]].endpoints)
        return self._directory / f"{self._number(instance)}.{names.index(endpoint)}.demo"

    def _admin_path(self, instance: str) -> Path:
        return self._directory / f"{self._number(instance)}.admin"

    def _number(self, instance: str) -> int:
        return next(n for n, each in enumerate(self._instances) if each.id == instance)


def _lead_to_demo(endpoint: dict[str, Any]) -> None:
    """A demo is one service, at one place, and knows nothing of what a probe asks for beyond a path."""
    if isinstance(endpoint.get("target"), list):
        endpoint["target"] = endpoint["target"][0]
    endpoint.pop("target_distribution", None)
    if isinstance(probe := endpoint.get("probe"), dict):
        endpoint["probe"] = {key: value for key, value in probe.items() if key in _DEMOS_PROBE}


def _unprivileged(port: int) -> int:
    """A public port as it is here: one that needs a privilege is 8000 higher, so that 80 is 8080 for everybody."""
    return port + 8000 if port < _PRIVILEGED else port


def _suggestion(port: EmulatedPort, source: str) -> str:
    if not source:
        return ""
    if port.behind_edge:
        return "by way of the edge"
    where, out = (
        join_host_port(port.address, port.port),
        "" if source == _OUTSIDE else f" --interface {source}",
    )
    match port.protocol:
        case "http":
            return f"curl{out} http://{where}/"
        case "https":
            return f"curl -k{out} https://{where}/"
        case _:
            return f"echo hi | curl -sm1{out} telnet://{where}"


async def _until_ready(notify: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while b"READY=1" not in (await loop.sock_recv(notify, 4096)).split(b"\n"):
        pass


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("RELAY_")}
