"""Real clients while workers are killed under them, at moments that the test awaits. None of them notices."""

import asyncio
import hashlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final

import aiohttp
import pytest
from aiohttp import web

from relay.dataplane.pipes import LARGE_BYTES
from tests.conftest import Daemons
from tests.e2e import programs
from tests.e2e.peers import Front
from tests.e2e.programs import RUN_S, program, sha256
from tests.harness import eventually

MIB: Final = 1 << 20
ONE_WORKER: Final = {"workers": 1}


class Killer:
    """Kills the one worker of a daemon that has one connection open, as often as it is asked to."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self.kills = 0

    def kill(self) -> None:
        """SIGKILL, and wait until the next worker has taken the connection over."""
        os.kill(self._front.daemon.worker_pid(), signal.SIGKILL)
        self.kills += 1
        eventually(lambda: self._adopted() == self.kills, f"adoption number {self.kills}", RUN_S)

    def unnoticed(self, *, received_bytes: int = 0, sent_bytes: int = 0) -> None:
        """Once the client has left: all was one connection, from its beginning to a clean end, with that many bytes or more.

        A kill in the midst of a delivery loses the count of that one, which is no more than a pipe holds.
        """
        assert self.kills > 1
        assert self._adopted() == self.kills
        assert self._front.daemon.status()["worker_restarts"] == self.kills
        account = self._front.account()
        assert account["accepted"] == 1, account
        assert set(account["closed"]) <= {"client_fin", "target_fin"}, account
        for key, moved_bytes in {"received_bytes": received_bytes, "sent_bytes": sent_bytes}.items():
            assert account[key] + self.kills * LARGE_BYTES >= moved_bytes, account

    def _adopted(self) -> int:
        return int(self._front.daemon.status()["workers"][0]["flows_adopted"])


class Client:
    """A program that is talked to line by line."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin: IO[bytes] = process.stdin
        self.stdout: IO[bytes] = process.stdout

    def say(self, line: str) -> None:
        self._stdin.write(f"{line}\n".encode())
        self._stdin.flush()

    def hear(self) -> str:
        return self.stdout.readline().decode().removesuffix("\n")

    def ask(self, line: str) -> str:
        self.say(line)
        return self.hear()


@contextmanager
def talking(name: str, *arguments: str) -> Iterator[Client]:
    """Run a client; at the end its input is closed, and it must then end by itself and well."""
    command = [program(name), *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as process:
        try:
            yield Client(process)
            rest, _ = process.communicate(timeout=RUN_S)
            assert (process.returncode, rest) == (0, b"")
        finally:
            process.kill()


# --- PostgreSQL -------------------------------------------------------------------------------------------------------

ROWS: Final = 400_000  # a row is a hash and the end of a line, so 13 MB: more than all buffers on the way hold


@pytest.mark.real("initdb", "postgres", "pg_isready", "psql")
def test_psql_in_an_open_transaction(daemons: Daemons, postgres: programs.Postgres) -> None:
    front = Front(daemons, postgres.unix, settings=ONE_WORKER)
    killer = Killer(front)
    arguments = ("-d", "postgres", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1")
    with talking("psql", *postgres.client(front.port), *arguments) as psql:
        backend = psql.ask("SELECT pg_backend_pid();")
        psql.say("CREATE TEMPORARY TABLE kept (n int);")  # it lives as long as this session
        psql.say("BEGIN;")
        transaction = psql.ask("SELECT txid_current();")
        for n in range(1, 6):
            psql.say(f"INSERT INTO kept SELECT generate_series(1, 1000) + {n * 1000};")
            killer.kill()
            assert psql.ask("SELECT count(*) FROM kept;") == str(n * 1000)
        assert psql.ask("SELECT txid_current();") == transaction

        psql.say("SELECT pg_sleep(0.2), 'slept';")
        killer.kill()  # while it waits for the answer
        assert psql.hear() == "|slept"

        psql.say(f"COPY (SELECT md5(n::text) FROM generate_series(1, {ROWS}) AS n) TO STDOUT;")
        received = hashlib.sha256()
        for n in range(ROWS):
            if n % (ROWS // 4) == ROWS // 8:
                killer.kill()  # in the middle: psql waits for us to read, and what comes next for psql
            received.update(psql.stdout.readline())
        expected = hashlib.sha256()
        for n in range(1, ROWS + 1):
            expected.update(hashlib.md5(str(n).encode()).hexdigest().encode() + b"\n")
        assert received.digest() == expected.digest()

        psql.say("COMMIT;")
        assert psql.ask("SELECT count(*), min(n), max(n) FROM kept;") == "5000|1001|6000"
        assert psql.ask("SELECT pg_backend_pid();") == backend
    killer.unnoticed(sent_bytes=ROWS * 33)


# --- Redis ------------------------------------------------------------------------------------------------------------


@pytest.mark.real("redis-server", "redis-cli")
@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_redis_cli_in_a_transaction(daemons: Daemons, redis: programs.Redis, way: str) -> None:
    front = Front(daemons, getattr(redis, way), settings=ONE_WORKER)
    killer = Killer(front)
    with talking("redis-cli", "-h", "127.0.0.1", "-p", str(front.port)) as cli:
        connection = cli.ask("CLIENT ID")
        assert cli.ask("SET n 0") == "OK"
        assert cli.ask("WATCH n") == "OK"  # forgotten with the connection, like MULTI
        killer.kill()
        assert cli.ask("MULTI") == "OK"
        for _ in range(4):
            killer.kill()
            assert cli.ask("INCR n") == "QUEUED"
        assert cli.ask("CLIENT ID") == "QUEUED"
        killer.kill()
        cli.say("EXEC")
        assert [cli.hear() for _ in range(5)] == ["1", "2", "3", "4", connection]
        assert cli.ask("BLPOP nobody 0.3") == ""  # nil, after a wait
        cli.say("BLPOP nobody 0.3")
        killer.kill()
        assert cli.hear() == ""
        assert cli.ask("CLIENT ID") == connection
    killer.unnoticed()


# --- ssh --------------------------------------------------------------------------------------------------------------


@pytest.mark.real("sshd", "ssh", "ssh-keygen")
def test_an_ssh_session(daemons: Daemons, sshd: programs.Sshd) -> None:
    front = Front(daemons, sshd.port, settings=ONE_WORKER)
    killer = Killer(front)
    content = os.urandom(24 * MIB)
    command = [program("ssh"), *sshd.client(front.port), "cat"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as ssh:
        assert ssh.stdin is not None
        assert ssh.stdout is not None
        stdin, stdout = ssh.stdin, ssh.stdout
        try:
            for n in range(5):
                line = f"line {n}\n".encode()
                stdin.write(line)
                stdin.flush()
                if n % 2:
                    killer.kill()  # a line is on its way there or back
                assert stdout.readline() == line
                killer.kill()  # nothing is on its way

            def send() -> None:
                stdin.write(content)
                stdin.close()

            sender = threading.Thread(target=send)
            sender.start()
            received = bytearray()
            for n in range(1, 7):
                received += stdout.read(4 * MIB)
                if n < 6:
                    killer.kill()  # megabytes are on their way there and back
            sender.join(RUN_S)
            assert stdout.read() == b""
            assert ssh.wait(RUN_S) == 0
        finally:
            ssh.kill()
    assert sha256(bytes(received)) == sha256(content)
    killer.unnoticed(received_bytes=len(content), sent_bytes=len(content))


# --- TLS --------------------------------------------------------------------------------------------------------------

BLOCKS: Final = 128


@pytest.mark.real("nginx", "openssl", "curl")
def test_a_tls_download_with_curl(daemons: Daemons, nginx: programs.Nginx) -> None:
    front = Front(daemons, nginx.tls, settings=ONE_WORKER, protocol="https")
    killer = Killer(front)
    expected, received = hashlib.sha256(), hashlib.sha256()
    with (nginx.files / "large").open("wb") as file:
        for _ in range(BLOCKS):
            block = os.urandom(MIB)
            expected.update(block)
            file.write(block)
    url = front.url("https", "large")
    arguments = ["-sS", "--fail", "--noproxy", "*", "--max-time", str(RUN_S), "--cacert", str(nginx.certificate)]
    told = ["--write-out", "%{stderr}%{num_connects} %{size_download}"]
    pipe = subprocess.PIPE
    with subprocess.Popen([program("curl"), *arguments, *told, url], stdout=pipe, stderr=pipe) as curl:
        assert curl.stdout is not None
        assert curl.stderr is not None
        try:
            # curl reads no faster than this does, so every kill comes in the middle.
            for n in range(BLOCKS):
                received.update(curl.stdout.read(MIB))
                if n % 16 == 8:
                    killer.kill()
            rest, said = curl.communicate(timeout=RUN_S)
        finally:
            curl.kill()
    (nginx.files / "large").unlink()
    assert (curl.returncode, rest, said.decode()) == (0, b"", f"1 {BLOCKS * MIB}")
    assert received.digest() == expected.digest()
    assert killer.kills == BLOCKS / 16
    killer.unnoticed(sent_bytes=BLOCKS * MIB)


# --- WebSocket --------------------------------------------------------------------------------------------------------


async def echo_messages(request: web.Request) -> web.WebSocketResponse:
    """Send every message back as it came."""
    socket = web.WebSocketResponse(max_msg_size=8 * MIB)
    await socket.prepare(request)
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is aiohttp.WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


async def test_a_websocket(daemons: Daemons) -> None:
    app = web.Application()
    app.router.add_get("/", echo_messages)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        target = runner.addresses[0][1]
        front = await asyncio.to_thread(Front, daemons, target, settings=ONE_WORKER, protocol="http")
        killer = Killer(front)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(front.url(), max_msg_size=8 * MIB) as client,
        ):
            for n in range(3):
                await asyncio.to_thread(killer.kill)  # between two messages
                await client.send_str(f"message {n}")
                assert await client.receive_str() == f"message {n}"
            messages = [os.urandom(4 * MIB) for _ in range(8)]

            async def send() -> None:
                for message in messages:
                    await client.send_bytes(message)

            sending = asyncio.create_task(send())
            for n, message in enumerate(messages):
                if n % 2:
                    await asyncio.to_thread(killer.kill)  # megabytes are on their way there and back
                assert sha256(await client.receive_bytes()) == sha256(message)
            await sending
        await asyncio.to_thread(killer.unnoticed)
    finally:
        await runner.cleanup()
