"""The DNS server as people ask it: by dig."""

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import Iterator

import pytest

from relay.config.roster import Member, Roster
from relay.names.server import serve_names
from relay.names.zone import Zone
from tests.e2e.programs import RUN_S, program
from tests.names.rig import open_pair

pytestmark = pytest.mark.real("dig")

ZONE = Zone(
    "shop",
    {"web": {"http-in": 8080}, "store": {"postgres": 5432}, "large": {}},
    Roster(
        (
            Member("web", 0, "10.0.0.4"),
            Member("web", 1, "2001:db8::4"),
            Member("store", 0, "10.0.1.4"),
            *(Member("large", n, f"10.1.{n >> 8}.{n & 255}") for n in range(1000)),
        )
    ),
    address="127.0.0.1",
    serial=7,
    ttl_s=5,
)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server in a thread of its own."""
    with contextlib.ExitStack() as at_the_end:  # the last one first
        loop = asyncio.new_event_loop()
        at_the_end.callback(loop.close)
        udp, tcp = map(at_the_end.enter_context, open_pair())
        server = loop.run_until_complete(serve_names(udp, tcp, ZONE.answer))
        number = tcp.getsockname()[1]
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        at_the_end.callback(thread.join)
        at_the_end.callback(loop.call_soon_threadsafe, loop.stop)
        at_the_end.callback(lambda: asyncio.run_coroutine_threadsafe(server.close(), loop).result(RUN_S))
        yield number


def dig(port: int, *arguments: str) -> str:
    command = [program("dig"), "@127.0.0.1", "-p", str(port), "+norecurse", "+tries=3", "+timeout=10", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout, done.stdout
    assert "malformed" not in done.stdout, done.stdout
    return done.stdout


def short(port: int, *arguments: str) -> list[str]:
    return sorted(dig(port, "+short", *arguments).splitlines())


@pytest.mark.parametrize("way", ["+notcp", "+tcp"])
def test_every_kind_of_name(port: int, way: str) -> None:
    assert short(port, way, "web.shop.internal", "A") == ["10.0.0.4"]
    assert short(port, way, "web.shop.internal", "AAAA") == ["2001:db8::4"]
    assert short(port, way, "WEB-0.web.SHOP.internal") == ["10.0.0.4"]
    assert short(port, way, "_postgres._tcp.store.shop.internal", "SRV") == ["0 0 5432 store-0.store.shop.internal."]
    assert short(port, way, "-x", "10.0.0.4") == ["web-0.web.shop.internal."]
    assert short(port, way, "-x", "2001:db8::4") == ["web-1.web.shop.internal."]
    assert short(port, way, "shop.internal", "NS") == ["ns.shop.internal."]
    assert short(port, way, "shop.internal", "SOA")[0].split()[2] == "7"


def test_what_is_not_there_and_what_is_refused(port: int) -> None:
    missing = dig(port, "cache.shop.internal")
    assert "status: NXDOMAIN" in missing
    assert "flags: qr aa;" in missing
    assert "SOA\tns.shop.internal." in missing
    assert "status: REFUSED" in dig(port, "example.com")
    assert "status: NOERROR" in dig(port, "_tcp.store.shop.internal")
    assert "status: NOTIMP" in dig(port, "+opcode=notify", "web.shop.internal")
    assert '"RFC8482"' in dig(port, "+notcp", "web.shop.internal", "ANY")


def test_edns(port: int) -> None:
    assert "udp: 1232" in dig(port, "web.shop.internal")
    assert "EDNS" not in dig(port, "+noedns", "web.shop.internal")
    assert "status: BADVERS" in dig(port, "+edns=1", "+noednsnegotiation", "web.shop.internal")
    assert "status: NOERROR" in dig(port, "+edns=1", "web.shop.internal")
    assert "flags: do;" in dig(port, "+dnssec", "+cookie=0123456789abcdef", "+subnet=10.0.0.0/8", "web.shop.internal")


def test_a_large_role(port: int) -> None:
    """dig asks again by TCP, and ignores the cut answer."""
    assert len(short(port, "large.shop.internal")) == 1000
    cut = dig(port, "+ignore", "large.shop.internal")
    assert "flags: qr aa tc;" in cut


def test_several_on_one_connection(port: int) -> None:
    asked = [
        "+tcp",
        "+keepopen",
        "+short",
        "web.shop.internal",
        "store.shop.internal",
        "web-1.web.shop.internal",
        "AAAA",
    ]
    assert dig(port, *asked).split() == ["10.0.0.4", "10.0.1.4", "2001:db8::4"]
