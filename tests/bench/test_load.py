"""The bench's generator and servers against each other."""

import json
import socket
import subprocess
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness import HANG_S
from tests.ports import free_port

SOURCES = Path(__file__).resolve().parents[2] / "bench" / "load"
SECONDS = 0.3

pytestmark = pytest.mark.real("cc")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The compiled load program; a warning of the compiler is an error."""
    program = tmp_path_factory.mktemp("bench") / "load"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *flags, "-o", str(program), *map(str, SOURCES.glob("*.c"))], check=True)
    return str(program)


@contextmanager
def serving(load: str, kind: str) -> Iterator[str]:
    """A server of this kind on a free port; yields the port."""
    with subprocess.Popen([load, kind, "0"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            (port,) = json.loads(server.stdout.readline())["ports"]
            assert 0 < port < 65536
            yield str(port)
            assert server.poll() is None
        finally:
            server.kill()


def run_client(load: str, mode: str, port: str, count: int, *extra: object) -> dict[str, float]:
    command = [load, mode, "127.0.0.1", port, str(count), str(SECONDS), *map(str, extra)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANG_S)
    figures: dict[str, float] = json.loads(done.stdout)
    assert SECONDS <= figures["seconds"] < SECONDS + 10
    assert figures["errors"] == 0
    return figures


def assert_plausible(figures: dict[str, float]) -> None:
    assert figures.keys() == {"ops", "seconds", "errors", "p50_us", "p99_us", "max_us"}
    assert figures["ops"] > 10
    assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["max_us"] < 1e6 * figures["seconds"]


@pytest.mark.alone
@pytest.mark.parametrize("size", [1, 64, 16384])
@pytest.mark.parametrize("connections", [1, 64])
def test_round_trips(load: str, connections: int, size: int) -> None:
    with serving(load, "echo") as port:
        figures = run_client(load, "rr", port, connections, str(size))
    assert_plausible(figures)
    # Closed loop (Little's law): each connection has one message under way, so the mean latency cannot pass the longest.
    assert figures["max_us"] * 1.02 >= connections * figures["seconds"] * 1e6 / (figures["ops"] + connections)


@pytest.mark.alone
def test_connections_per_second(load: str) -> None:
    with serving(load, "echo") as port:
        assert_plausible(run_client(load, "cps", port, 16))


@pytest.mark.parametrize("rest", [b"", b"x"])
def test_an_edge_server_takes_the_header_and_no_more(load: str, rest: bytes) -> None:
    header = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12)
    with serving(load, "edge-echo") as port:
        with socket.create_connection(("127.0.0.1", int(port)), HANG_S) as client:
            client.sendall(header + rest)
            client.sendall(header)  # only the first one is a header
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as stream:
                assert stream.read() == rest + header
        assert_plausible(run_client(load, "cps", port, 16))  # and without one it echoes


@pytest.mark.alone
def test_a_connection_closed_at_once_counts_as_denied(load: str) -> None:
    program = (
        "import socket\n"
        "s = socket.create_server(('127.0.0.1', 0), backlog=64)\n"
        "print(s.getsockname()[1], flush=True)\n"
        "while True: s.accept()[0].close()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as closer:
        try:
            assert closer.stdout is not None
            assert_plausible(run_client(load, "denied", closer.stdout.readline().strip(), 16))
        finally:
            closer.kill()


@pytest.mark.alone
@pytest.mark.parametrize(("kind", "direction"), [("source", "down"), ("sink", "up")])
@pytest.mark.parametrize("streams", [1, 4])
def test_bulk(load: str, kind: str, direction: str, streams: int) -> None:
    with serving(load, kind) as port:
        figures = run_client(load, "bulk", port, streams, direction)
    assert figures.keys() == {"bytes", "seconds", "errors"}
    assert figures["bytes"] > 1 << 20


@pytest.mark.parametrize("mode", ["cps", "denied"])
def test_nobody_listening_is_a_failure_not_a_rate(load: str, mode: str) -> None:
    command = [load, mode, "127.0.0.1", str(free_port()), "4", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_S)
    assert done.returncode == 1
    assert "Connection refused" in done.stderr


def test_a_port_that_lets_in_is_not_denied(load: str) -> None:
    with serving(load, "source") as port:
        command = [load, "denied", "127.0.0.1", port, "4", "0.3"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_S)
    assert done.returncode == 1
    assert "answered with data" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["echo"],
        ["echo", "x"],
        ["echo", "10.0.0.1:0"],
        ["rr", "10.0.0.1", "80", "1", "1", "64"],
        ["rr", "198.20.0.1", "80", "1", "1", "64"],
        ["bulk", "127.0.0.1", "80", "1", "1", "x"],
        ["hold", "127.0.0.1", "80", "0"],
        ["open", "127.0.0.1", "80", "1", "1", "64", "10"],
        ["open", "127.0.0.1", "80", "1", "3600", "64", "1000000", "/dev/null"],
        ["cps", "127.0.0.1", "80", "1", "1", "/dev/null", "251"],
    ],
)
def test_a_wrong_command_line_is_refused(load: str, arguments: list[str]) -> None:
    done = subprocess.run([load, *arguments], capture_output=True, text=True, check=False, timeout=HANG_S)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: load")


@pytest.mark.parametrize("pieces", [[b"GET / ", b"HTTP/1.1\r\n\r\n"], [b"x"]])
def test_one_byte_answers_a_greeting_however_it_comes(load: str, pieces: list[bytes]) -> None:
    with serving(load, "answer") as port, socket.create_connection(("127.0.0.1", int(port)), HANG_S) as client:
        client.sendall(pieces[0])
        assert len(client.recv(16)) == 1
        for piece in pieces[1:]:
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(16) == b""


@pytest.mark.alone
def test_connections_begin_with_the_file(load: str, tmp_path: Path) -> None:
    greeting, heard = tmp_path / "greeting", b""
    greeting.write_bytes(b"hello, server")
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [load, "cps", "127.0.0.1", str(server.getsockname()[1]), "1", str(SECONDS), str(greeting), "1"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            connection, (source, _) = server.accept()
            with connection, connection.makefile("rb") as stream:
                heard = stream.read(13)
                connection.sendall(b"!")
                assert stream.read() == b""
    assert (heard, source) == (b"hello, server", "127.0.0.2")


def test_a_fixed_rate_counts_from_when_a_request_was_due(load: str, tmp_path: Path) -> None:
    rate, count = 100, 31  # in SECONDS
    samples = tmp_path / "samples"
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = ["127.0.0.1", str(server.getsockname()[1]), "1", str(SECONDS)]
        with subprocess.Popen([load, "open", *where, "64", str(rate), str(samples)], stdout=subprocess.PIPE) as client:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as stream:
                requests = stream.read(64 * count)  # none waits for an answer
                connection.sendall(requests)
                assert client.stdout is not None
                assert json.loads(client.stdout.read())["ops"] == count
    latencies_ns = array("Q")
    latencies_ns.frombytes(samples.read_bytes())
    assert len(latencies_ns) == count
    # Number n was due 10 ms after the one before it, and all were answered once the last one had been sent.
    assert all(ns >= 10_000_000 * (count - 1 - n) for n, ns in enumerate(latencies_ns))
    assert list(latencies_ns) == sorted(latencies_ns, reverse=True)


@pytest.mark.alone
def test_a_fixed_rate_over_many_connections(load: str, tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    with serving(load, "echo") as port:
        figures = run_client(load, "open", port, 64, 64, 5000, samples)
    assert figures.keys() == {"ops", "seconds", "errors"}
    assert figures["ops"] == 1501
    assert samples.stat().st_size == 8 * 1501


def test_idle_connections_are_proved_held_and_reset(load: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [load, "hold", "127.0.0.1", str(server.getsockname()[1]), "3"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
            held = []
            try:
                for _ in range(3):
                    held.append(server.accept()[0])
                    held[-1].settimeout(HANG_S)
                    held[-1].sendall(held[-1].recv(16))
                assert holder.stdout is not None
                assert json.loads(holder.stdout.readline()) == {"held": 3}
                holder.kill()
                for connection in held:
                    with pytest.raises(ConnectionResetError):
                        connection.recv(16)
            finally:
                holder.kill()
                for connection in held:
                    connection.close()


def test_a_connection_that_does_not_answer_is_not_held(load: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [load, "hold", "127.0.0.1", str(server.getsockname()[1]), "3"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as holder:
            connection, _ = server.accept()
            with connection:
                assert connection.recv(16) != b""
            assert holder.stderr is not None
            assert holder.stderr.read() == "load: connection 1 of 3 does not answer\n"
    assert holder.returncode == 1


def test_servers_share_a_port(load: str) -> None:
    with serving(load, "echo") as port, subprocess.Popen([load, "echo", port], stdout=subprocess.PIPE) as second:
        assert second.stdout is not None
        assert json.loads(second.stdout.readline()) == {"ports": [int(port)]}
        second.kill()
