"""The command line's side of the admin API, and what it says when the other side is not as it should be."""

import argparse
import errno
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from relay.cli import client as module
from relay.cli.client import AdminClient
from relay.cli.main import main, parser
from relay.errors import AdminError, AgainError, ConfigError
from relay.processes.watch import CONTROL_HUNG_S, EVERY_S
from tests.harness import HANG_S
from tests.ports import free_port


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the daemon's socket is."""
    return str(tmp_path / "admin.sock")


@contextmanager
def answering(path: str, answer: bytes) -> Iterator[list[bytes]]:
    """Somebody at `path` who answers one request with these bytes and hangs up; the requests that came."""
    requests: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(HANG_S)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                requests.append(connection.recv(65536))
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield requests
        thread.join(HANG_S)


def http(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)


def test_a_value(path: str) -> None:
    with answering(path, http("200 OK", b'{"a": [1, "\xc3\xa9"]}')) as requests:
        assert AdminClient(path).get("/v1/status") == {"a": [1, "é"]}
    assert requests[0].startswith(b"GET /v1/status HTTP/1.1\r\n")


def test_doing_something(path: str) -> None:
    with answering(path, http("200 OK", b"{}")) as requests:
        assert AdminClient(path).post("/v1/reload") == {}
    assert requests[0].startswith(b"POST /v1/reload HTTP/1.1\r\n")


def test_a_refusal_is_passed_on(path: str) -> None:
    with (
        answering(path, http("409 Conflict", b'{"error": "f.yaml:1:2: x: is wrong; write y"}')),
        pytest.raises(AdminError, match=r"^f.yaml:1:2: x: is wrong; write y$"),
    ):
        AdminClient(path).post("/v1/reload")


def test_no_daemon(path: str) -> None:
    with pytest.raises(AdminError, match=rf"^cannot reach {path}: no such file; is relay running\?.*--socket"):
        AdminClient(path).get("/v1/status")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with pytest.raises(AdminError, match=r"nobody listens there; is relay running\?"):
        AdminClient(path).get("/v1/status")


def test_a_path_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(AdminError, match="cannot reach"):
        AdminClient(str(tmp_path / ("x" * 200))).get("/v1/status")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        http("200 OK", b"<html>"),
        http("200 OK", b"\xff\xfe"),
        http("404 Not Found", b"404: Not Found"),
        http("404 Not Found", b"[]"),
        http("404 Not Found", b'"not here"'),
        http("500 Internal Server Error", b"{}"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}",
    ],
)
def test_it_is_not_relay(answer: bytes, path: str) -> None:
    with answering(path, answer), pytest.raises(AdminError) as caught:
        AdminClient(path).get("/v1/status")
    assert str(caught.value)


NO_ANSWER = (
    "the daemon at {} has not answered within 0.05 s: its control process hangs, or has too much to do. Connections go on "
    "being forwarded; a control that hangs is restarted by the daemon within 20 s, so try again. `journalctl -u relay` has "
    "more"
)


# Every command that asks the daemon, and the status with which it ends when it cannot.
COMMANDS: list[tuple[int, str]] = [
    (1, "status"),
    (1, "status --connections"),
    (1, "reload"),
    (1, "reload --dry-run"),
    (1, "explain --to web/in --from 127.0.0.1"),
    (1, "explain --to web/in --client 127.0.0.1:50000"),
    (1, "upgrade"),
    (1, "drain"),
    (1, "drain --wait"),
    (1, "drain off"),
    (1, "hold web/in"),
    (1, "release web/in"),
    (1, "weight"),
    (1, "weight web/in web_IN_0 0"),
    (1, "instances"),
    (1, "resolve web/in"),
    (1, "identity"),
    (1, "env"),
    (1, "hosts"),
    (125, "exec -- true"),
]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits as long as he would."""
    monkeypatch.setattr(module, "_ANSWER_S", 0.05)
    monkeypatch.setattr(module, "_WORK_S", 0.05)


def test_these_are_all_commands() -> None:
    asking = {name for name, command in _commands().items() if "--socket" in command.format_help()}
    assert {command.split()[0] for _, command in COMMANDS} == asking


def _commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (each for each in parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(found.choices)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("status", "command"), COMMANDS)
def test_a_daemon_that_does_not_answer(
    path: str, capsys: pytest.CaptureFixture[str], status: int, command: str, full: bool
) -> None:
    """Its control stands still: it may be connected to, and answers nothing. Or its backlog is full."""
    name, *rest = command.split()
    with socket.socket(socket.AF_UNIX) as silent, ExitStack() as crowd:
        if full:
            crowd.enter_context(crowded(silent, path))
        else:
            silent.bind(path)
            silent.listen()
        assert main([name, "--socket", path, *rest]) == status
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"relay: {NO_ANSWER.format(path)}\n")


def test_a_backlog_that_has_room_again_is_waited_for(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener, crowded(listener, path) as crowd:

        def serve() -> None:
            for _ in crowd:
                listener.accept()[0].close()
            answer_once(listener, http("200 OK", b"{}"))

        later = threading.Timer(0.05, serve)
        later.start()
        assert AdminClient(path).get("/v1/status") == {}
        later.join(HANG_S)


@pytest.mark.usefixtures("soon")
def test_an_answer_that_stops_in_the_middle(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        stopped = threading.Event()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{")
                stopped.wait(HANG_S)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(AdminError) as caught:
            AdminClient(path).get("/v1/status")
        assert str(caught.value) == NO_ANSWER.format(path)
        stopped.set()
        thread.join(HANG_S)


@contextmanager
def crowded(listener: socket.socket, path: str) -> Iterator[list[socket.socket]]:
    """The listener at `path`, with so many clients that its backlog is full."""
    listener.bind(path)
    listener.listen(1)
    with ExitStack() as each:
        crowd = []
        while True:
            client = each.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            if client.connect_ex(path) == errno.EAGAIN:
                break
            crowd.append(client)
        yield crowd


def found(path: str | None, settings: str | None) -> str:
    """The socket that is asked: it is named when nobody is there."""
    with pytest.raises(AdminError) as caught:
        AdminClient.find(path, settings).get("/v1/status")
    return str(caught.value).removeprefix("cannot reach ").partition(":")[0]


def test_where_the_daemon_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELAY_SETTINGS", raising=False)
    named, other = tmp_path / "named.yaml", tmp_path / "other.yaml"
    named.write_text(f"admin: {{socket: {tmp_path}/from-named}}\n")
    other.write_text(f"admin: {{socket: {tmp_path}/from-other}}\n")
    assert found("/nowhere/given", str(named)) == "/nowhere/given"
    assert found(None, str(named)) == f"{tmp_path}/from-named"
    monkeypatch.setenv("RELAY_SETTINGS", str(other))
    assert found(None, None) == f"{tmp_path}/from-other"
    assert found(None, str(named)) == f"{tmp_path}/from-named"
    monkeypatch.setenv("RELAY_SETTINGS", str(tmp_path / "missing.yaml"))
    with pytest.raises(ConfigError, match="no such file"):
        AdminClient.find(None, None)


def test_bad_settings(tmp_path: Path) -> None:
    bad = tmp_path / "instance.yaml"
    bad.write_text("admn: {}\n")
    with pytest.raises(ConfigError, match="did you mean `admin`"):
        AdminClient.find(None, str(bad))


def test_a_user_who_may_not_use_the_socket_asks_the_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the settings declare one, and only of what is there for everybody."""

    def refuse(_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module._UnixConnection, "connect", refuse)
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(HANG_S)
        settings = tmp_path / "instance.yaml"
        settings.write_text(f"admin: {{socket: /run/x.sock, listen: 127.0.0.1:{port}}}\n")
        thread = threading.Thread(target=answer_once, args=(listener, http("200 OK", b'{"a": 1}')), daemon=True)
        thread.start()
        assert AdminClient.find(None, str(settings), discovery=True).get("/v1/identity") == {"a": 1}
        thread.join(HANG_S)
        for client in (
            AdminClient.find(None, str(settings)),
            AdminClient.find("/run/x.sock", str(settings), discovery=True),
        ):
            with pytest.raises(AdminError, match=r"cannot reach /run/x.sock: no permission"):
                client.get("/v1/status")
    with pytest.raises(AdminError, match=rf"cannot reach 127\.0\.0\.1:{port}: nobody listens there"):
        AdminClient.find(None, str(settings), discovery=True).get("/v1/identity")


def answer_once(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(answer)


def test_who_says_where_the_socket_is_does_not_wait_for_pydantic() -> None:
    """It takes most of the time of a command; the types of the answers do without it."""
    modules = "relay.cli.main, relay.cli.tables, relay.cli.client, relay.control.answers"
    code = f"import sys, {modules}; relay.cli.client.AdminClient.find('/s', None); print('pydantic' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=True)
    assert ran.stdout == "False\n"


def test_what_an_upgrade_comes_between_is_asked_again(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [AgainError("replaced"), AgainError("replaced"), {"generation": 2}]

    def answered(_self: AdminClient, _resource: str, **_: object) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(AdminClient, "post", answered)
    assert AdminClient(path).post_again("/v1/reload") == {"generation": 2}
    answers.append(AgainError("replaced"))
    monkeypatch.setattr(module, "_REPLACED_S", 0.0)
    with pytest.raises(AgainError):
        AdminClient(path).post_again("/v1/reload")


def test_what_is_said_of_a_control_that_hangs_is_what_the_keeper_does() -> None:
    assert CONTROL_HUNG_S + EVERY_S < module.RESTARTED_S


@pytest.mark.parametrize("answer", [b"", http("503 Service Unavailable", b'{"error": "ask again"}')])
def test_a_control_that_is_being_replaced(path: str, answer: bytes) -> None:
    with answering(path, answer), pytest.raises(AgainError, match="ask again"):
        AdminClient(path).post("/v1/reload")
