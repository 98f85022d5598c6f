"""Which instance this machine is: the order of the sources, and every way not to know."""

import errno
import socket
from ipaddress import ip_address
from typing import Any

import pytest

from relay.config.document import parse
from relay.config.load import parse_service, parse_settings
from relay.config.model import Service
from relay.config.settings import Settings
from relay.config.values import IPAddress
from relay.errors import IdentityError, OperatorError
from relay.fleet.identity import address_is_local, identify

TEXT = b"""\
version: 1
service: shop
roles:
  web: {instances: [10.0.0.4, 10.0.0.5]}
  store: {instances: ["2001:db8::4"]}
"""
SERVICE = parse_service(parse(TEXT, "service.yaml")).value


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing were set around the tests."""
    monkeypatch.delenv("RELAY_INSTANCE", raising=False)


def settings(text: str = "") -> Settings:
    return parse_settings(parse(text.encode(), "instance.yaml")).value


def who(*local: str, flag: str | None = None, file: str = "", service: Service = SERVICE) -> str:
    """The identity of a machine with these addresses."""
    found = identify(service, settings(file), flag, is_local=lambda address: str(address) in local)
    assert isinstance(found, str)
    return found


def test_the_order_of_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_INSTANCE", "web_IN_1")
    file = "id: web_IN_0\n"
    assert who("2001:db8::4", flag="store_IN_0", file=file) == "store_IN_0"
    assert who("2001:db8::4", file=file) == "web_IN_1"
    monkeypatch.setenv("RELAY_INSTANCE", "")
    assert who("2001:db8::4", file=file) == "web_IN_0"
    assert who("2001:db8::4") == "store_IN_0"


def test_a_given_id_asks_for_no_address() -> None:
    def asked(_address: IPAddress) -> bool:
        raise AssertionError("the roster was asked")

    assert identify(SERVICE, settings(), "web_IN_1", is_local=asked) == "web_IN_1"


@pytest.mark.parametrize(("address", "instance"), [("10.0.0.4", "web_IN_0"), ("10.0.0.5", "web_IN_1")])
def test_the_address_tells(address: str, instance: str) -> None:
    assert who(address, "192.0.2.9") == instance


def test_no_address_is_local() -> None:
    with pytest.raises(IdentityError, match=r"no address in the roster of service shop is on .*; write .* or .*--id"):
        who("192.0.2.9")


def test_several_addresses_are_local() -> None:
    with pytest.raises(IdentityError, match=r"addresses of web_IN_0, store_IN_0; say which one it is with --id"):
        who("10.0.0.4", "2001:db8::4")


@pytest.mark.parametrize(
    ("instance", "words"),
    [
        ("cache_IN_0", "no role `cache` in service shop; it has web, store"),
        ("web_IN_2", "role `web` has 2 instances, so the last id is web_IN_1"),
        ("web", "`web` is not an instance id; write ROLE_IN_NUMBER"),
        ("web_IN_01", "`web_IN_01` is not an instance id"),
        ("web_IN_0 ", "`web_IN_0 ` is not an instance id"),
    ],
)
def test_a_given_id_that_is_wrong(instance: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IdentityError) as caught:
        who("10.0.0.4", flag=instance)
    assert str(caught.value).startswith(f"--id: {words}")
    monkeypatch.setenv("RELAY_INSTANCE", instance)
    with pytest.raises(IdentityError) as caught:
        who("10.0.0.4")
    assert str(caught.value).startswith(f"RELAY_INSTANCE: {words}")


def test_the_settings_id_is_checked_against_the_service() -> None:
    with pytest.raises(IdentityError, match=r"^`id` in instance.yaml: no role `cache`"):
        who("10.0.0.4", file="id: cache_IN_0\n")


def test_a_role_without_instances_names_no_last_id() -> None:
    empty = parse_service(parse(b"version: 1\nservice: s\nroles: {web: {instances: []}}\n", "service.yaml")).value
    with pytest.raises(IdentityError) as caught:
        who(flag="web_IN_0", service=empty)
    assert "web_IN_-1" not in str(caught.value)


def test_what_is_local() -> None:
    assert address_is_local(ip_address("127.0.0.1"))
    assert address_is_local(ip_address("127.7.8.9"))
    assert not address_is_local(ip_address("203.0.113.1"))
    assert not address_is_local(ip_address("2001:db8::1"))


def test_the_kernels_other_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be made to happen on a test machine: no IPv6 at all, and no descriptor to ask with."""

    def failing(code: int) -> Any:
        def make(*_: object) -> socket.socket:
            raise OSError(code, "x")

        return make

    monkeypatch.setattr(socket, "socket", failing(errno.EAFNOSUPPORT))
    assert not address_is_local(ip_address("2001:db8::1"))
    monkeypatch.setattr(socket, "socket", failing(errno.EMFILE))
    with pytest.raises(OperatorError, match=r"cannot tell whether 10.0.0.4 is this machine's: .*; use --id"):
        address_is_local(ip_address("10.0.0.4"))


EDGE = parse_service(parse(TEXT + b"edge: {instances: [198.51.100.10, 198.51.100.11]}\n", "service.yaml")).value


def test_an_edge_by_its_address() -> None:
    assert who("198.51.100.10", service=EDGE) == "edge_IN_0"
    assert who("198.51.100.11", "192.0.2.9", service=EDGE) == "edge_IN_1"
    assert who("10.0.0.5", service=EDGE) == "web_IN_1"
    with pytest.raises(IdentityError, match=r"addresses of web_IN_0, edge_IN_0; say which one it is with --id"):
        who("10.0.0.4", "198.51.100.10", service=EDGE)


def test_an_edge_by_its_id() -> None:
    assert who("10.0.0.4", flag="edge_IN_1", service=EDGE) == "edge_IN_1"
    with pytest.raises(IdentityError, match=r"^--id: role `edge` has 2 instances, so the last id is edge_IN_1"):
        who(flag="edge_IN_2", service=EDGE)
    with pytest.raises(IdentityError, match=r"^--id: no role `cache` in service shop; it has web, store, edge"):
        who(flag="cache_IN_0", service=EDGE)
    with pytest.raises(IdentityError, match=r"^--id: no role `edge` in service shop; it has web, store$"):
        who(flag="edge_IN_0")


def test_a_role_called_edge_where_there_is_none() -> None:
    """The name is taken only beside an edge."""
    text = b"version: 1\nservice: s\nroles: {edge: {instances: [10.0.0.7]}}\n"
    assert who("10.0.0.7", service=parse_service(parse(text, "service.yaml")).value) == "edge_IN_0"
