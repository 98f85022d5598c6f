"""The command line's side of the admin API, and what it says when the other side is not as it should be."""

import errno
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relay.cli import client as module
from relay.cli.client import AdminClient
from relay.errors import AdminError, AgainError, ConfigError
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


def test_a_daemon_that_does_not_answer(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()
        with pytest.raises(AdminError, match=rf"^the daemon at {path} does not answer; see its log$"):
            AdminClient(path).get("/v1/status")


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

    def answered(_self: AdminClient, _resource: str) -> object:
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


@pytest.mark.parametrize("answer", [b"", http("503 Service Unavailable", b'{"error": "ask again"}')])
def test_a_control_that_is_being_replaced(path: str, answer: bytes) -> None:
    with answering(path, answer), pytest.raises(AgainError, match="ask again"):
        AdminClient(path).post("/v1/reload")
