"""A real daemon for tests: started as a user would start it, awaited by its readiness notice, ended by its pid."""

import contextlib
import errno
import gc
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml
from hypothesis import settings
from prometheus_client.parser import text_string_to_metric_families

from relay.kernel.sockets import attach_filter

HANG_S: Final = 60.0  # the bound of every wait: for hanging, not for speed
_POLL_S: Final = 0.01
_LINE_BEGINS: Final = '{"time":'  # of every record that the log has


def eventually(check: Callable[[], Any], what: str, within_s: float = HANG_S) -> Any:
    """The first true value of `check`: for what no event can be awaited of, such as another process's counters."""
    deadline_s = time.monotonic() + within_s
    while True:
        last = time.monotonic() > deadline_s  # read before the look, so there is always one after the deadline
        if value := check():
            return value
        if last:
            raise AssertionError(f"not within {within_s} s: {what}")
        time.sleep(_POLL_S)


@contextlib.contextmanager
def heap_set_aside() -> Iterator[None]:
    """For measuring CPU time in this process: meanwhile the garbage collector looks at nothing that is there already.

    After some thousand tests that takes longer than most of what is measured, and comes at any moment.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def examples(usual: int, **keys: Any) -> settings:
    """Settings for a Hypothesis test of so many examples, and of 20 times as many in a long run (`--long`)."""
    return settings(max_examples=usual * settings().max_examples // 100, **keys)


class Daemon:
    """One `relay run` in a directory of its own, told which `instance` it is unless that is empty. A context manager."""

    def __init__(
        self,
        directory: Path,
        service: dict[str, Any],
        settings: dict[str, Any] | None = None,
        *,
        instance: str = "web_IN_0",
        environment: dict[str, str] | None = None,
        before_exec: Callable[[], None] | None = None,
        wrapper: tuple[str, ...] = (),
        program: tuple[str, ...] = ("-m", "relay"),
    ) -> None:
        self.directory = directory
        self.service_file = directory / "service.yaml"
        self.settings_file = directory / "instance.yaml"
        self.admin_socket = directory / "admin.sock"
        self.log_file = directory / "log"
        self.instance = instance
        self.write_service(service)
        defaults = {"metrics": False, "admin": {"socket": str(self.admin_socket)}, "drain": "2m"}
        self.settings_file.write_text(yaml.safe_dump({**defaults, **(settings or {})}))
        self._environment = environment or {}
        self._before_exec = before_exec
        self._wrapper = wrapper
        self._program = program
        self.process: subprocess.Popen[bytes] | None = None

    def write_service(self, service: dict[str, Any]) -> None:
        """Replace the service file, as an editor would: whole."""
        new = self.service_file.with_suffix(".new")
        new.write_text(yaml.safe_dump(service, sort_keys=False))
        new.rename(self.service_file)

    def start(self, *, wait: bool = True) -> "Daemon":
        """Start it and wait until it says READY=1. Raises AssertionError with its log when it ends before that."""
        try:
            self._start(wait=wait)
        except BaseException:
            self.kill()
            raise
        return self

    def _start(self, *, wait: bool) -> None:
        notify_path = self.directory / "notify.sock"
        notify_path.unlink(missing_ok=True)
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with notify, self.log_file.open("ab") as log:
            notify.bind(str(notify_path))
            notify_path.chmod(0o777)
            notify.settimeout(0.05)
            command = [*self._wrapper, sys.executable, *self._program, "run", "--service", str(self.service_file)]
            self.process = subprocess.Popen(
                [*command, "--settings", str(self.settings_file), *(("--id", self.instance) if self.instance else ())],
                env={**os.environ, "NOTIFY_SOCKET": str(notify_path), **self._environment},
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=self._before_exec,
                start_new_session=True,
            )
            deadline_s = time.monotonic() + HANG_S
            while wait:
                with contextlib.suppress(TimeoutError):
                    if b"READY=1" in notify.recv(4096).split(b"\n"):
                        break
                assert self.process.poll() is None, f"relay did not start:\n{self.log_text()}"
                assert time.monotonic() < deadline_s, f"relay is not ready:\n{self.log_text()}"

    def __enter__(self) -> "Daemon":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The main process: the keeper."""
        assert self.process is not None
        return self.process.pid

    def stop(self) -> int:
        """End it at once, its connections too; its exit status."""
        process = self.process
        assert process is not None
        for number in (signal.SIGTERM, signal.SIGINT):  # two are at once; of one kind they could become one (signal(7))
            if process.poll() is None:
                process.send_signal(number)
        try:
            return process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """End all its processes at once, if it was started, as a power cut would."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def ask(self, method: str, path: str) -> tuple[int, Any]:
        """One request to the admin API: (HTTP status, JSON value)."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.closing(connection), connection.sock.dup() as end:
            connection.sock.settimeout(HANG_S)
            end.settimeout(HANG_S)
            connection.sock.connect(str(self.admin_socket))
            connection.request(method, path, headers={"Connection": "close"})
            response = connection.getresponse()
            value = json.loads(response.read())
            end.recv(1)  # nothing of this request is open there any more
            return response.status, value

    def status(self) -> dict[str, Any]:
        """`GET /v1/status`."""
        code, value = self.ask("GET", "/v1/status")
        assert code == 200, value
        return dict(value)

    def endpoint(self, name: str) -> dict[str, Any]:
        """One endpoint's part of the status."""
        (found,) = (each for each in self.status()["endpoints"] if each["name"] == name)
        return dict(found)

    def worker_pid(self) -> int:
        """The pid of the first worker."""
        return int(self.status()["workers"][0]["pid"])

    def log_text(self) -> str:
        """Everything the daemon wrote so far."""
        return self.log_file.read_text(errors="replace")

    def events(self, event: str) -> Iterator[dict[str, Any]]:
        """The log's records of one kind so far."""
        whole_lines = self.log_text().rpartition("\n")[0]
        for line in whole_lines.splitlines():
            # SIGKILL may cut a write to a file short; then the next control's first line stands right behind it.
            if line.startswith("{") and (record := json.loads(line[line.rfind(_LINE_BEGINS) :]))["event"] == event:
                yield record

    def relay(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another relay command against this daemon's settings."""
        return run_relay(*arguments, "--settings", str(self.settings_file))


def run_relay(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one relay command to its end."""
    command = [sys.executable, "-m", "relay", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=HANG_S)


def one_endpoint(port: int, target: str, *, host: str = "127.0.0.1", **keys: Any) -> dict[str, Any]:
    """A service of one instance `web_IN_0` on `host` with one input endpoint `web/in`; `keys` are added to it."""
    endpoint = {"type": "input", "public_port": port, "target": target, **keys}
    return {"version": 1, "service": "test", "roles": {"web": {"instances": [host], "endpoints": {"in": endpoint}}}}


def service(endpoints: dict[str, dict[str, Any]], *, host: str = "127.0.0.1") -> dict[str, Any]:
    """A service of one instance `web_IN_0` on `host` with these endpoints, as a file has them."""
    return {"version": 1, "service": "test", "roles": {"web": {"instances": [host], "endpoints": endpoints}}}


def web_and_store(
    web: list[str] | int, store: list[str] | int, door: str, endpoints: dict[str, dict[str, Any]], *, name: str = "shop"
) -> dict[str, Any]:
    """A service whose role `web` has a door out, at this address, to the endpoint `pg` among those of `store`."""
    uses = {"db": {"endpoint": "store/pg", "listen": door, "connect": "2s"}}
    roles = {"web": {"instances": web, "uses": uses}, "store": {"instances": store, "endpoints": endpoints}}
    return {"version": 1, "service": name, "roles": roles}


def takes_filters() -> bool:
    """Whether the kernel takes a packet filter for a TCP socket from this process."""
    with socket.socket() as probe:
        try:
            attach_filter(probe, struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF))
        except PermissionError:
            return False
        return True


def unanswered(port: int, source: str, *, host: str = "127.0.0.1", for_s: float = 1.5) -> bool:
    """Whether a connection from `source` gets no answer at all for so long: a refusal would come at once."""
    try:
        socket.create_connection((host, port), for_s, source_address=(source, 0)).close()
    except TimeoutError:
        return True
    except ConnectionError:
        return False
    return False


class _ResetAlready(socket.socket):
    """A connection that was reset before connect(2) had returned, which told of it: so do the calls that follow."""

    def recv(self, *_: object) -> NoReturn:
        raise ConnectionResetError(errno.ECONNRESET, "reset before connect returned")

    send = sendall = recv


def dial(port: int, *, host: str = "127.0.0.1", source: str | None = None) -> socket.socket:
    """A client's connection, from the address `source` if given. That it is reset is told by its use and never here."""
    try:
        return socket.create_connection((host, port), HANG_S, source_address=(source, 0) if source else None)
    except ConnectionResetError:
        return _ResetAlready()


def denied(port: int, *, host: str = "127.0.0.1", source: str | None = None) -> bool:
    """Whether a connection is reset at once, with nothing sent before that."""
    try:
        with dial(port, host=host, source=source) as client:
            return client.recv(1) == b"?"
    except ConnectionResetError:
        return True


def echoed(client: socket.socket, data: bytes = b"ping") -> bytes:
    """Send `data`; as many bytes as came back, less only when the connection ended."""
    client.sendall(data)
    back = b""
    while len(back) < len(data) and (part := client.recv(len(data) - len(back))):
        back += part
    return back


def stop_all(daemons: Iterable[Daemon]) -> None:
    """Stop those that run, all at the same time, and whatever becomes of one of them."""
    with contextlib.ExitStack() as each:
        for daemon in daemons:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.process.terminate()
                each.callback(daemon.stop)


def patched(*constants: str, value: float) -> tuple[str, ...]:
    """What replaces `-m relay`: relay but for the value of these constants, such as `relay.fleet.join.REACH_S`."""
    changes = (f"import {each.rpartition('.')[0]}; {each} = {value}; " for each in constants)
    return ("-c", f"{''.join(changes)}import relay.cli.main; exit(relay.cli.main.main())")


def unwatched(program: tuple[str, ...] = patched(value=0)) -> tuple[str, ...]:
    """The same, where the keeper takes no worker for hung: for a test that stops one, on a machine of any speed."""
    return ("-c", f"import relay.processes.watch; relay.processes.watch.HUNG_S = 1e9; {program[1]}")


class Echo:
    """A target on a TCP address or a Unix path that sends back all it gets, then its FIN. Use as a context manager."""

    def __init__(self, address: tuple[str, int] | str = ("127.0.0.1", 0)) -> None:
        inet = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        family = socket.AF_UNIX if isinstance(address, str) else inet
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(address)
            self._listener.listen(1024)
        except OSError:
            self._listener.close()
            raise
        self.accepted = 0
        if isinstance(address, str):
            self.target = f"unix:{address}"
        else:
            host, self.port = address[0], int(self._listener.getsockname()[1])
            self.target = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def __enter__(self) -> "Echo":
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread; close(2) would not
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    @staticmethod
    def _answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            while data := connection.recv(65536):
                connection.sendall(data)


class Scrape:
    """One answer of `/metrics`, parsed as Prometheus would."""

    def __init__(self, port: int) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=HANG_S) as response:
            self.content_type = response.headers["Content-Type"]
            self.text = response.read().decode()
        self.families = list(text_string_to_metric_families(self.text))
        self._samples = [sample for family in self.families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples with that name and, among others, these labels; KeyError when there is none."""
        found = [each.value for each in self._samples if each.name == name and labels.items() <= each.labels.items()]
        if not found:
            raise KeyError(f"{name} {labels}")
        return sum(found)
