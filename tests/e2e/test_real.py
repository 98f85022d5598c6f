"""relay in front of the programs it is for. Each test asks its client whether all went well, then the daemon.

Those of programs that make all the load they can are alone: other tests would wait for a CPU meanwhile.
"""

import hashlib
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Daemons
from tests.e2e import programs
from tests.e2e.peers import Front
from tests.e2e.programs import curl, program, run, sha256
from tests.harness import HANG_S

FILE_BYTES = 50_000_000


# --- nginx ------------------------------------------------------------------------------------------------------------


@pytest.mark.real("nginx", "openssl", "curl")
def test_nginx_keeps_one_connection_for_many_requests(daemons: Daemons, nginx: programs.Nginx) -> None:
    front = Front(daemons, nginx.plain, protocol="http")
    answer = curl("--write-out", "%{num_connects}\n", front.url(), front.url(), front.url())
    assert answer == b"hello from nginx\n1\nhello from nginx\n0\nhello from nginx\n0\n"
    assert front.account()["accepted"] == 1


@pytest.mark.real("nginx", "openssl", "curl")
@pytest.mark.parametrize("protocol", ["tcp", "http", "https"])
def test_nginx_large_file_down_and_up(daemons: Daemons, nginx: programs.Nginx, tmp_path: Path, protocol: str) -> None:
    content = os.urandom(FILE_BYTES)
    (nginx.files / "down").write_bytes(content)
    front = Front(daemons, nginx.tls if protocol == "https" else nginx.plain, protocol=protocol)
    scheme = "https" if protocol == "https" else "http"
    trust = ("--cacert", str(nginx.certificate))

    curl(*trust, "--output", str(tmp_path / "got"), front.url(scheme, "down"))
    assert sha256((tmp_path / "got").read_bytes()) == sha256(content)
    curl(*trust, "--upload-file", str(tmp_path / "got"), front.url(scheme, "up"))
    assert sha256((nginx.files / "up").read_bytes()) == sha256(content)

    status = front.account()
    assert status["sent_bytes"] > FILE_BYTES
    assert status["received_bytes"] > FILE_BYTES


@pytest.mark.real("nginx", "openssl", "curl")
def test_https_endpoint_refuses_what_is_not_tls(daemons: Daemons, nginx: programs.Nginx) -> None:
    front = Front(daemons, nginx.tls, protocol="https")
    asked = [program("curl"), "-sS", "--noproxy", "*", "--max-time", f"{programs.RUN_S}", front.url("http")]
    refused = subprocess.run(asked, capture_output=True, timeout=programs.RUN_S)
    assert refused.returncode == 56, refused  # curl(1): failure in receiving network data
    # nginx itself would have answered 400 in plain HTTP: nothing came from it.
    assert refused.stdout == b""
    assert front.account(protocol=1)["closed"] == {"protocol": 1}


@pytest.mark.alone
@pytest.mark.real("nginx", "openssl", "wrk")
def test_nginx_under_wrk(daemons: Daemons, nginx: programs.Nginx) -> None:
    front = Front(daemons, nginx.plain, protocol="http")
    report = run("wrk", "-t1", "-c32", "-d2s", "--timeout", "60s", front.url()).decode()
    assert "Socket errors" not in report, report
    assert "Non-2xx" not in report, report
    requests = int(next(line.split()[0] for line in report.splitlines() if " requests in " in line))
    assert requests > 100, report
    assert front.account()["accepted"] >= 32


@pytest.mark.real("nginx", "openssl", "curl")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_nginx_is_told_who_the_client_is(daemons: Daemons, nginx: programs.Nginx, version: str) -> None:
    front = Front(daemons, nginx.proxied, protocol="http", send_proxy=version)
    answer = curl("--interface", "127.0.0.9", "--write-out", "\n%{local_ip} %{local_port}", front.url()).decode()
    told, true = answer.splitlines()
    assert told == true
    assert told.startswith("127.0.0.9 ")
    front.account()


# --- Redis ------------------------------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.real("redis-server", "redis-cli", "redis-benchmark")
@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_redis(daemons: Daemons, redis: programs.Redis, way: str) -> None:
    front = Front(daemons, getattr(redis, way))
    where = ("-h", "127.0.0.1", "-p", str(front.port))
    value = os.urandom(5_000_000).hex().encode()
    assert run("redis-cli", *where, "SET", "small", "hello") == b"OK\n"
    assert run("redis-cli", *where, "GET", "small") == b"hello\n"
    assert run("redis-cli", *where, "-x", "SET", "large", stdin=value) == b"OK\n"
    assert sha256(run("redis-cli", *where, "GET", "large").removesuffix(b"\n")) == sha256(value)

    report = run("redis-benchmark", *where, "-t", "set,get", "-n", "20000", "-c", "20", "-P", "4", "-q").decode()
    assert "SET: " in report, report
    assert "GET: " in report, report
    assert "requests per second" in report, report
    assert front.account()["accepted"] >= 4 + 2 * 20


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


@pytest.mark.real("initdb", "postgres", "pg_isready", "psql")
def test_postgres_transaction_and_large_result(daemons: Daemons, postgres: programs.Postgres) -> None:
    front = Front(daemons, postgres.unix)
    script = """
        CREATE TABLE kept (n int);
        BEGIN; INSERT INTO kept SELECT generate_series(1, 1000); COMMIT;
        BEGIN; DELETE FROM kept; ROLLBACK;
        SELECT count(*), sum(n) FROM kept;
        SELECT md5(string_agg(md5(n::text), '' ORDER BY n)) FROM generate_series(1, 100000) AS n;
        SELECT string_agg(md5(n::text), '' ORDER BY n) FROM generate_series(1, 100000) AS n;
    """
    psql = (*postgres.client(front.port), "-d", "postgres", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1")
    counts, md5, large = run("psql", *psql, stdin=script.encode()).decode().split()
    assert counts == "1000|500500"
    assert len(large) == 100_000 * 32
    assert hashlib.md5(large.encode()).hexdigest() == md5
    assert front.account()["accepted"] == 1


@pytest.mark.real("initdb", "postgres", "pg_isready", "psql")
def test_postgres_notifies_a_client_that_waits(daemons: Daemons, postgres: programs.Postgres) -> None:
    front = Front(daemons, postgres.unix)
    psql = (*postgres.client(front.port), "-d", "postgres", "-X", "-A", "-t")
    listener = subprocess.Popen([program("psql"), *psql], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with listener:
        assert listener.stdin is not None
        assert listener.stdout is not None
        listener.stdin.write(b"LISTEN news;\n")
        listener.stdin.flush()
        assert listener.stdout.readline() == b"LISTEN\n"
        run("psql", *psql, "-c", "NOTIFY news, 'hello'")
        rest, _ = listener.communicate(b"SELECT 1;\n", timeout=programs.RUN_S)
    assert b'"news" with payload "hello"' in rest
    assert front.account()["accepted"] == 2


@pytest.mark.alone
@pytest.mark.real("initdb", "postgres", "pg_isready", "pgbench")
def test_postgres_under_pgbench(daemons: Daemons, postgres: programs.Postgres) -> None:
    front = Front(daemons, postgres.unix, timeouts={"idle": "off"})
    client = postgres.client(front.port)
    run("pgbench", *client, "-i", "-q", "postgres")
    report = run("pgbench", *client, "-n", "-c", "4", "-T", "2", "postgres").decode()
    assert "number of failed transactions: 0 " in report, report
    done = next(line for line in report.splitlines() if "transactions actually processed" in line)
    assert int(done.rpartition(":")[2]) > 10, report
    assert front.account()["accepted"] >= 5


# --- iperf3 -----------------------------------------------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.real("iperf3")
@pytest.mark.parametrize(
    ("direction", "connections"),  # beside the two that carry bytes each way there is iperf3's control connection
    [((), 3), (("--reverse",), 3), (("--bidir",), 5)],
    ids=["up", "down", "both"],
)
def test_iperf3(daemons: Daemons, tmp_path: Path, direction: tuple[str, ...], connections: int) -> None:
    with programs.iperf3(tmp_path) as port:
        front = Front(daemons, port)
        where = ("--client", "127.0.0.1", "--port", str(front.port))
        report = json.loads(run("iperf3", *where, "--time", "2", "--parallel", "2", "--json", *direction))
        assert "error" not in report
        moved_bytes = report["end"]["sum_received"]["bytes"]
        assert moved_bytes > 10_000_000
        status = front.account()
    assert status["received_bytes"] + status["sent_bytes"] > moved_bytes
    assert status["accepted"] == connections


# --- ssh --------------------------------------------------------------------------------------------------------------


@pytest.mark.real("sshd", "ssh-keygen")
def test_sshd_speaks_first(daemons: Daemons, sshd: programs.Sshd) -> None:
    front = Front(daemons, sshd.port)
    with socket.create_connection(("127.0.0.1", front.port), timeout=HANG_S) as client:
        assert client.recv(8, socket.MSG_WAITALL) == b"SSH-2.0-"
    assert front.account()["received_bytes"] == 0


@pytest.mark.real("sshd", "ssh", "ssh-keygen")
def test_ssh_streams_come_back_whole(daemons: Daemons, sshd: programs.Sshd) -> None:
    front = Front(daemons, sshd.port)
    content = os.urandom(5_000_000)
    assert sha256(run("ssh", *sshd.client(front.port), "cat", stdin=content)) == sha256(content)
    status = front.account()
    assert status["received_bytes"] > len(content)
    assert status["sent_bytes"] > len(content)
