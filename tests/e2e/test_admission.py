"""Who is let in, how many, and with what first bytes; and that a target never hears of the others."""

import contextlib
import socket
import ssl
import time
from typing import Any

from tests.conformance.streams import receive_exactly
from tests.conftest import Daemons
from tests.e2e.peers import accept, counted, endpoint, records, untouched
from tests.harness import Echo, denied, dial, echoed, eventually, one_endpoint, service
from tests.ports import free_port

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


def text(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"{host}:{port}"


def client_hello() -> bytes:
    """What a TLS client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="relay.test").do_handshake()
    return outgoing.read()


# --- who --------------------------------------------------------------------------------------------------------------


ACCESS: dict[str, tuple[list[dict[str, str]], list[str], list[str]]] = {  # rules, who is let in, who is not
    "none": ([], ["127.0.0.2", "127.0.0.3"], []),
    "deny": ([{"deny": "127.0.0.2"}], ["127.0.0.3", "127.0.0.1"], ["127.0.0.2"]),
    "permit": ([{"permit": "127.0.0.2"}], ["127.0.0.2"], ["127.0.0.3", "127.0.0.1"]),
    "deny-first": (
        [{"deny": "127.0.0.2"}, {"permit": "127.0.0.0/28"}],
        ["127.0.0.3"],
        ["127.0.0.2", "127.0.0.16"],
    ),
    "permit-first": ([{"permit": "127.0.0.0/28"}, {"deny": "127.0.0.2"}], ["127.0.0.2"], ["127.0.0.16"]),
}


def test_access(daemons: Daemons, echo: Echo) -> None:
    ports = {name: free_port() for name in ACCESS}
    rules = {name: endpoint(ports[name], echo.target, access=rules) for name, (rules, _, _) in ACCESS.items()}
    daemon = daemons(service(rules))
    for name, (_, permitted, others) in ACCESS.items():
        for source in others:
            assert denied(ports[name], source=source), (name, source)
        before = echo.accepted
        for source in permitted:
            with dial(ports[name], source=source) as client:
                assert echoed(client) == b"ping", (name, source)
        assert echo.accepted - before == len(permitted), name
        refusals = {"access": len(others)} if others else {}
        counted(daemon, f"web/{name}", accepted=len(permitted), denied=refusals)
    assert echo.accepted == sum(len(permitted) for _, permitted, _ in ACCESS.values())


def test_an_internal_endpoint_admits_the_instances_it_names(daemons: Daemons, echo: Echo) -> None:
    named, everyone = free_port(), free_port()
    keys = {"type": "internal", "target": echo.target}
    declared = {
        "version": 1,
        "service": "test",
        "roles": {
            "web": {
                "instances": ["127.0.0.1"],
                "endpoints": {"in": {**keys, "port": named, "from": ["app"]}, "all": {**keys, "port": everyone}},
            },
            "app": {"instances": ["127.0.0.2", "127.0.0.3"]},
            "batch": {"instances": ["127.0.0.4"]},
        },
    }
    daemon = daemons(declared)
    allowed = {named: ["127.0.0.2", "127.0.0.3"], everyone: ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"]}
    for port, sources in allowed.items():
        for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"):
            if source not in sources:
                assert denied(port, source=source), (port, source)
                continue
            with dial(port, source=source) as client:
                assert echoed(client) == b"ping", (port, source)
    assert echo.accepted == 6
    counted(daemon, denied={"roster": 3})


# --- how many ---------------------------------------------------------------------------------------------------------


def test_limits_of_connections_and_of_one_source(daemons: Daemons, echo: Echo) -> None:
    limits = {"connections": 3, "per_source": 2}
    daemon = daemons(one_endpoint(port := free_port(), echo.target, limits=limits))
    with dial(port, source="127.0.0.2") as one, dial(port, source="127.0.0.2") as two:
        assert (echoed(one), echoed(two)) == (b"ping", b"ping")
        assert denied(port, source="127.0.0.2")
        counted(daemon, denied={"per_source": 1})
        with dial(port, source="127.0.0.3") as three:
            assert echoed(three) == b"ping"
            assert denied(port, source="127.0.0.4")
            counted(daemon, denied={"per_source": 1, "connections": 1}, active=3)
        counted(daemon, active=2)
        with dial(port, source="127.0.0.3") as again:
            assert echoed(again) == b"ping"
    assert echo.accepted == 4
    counted(daemon, active=0, accepted=4)


def test_a_limit_of_networks(daemons: Daemons, echo: Echo) -> None:
    limits = {"per_source": {"limit": 2, "ipv4": 24}}
    daemon = daemons(one_endpoint(port := free_port(), echo.target, limits=limits), {"workers": 2})
    with dial(port, source="127.0.5.1") as one, dial(port, source="127.0.5.2") as two:
        assert (echoed(one), echoed(two)) == (b"ping", b"ping")
        assert denied(port, source="127.0.5.3")
        counted(daemon, denied={"per_source": 1})
        with dial(port, source="127.0.6.1") as other:
            assert echoed(other) == b"ping"
    counted(daemon, active=0, accepted=3)
    with dial(port, source="127.0.5.3") as again:
        assert echoed(again) == b"ping"


def test_a_limit_of_the_rate(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target, limits={"rate": "5/s"}))
    begun_s = time.monotonic()
    refused = sum(denied_or_closed(port) for _ in range(30))
    seconds = int(time.monotonic()) - int(begun_s) + 1  # each has its own five, by the clock that relay reads too
    let_in = 30 - refused
    assert 5 <= let_in <= 5 * seconds
    counted(daemon, denied={"rate": refused}, accepted=let_in)
    assert echo.accepted == let_in

    def let_in_again() -> bool:
        return not denied_or_closed(port)

    eventually(let_in_again, "a moment later there is room again")


def denied_or_closed(port: int) -> bool:
    """Whether the connection is refused; one that is let in is closed again."""
    try:
        with dial(port) as client:
            return echoed(client) != b"ping"
    except ConnectionError:
        return True


def test_a_denied_source_uses_up_nobodys_share(daemons: Daemons, echo: Echo) -> None:
    keys: dict[str, Any] = {"access": [{"deny": "127.0.0.2"}], "limits": {"rate": "2/s", "connections": 1}}
    daemon = daemons(one_endpoint(port := free_port(), echo.target, **keys))
    for _ in range(10):
        assert denied(port, source="127.0.0.2")
    with dial(port) as client:
        assert echoed(client) == b"ping"
    counted(daemon, denied={"access": 10})


# --- what -------------------------------------------------------------------------------------------------------------


def test_http_is_looked_at_and_passed_on_whole(daemons: Daemons, listener: socket.socket) -> None:
    daemon = daemons(one_endpoint(port := free_port(), text(listener), protocol="http"))
    with dial(port) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for split in (GET[:1], GET[1:3], GET[3:4]):
            client.sendall(split)
            eventually(lambda: daemon.ask("GET", "/v1/connections")[1], "it was let in")
            assert daemon.ask("GET", "/v1/connections")[1][0]["state"] == "look"
            assert untouched(listener)
        client.sendall(GET[4:])
        with accept(listener) as served:
            assert receive_exactly(served, len(GET)) == GET
            served.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 204")


NOT_HTTP = [b"\x16\x03\x01\x02\x00\x01\x00", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00"]
NOT_TLS = [GET, b"SSH-2.0-OpenSSH_9.2\r\n", b"\x16\x03\x01\x00\x00", b"\x17\x03\x03\x00\x10" + bytes(16)]


def test_what_is_not_the_protocol_is_refused(daemons: Daemons, listener: socket.socket) -> None:
    http, https = free_port(), free_port()
    daemon = daemons(
        service(
            {
                "http": endpoint(http, text(listener), protocol="http"),
                "https": endpoint(https, text(listener), protocol="https"),
            }
        )
    )
    for port, name, wrong in ((http, "http", NOT_HTTP), (https, "https", NOT_TLS)):
        for data in wrong:
            with dial(port) as client:
                client.sendall(data)
                assert reset_comes(client), (name, data)
        count = len(wrong)
        counted(daemon, f"web/{name}", denied={"protocol": count}, closed={"protocol": count}, active=0)
    assert untouched(listener)
    assert {each["reason"].partition(":")[0] for each in records(daemon, "denied", len(NOT_HTTP) + len(NOT_TLS))} == {
        "protocol"
    }


def reset_comes(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b"?"
    except ConnectionResetError:
        return True


def test_one_who_is_slow_to_say_anything_is_cut(daemons: Daemons, listener: socket.socket) -> None:
    http, https = free_port(), free_port()
    daemon = daemons(
        service(
            {
                name: endpoint(port, text(listener), protocol=name, timeouts={"first_byte": "500ms"})
                for name, port in (("http", http), ("https", https))
            }
        )
    )
    for port, name, said in ((http, "http", GET), (https, "https", client_hello())):
        begun_s = time.monotonic()
        with dial(port) as silent, dial(port) as dripping:
            assert drip(dripping, said), "a byte now and then prolongs it"
            assert 0.4 <= time.monotonic() - begun_s < 10  # which is `first_byte` where nobody writes it
            assert reset_comes(silent)
        counted(daemon, f"web/{name}", closed={"first_byte_timeout": 2}, active=0)
    assert untouched(listener)


def drip(client: socket.socket, data: bytes) -> bool:
    """Send byte after byte, ten a second; True as soon as that is answered by a reset."""
    client.settimeout(0.1)
    try:
        for byte in data:
            client.send(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                assert client.recv(1) != b"", "a FIN"
    except ConnectionError:
        return True
    return False


def test_one_who_leaves_before_saying_enough(daemons: Daemons, listener: socket.socket) -> None:
    daemon = daemons(one_endpoint(port := free_port(), text(listener), protocol="http"))
    for said in (b"", b"GE"):
        with dial(port) as client:
            client.sendall(said)
    counted(daemon, closed={"client_gone": 2}, active=0, denied={})
    assert untouched(listener)
