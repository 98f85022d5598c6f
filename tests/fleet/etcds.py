"""Real etcd servers for tests, on free loopback ports; and what stands between one and its clients."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

from relay.config.document import parse
from relay.config.load import parse_service, parse_settings
from relay.config.model import Service
from relay.config.settings import Settings
from tests.harness import eventually
from tests.ports import free_ports

# A bound for hanging. At its start etcd waits for the disk in spite of --unsafe-no-fsync, and so for what others write.
START_S = 120.0


class EtcdServer:
    """One etcd with its data in a directory. Use as a context manager, which starts it."""

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        options: tuple[str, ...] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.data, self.options, self._tls = directory, directory / "data", options, tls
        self.port = free_ports(2)
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.data, ignore_errors=True)  # 128 MB of files for each of them

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it takes requests."""
        peer = f"http://127.0.0.1:{self.port + 1}"
        command = ["etcd", "--name", "one", "--data-dir", str(self.data), "--initial-cluster", f"one={peer}"]
        command += ["--listen-client-urls", self.url, "--advertise-client-urls", self.url]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--logger", "zap"]
        # Elections in a fifth of the usual time, and no waiting for a disk.
        command += ["--heartbeat-interval", "20", "--election-timeout", "200", "--unsafe-no-fsync", *self.options]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        if wait:
            self.ready()

    def ready(self) -> None:
        """Wait until it has a leader, which is itself, and takes requests."""
        eventually(self._healthy, f"etcd is ready: {self.directory}/log", START_S)

    def _healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.directory / "log").read_text()[-3000:]
        with contextlib.suppress(OSError, ValueError):
            opener = urllib.request.build_opener(
                urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._tls)
            )
            with opener.open(f"{self.url}/health", timeout=2) as answer:
                return bool(json.load(answer)["health"] == "true")
        return False

    def kill(self) -> None:
        """End it as a power cut would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def ctl(self, *words: str, told: str = "") -> str:
        """What etcdctl prints. `told`: its standard input."""
        command = ["etcdctl", f"--endpoints={self.url}", *words]
        done = subprocess.run(
            command,
            input=told,
            env={**os.environ, "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


class Forwarder:
    """A TCP forwarder on loopback that can stop forwarding, and keeps its connections open: a path that has died."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._flows = asyncio.Event()
        self._flows.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.accepted = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # for the transports to close

    def swallow(self) -> None:
        """From now on take everything and pass nothing on."""
        self._flows.clear()

    def flow(self) -> None:
        """Pass on again, also what was held."""
        self._flows.set()

    def drop(self) -> None:
        """Close every connection, with what was held, and pass on again what comes by new ones."""
        for task in list(self._tasks):
            task.cancel()
        self._flows.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(writer):
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
            with contextlib.closing(back):
                await asyncio.wait(
                    [asyncio.ensure_future(self._copy(reader, back)), asyncio.ensure_future(self._copy(there, writer))],
                    return_when=asyncio.FIRST_COMPLETED,
                )

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[str]:
    """The URL of a server that gives the same bytes to everybody, and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def settings(directory: Path, urls: list[str], *, address: str | None = "10.0.0.4", **registry: Any) -> Settings:
    """A machine's settings, with a machine id of its own per directory."""
    directory.mkdir(exist_ok=True)
    machine_id = directory / "machine-id"
    if not machine_id.exists():
        machine_id.write_text(f"{abs(hash(str(directory))):032x}\n")
    keys = {"etcd": urls, "ttl": "2s", "state": str(directory), **registry}
    plain: dict[str, Any] = {"role": "web", "machine_id": str(machine_id), "registry": keys}
    if address is not None:
        plain["address"] = address
    return parse_settings(parse(json.dumps(plain).encode(), "instance.yaml")).value


def service(name: str, count: int = 3) -> Service:
    """A service with a counted role `web` of so many, and a listed one."""
    text = f"version: 1\nservice: {name}\nroles:\n  web: {{instances: {count}}}\n  store: {{instances: [10.9.9.9]}}\n"
    return parse_service(parse(text.encode(), "service.yaml")).value


def certificates(directory: Path) -> dict[str, str]:
    """A CA, a server's certificate for 127.0.0.1, and a client's: paths by name."""
    directory.mkdir()

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True, timeout=START_S)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test CA", "-days", "2")
    for name in ("server", "client"):
        extensions = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
        (directory / f"{name}.ext").write_text(extensions)
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/O=test {name}")
        sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *sign)
    return {
        f"{name}.{kind}": str(directory / f"{name}.{kind}")
        for name in ("ca", "server", "client")
        for kind in ("pem", "key")
    }


def shared(tmp_path_factory: Any) -> Iterator[EtcdServer]:
    """For a module's fixture: one etcd for all its tests, which take a service's name each."""
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server
