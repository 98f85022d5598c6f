"""What each forwarder is told; and what clients say first."""

import subprocess
from pathlib import Path

import pytest
from configs import ALWAYS_SPLICE, KINDS, NGINX_KINDS, Address, Setting, haproxy_config, nginx_config, relay_service
from configs import relay_settings as settings_text
from forwarders import ADAPTERS, compiled_modules
from greetings import EDGES, GREETINGS, client_hello, proxied_byte, request

from relay.config.document import parse
from relay.config.load import parse_settings
from relay.config.snapshot import EndpointRow
from relay.envelope import clienthello, httphead, proxyproto
from tests.bench.rig import axis
from tests.config.rig import compiled, service

LISTEN, TARGET = Address("127.0.0.1", 10001), Address("127.0.0.1", 10002)


def row(kind: str, target: Address = TARGET) -> EndpointRow:
    text = relay_service(Setting(LISTEN, target, kind))
    (found,) = compiled("web_IN_0", service=service(text)).endpoints
    assert (found.listen_host, found.listen_port) == LISTEN
    assert [each.text for each in found.targets] == [str(target)]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_relay_does_what_is_asked(kind: str) -> None:
    found = row(kind)
    assert found.protocol == (kind if kind in ("http", "https") else "tcp")
    assert found.edges == (EDGES if kind == "proxy" else ())
    assert [(rule.permit, rule.network) for rule in found.rules] == (
        [(False, "127.0.0.0/8")] if kind == "denied" else []
    )


def test_relay_leads_to_another_namespace() -> None:
    assert row("tcp", Address("198.18.0.1", 10002)).targets[0].host == "198.18.0.1"


def test_relays_settings(tmp_path: Path) -> None:
    found = parse_settings(parse(settings_text(tmp_path, 2, "warning").encode(), "instance.yaml")).value
    assert found.workers == 2
    assert found.admin.socket == f"{tmp_path}/admin.sock"


@pytest.mark.real("haproxy")
@pytest.mark.parametrize("splice", ["option splice-auto", ALWAYS_SPLICE])
@pytest.mark.parametrize("kind", KINDS)
def test_haproxy_takes_its_configuration(kind: str, splice: str, tmp_path: Path) -> None:
    text = haproxy_config(Setting(LISTEN, TARGET, kind, workers=2), splice)
    assert "nbthread 2\n" in text
    assert ("accept-proxy" in text) is (kind == "proxy")
    file = tmp_path / "haproxy.cfg"
    file.write_text(text)
    done = subprocess.run(["/usr/sbin/haproxy", "-c", "-f", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr


@pytest.mark.real("nginx")
@pytest.mark.parametrize("kind", sorted(NGINX_KINDS))
def test_nginx_takes_its_configuration(kind: str, tmp_path: Path) -> None:
    (nginx,) = (adapter for adapter in ADAPTERS if adapter.name == "nginx")
    assert nginx.command is not None
    command = nginx.command(tmp_path, Setting(LISTEN, TARGET, kind, workers=2, connections=100))
    text = (tmp_path / "nginx.conf").read_text()
    assert "worker_processes 2;" in text
    assert "worker_connections 200;" in text
    done = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_edges_alone_are_let_in() -> None:
    setting = Setting(LISTEN, TARGET, "proxy")
    nginx = nginx_config(setting, Path("/nowhere"), "")
    assert all(f"allow {edge};" in nginx for edge in EDGES)
    assert "deny all;" in nginx
    assert f"reject if !{{ src {' '.join(EDGES)} }}" in haproxy_config(setting, "")


def test_a_client_hello_is_one() -> None:
    hello = clienthello.look(client_hello())
    assert isinstance(hello, clienthello.Hello)
    assert (hello.sni, hello.alpn) == ("www.example.com", ("h2", "http/1.1"))
    assert 400 < len(client_hello()) < 700


def test_a_request_is_one() -> None:
    head = httphead.look(request())
    assert isinstance(head, httphead.HttpHead)
    assert head.method == b"GET"


def test_a_proxy_header_is_one_and_a_byte_follows() -> None:
    said = proxied_byte()
    header = proxyproto.parse(said)
    assert isinstance(header, proxyproto.Header)
    assert (header.src, header.version, header.length) == (bytes((203, 0, 113, 7)), 2, len(said) - 1)
    assert said[header.length :] == b"\0"


def test_what_begins_with_a_greeting_is_looked_at() -> None:
    assert GREETINGS.keys() == set(KINDS) - {"tcp", "denied"}


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("direct", {"denied"}),
        ("relay", set()),
        ("haproxy", set()),
        ("haproxy-splice", set()),
        ("nginx", {"http"}),
        ("proxyd", {"denied", "https", "http", "proxy", "workers"}),
    ],
)
def test_who_has_a_row(name: str, without: set[str]) -> None:
    (adapter,) = (each for each in ADAPTERS if each.name == name)
    every = {"rr-64", "bulk-up", "cps", "denied", "https", "http", "proxy", "tail", "idle", "workers"}
    assert {each for each in every if not adapter.can(axis(each))} == without


def test_whether_the_engine_is_compiled(tmp_path: Path) -> None:
    package = tmp_path / "relay"
    (package / "engine").mkdir(parents=True)
    (package / "engine" / "loop.py").touch()
    assert compiled_modules(package) == "no module compiled"
    (package / "engine" / "loop.cpython-311-x86_64-linux-gnu.so").touch()
    (package / "engine" / "flows.abi3.so").touch()
    assert compiled_modules(package) == "compiled: relay.engine.flows, relay.engine.loop"
