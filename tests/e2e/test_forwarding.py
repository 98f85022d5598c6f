"""What goes through an endpoint, to which target, and what the target is told: over real daemons and real sockets."""

import contextlib
import socket
import ssl
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from proxyprotocol import ProxyProtocol
from proxyprotocol.result import ProxyResultIPv4, ProxyResultIPv6
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from relay.cli.demo import self_signed
from tests.conftest import Daemons
from tests.e2e.peers import accept, counted, endpoint, records
from tests.harness import HANG_S, Daemon, Echo, Scrape, denied, dial, echoed, eventually, one_endpoint, service
from tests.ports import free_port

RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # socket(7), SO_LINGER of 0 s


def text(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"{host}:{port}"


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.mark.real("openssl")
def test_tls_from_end_to_end_through_https(daemons: Daemons, listener: socket.socket, tmp_path: Path) -> None:
    """relay reads the client's hello and nothing else: the certificate and the keys are the target's."""
    server = self_signed(tmp_path)
    assert server is not None
    trust = ssl.create_default_context(cafile=str(tmp_path / "demo.crt"))
    trust.check_hostname = False
    daemon = daemons(one_endpoint(port := free_port(), text(listener), protocol="https"))

    def serve() -> None:
        with server.wrap_socket(accept(listener), server_side=True) as served:
            assert served.recv(5) == b"hello"
            served.sendall(b"world" * 50_000)

    with ThreadPoolExecutor() as pool:
        serving = pool.submit(serve)
        with trust.wrap_socket(dial(port), server_hostname="a-rather-long-name." + "x" * 60 + ".test") as client:
            client.sendall(b"hello")
            received = 0
            while data := client.recv(65536):
                received += len(data)
        serving.result()
    assert received == 250_000
    counted(daemon, denied={}, accepted=1)


@pytest.mark.real("openssl", "curl")
def test_curl_over_https_with_a_hello_of_more_than_one_segment(
    daemons: Daemons, listener: socket.socket, tmp_path: Path
) -> None:
    """Long protocol names make a hello of 1.5 KB or more, as post-quantum key shares do."""
    server = self_signed(tmp_path)
    assert server is not None
    daemons(one_endpoint(port := free_port(), text(listener), protocol="https"))

    def serve() -> None:
        with server.wrap_socket(accept(listener), server_side=True) as served:
            while b"\r\n\r\n" not in served.recv(4096):
                pass
            served.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nanswer")

    with ThreadPoolExecutor() as pool:
        serving = pool.submit(serve)
        trust = ("-k", "--cacert", str(tmp_path / "demo.crt"))
        done = subprocess.run(
            ["curl", "-sS", "-m", f"{HANG_S}", *trust, f"https://127.0.0.1:{port}/"],
            capture_output=True,
            timeout=HANG_S,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, b"answer"), done.stderr
        serving.result()


# --- what the target is told ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_send_proxy(daemons: Daemons, listener: socket.socket, host: str) -> None:
    ports = {"v1": free_port(host), "v2": free_port(host)}
    oracles: dict[str, ProxyProtocol] = {"v1": ProxyProtocolV1(), "v2": ProxyProtocolV2()}
    daemons(service({v: endpoint(port, text(listener), send_proxy=v) for v, port in ports.items()}, host=host))
    for version, port in ports.items():
        with dial(port, host=host, source="127.0.0.9" if host == "127.0.0.1" else None) as client:
            client.sendall(b"and then the data")
            client.shutdown(socket.SHUT_WR)
            with accept(listener) as served:
                data = b""
                while part := served.recv(4096):
                    data += part
            source, source_port = client.getsockname()[:2]
        head = data.removesuffix(b"and then the data")
        assert head != data
        result = oracles[version].unpack(head)
        assert isinstance(result, ProxyResultIPv4 | ProxyResultIPv6)
        assert (str(result.source[0]), result.source[1]) == (source, source_port)
        assert (str(result.dest[0]), result.dest[1]) == (host, port)


def test_send_proxy_comes_before_what_a_server_that_speaks_first_says(
    daemons: Daemons, listener: socket.socket
) -> None:
    daemon = daemons(one_endpoint(port := free_port(), text(listener), send_proxy="v1"))
    with dial(port) as client, accept(listener) as served:
        assert served.recv(200).startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")
        served.sendall(b"220 ready\r\n")
        assert client.recv(100) == b"220 ready\r\n"
    counted(daemon, received_bytes=0, sent_bytes=11)  # the header is relay's, not the client's


# --- the target -------------------------------------------------------------------------------------------------------


def test_localhost_that_listens_on_ipv6_alone(daemons: Daemons) -> None:
    with Echo(("::1", 0)) as only_v6:
        daemon = daemons(one_endpoint(port := free_port(), f"localhost:{only_v6.port}"))
        with dial(port) as client:
            assert echoed(client) == b"ping"
        counted(daemon, connect_failures=1, target_up=True, closed={"client_fin": 1})
        (record,) = records(daemon, "connection", 1)
        assert record["target"] == f"[::1]:{only_v6.port}"


def test_a_unix_target_that_comes_and_goes(daemons: Daemons, tmp_path: Path) -> None:
    path = str(tmp_path / "target.sock")
    daemon = daemons(one_endpoint(port := free_port(), f"unix:{path}"), {"workers": 1})
    assert denied(port)
    counted(daemon, connect_failures=1, target_up=False, closed={"connect_failed": 1})
    with Echo(path), dial(port) as client:
        assert echoed(client, b"x" * 300_000) == b"x" * 300_000
        counted(daemon, target_up=True, active=1)
    assert denied(port)
    counted(daemon, connect_failures=2, target_up=False, active=0)


def test_the_last_dial_says_whether_a_target_is_up_whichever_worker_made_it(daemons: Daemons) -> None:
    quiet = ("127.0.0.1", free_port())  # nobody else takes it afterwards
    with contextlib.ExitStack() as stack, Echo(quiet) as target:
        daemon = daemons(one_endpoint(port := free_port(), target.target), {"workers": 2})

        def workers() -> set[int]:
            client = stack.enter_context(dial(port))
            assert echoed(client) == b"ping"
            return {each["worker"] for each in daemon.ask("GET", "/v1/connections")[1]}

        eventually(lambda: len(workers()) == 2, "both workers have reached the target")
    assert denied(port)
    counted(daemon, connect_failures=1, target_up=False)


def test_a_target_that_does_not_listen(daemons: Daemons) -> None:
    daemon = daemons(one_endpoint(port := free_port(), f"127.0.0.1:{free_port()}"))
    assert denied(port)
    counted(daemon, connect_failures=1, target_up=False, closed={"connect_failed": 1}, active=0)


# --- counters and ports -----------------------------------------------------------------------------------------------


def test_byte_counters_move_while_the_connection_is_open(daemons: Daemons, echo: Echo) -> None:
    port, metrics = free_port(), free_port()
    daemon = daemons(one_endpoint(port, echo.target), {"metrics": {"listen": f"127.0.0.1:{metrics}"}})
    with dial(port) as client:
        for total in (100_000, 200_000):
            assert len(echoed(client, b"x" * 100_000)) == 100_000
            counted(daemon, received_bytes=total, sent_bytes=total, active=1)
            scrape = Scrape(metrics)
            assert scrape.value("relay_received_bytes_total", endpoint="in") == total
            assert scrape.value("relay_sent_bytes_total", endpoint="in") == total
            own = (total, total)
            eventually(lambda: connection_bytes(daemon) == own, "the connection's own counts, a second later")  # noqa: B023


def connection_bytes(daemon: Daemon) -> tuple[int, int]:
    """What the one open connection has received and sent."""
    (connection,) = daemon.ask("GET", "/v1/connections")[1]
    return connection["received_bytes"], connection["sent_bytes"]


def test_one_source_port_many_times(daemons: Daemons, echo: Echo) -> None:
    """The same two addresses and ports again. A reset ends each, or the client's kernel would not let it."""
    daemon = daemons(one_endpoint(port := free_port(), echo.target))
    source = free_port("127.0.0.5")
    for times in range(1, 9):
        with socket.socket() as client:
            client.settimeout(HANG_S)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            client.bind(("127.0.0.5", source))
            client.connect(("127.0.0.1", port))
            assert echoed(client) == b"ping"
        counted(daemon, accepted=times, active=0, closed={"client_reset": times})


def test_two_endpoints_lead_to_two_targets(daemons: Daemons) -> None:
    ports = [free_port(), free_port()]
    with Echo() as one, Echo() as two:
        declared = {
            name: endpoint(port, target.target)
            for name, port, target in zip(("in", "other"), ports, (one, two), strict=True)
        }
        daemon = daemons(service(declared))
        for port, times in zip(ports, (1, 2), strict=True):
            for _ in range(times):
                with dial(port) as client:
                    assert echoed(client) == b"ping"
        assert (one.accepted, two.accepted) == (1, 2)
        assert [each["accepted"] for each in daemon.status()["endpoints"]] == [1, 2]
