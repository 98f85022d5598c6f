"""What probes ask, with real programs: Redis by its own words, nginx by TLS, and a stand-in at another port."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import Daemons
from tests.e2e import programs
from tests.e2e.programs import run
from tests.e2e.test_health import EDGE, INSTANCES, NAME, Site, Web, site
from tests.harness import Daemon, Echo, dial, echoed, eventually
from tests.ports import free_port

OFTEN: Final = {"interval": "100ms", "timeout": "5s"}
NOT_TRUSTED: Final = "its certificate is signed by nobody whom this machine trusts"
UNEXPECTED: Final = "the answer is not what is expected"


def own(daemon: Daemon, name: str) -> tuple[Any, str]:
    """How a daemon has its own application: up or not, and why not."""
    found = daemon.endpoint(name)
    return found["target_up"], found["target_reason"]


def one(daemon: Daemon, name: str) -> tuple[Any, str]:
    """The same of the first of several targets."""
    target = daemon.endpoint(name)["target_set"][0]
    return {"up": True, "down": False, "unknown": None}[target["health"]], target["reason"]


@pytest.mark.real("redis-server", "redis-cli")
def test_redis_is_asked_in_its_own_words(daemons: Daemons, redis: programs.Redis) -> None:
    """By its own machine, through that machine's relay by an edge, and directly where there is none."""
    host, _, port = redis.tcp.rpartition(":")
    probe = {"send": "PING\r\n", "expect": "+PONG", **OFTEN}
    public, private, local = free_port("0.0.0.0"), free_port("0.0.0.0"), free_port()
    file = {
        "version": 1,
        "service": "test",
        "edge": {"instances": [EDGE]},
        "roles": {
            "web": {
                "instances": [INSTANCES[0]],
                "endpoints": {
                    "in": {
                        "type": "input",
                        "public_port": public,
                        "port": private,
                        "target": redis.tcp,
                        "probe": dict(probe),
                    }
                },
                "uses": {"cache": {"endpoint": "cache/redis", "listen": f"127.0.0.1:{local}"}},
            },
            "cache": {
                "bare": True,
                "instances": [host],
                "endpoints": {"redis": {"type": "internal", "port": int(port), "probe": probe}},
            },
        },
    }
    instance, edge = daemons(file), daemons(file, instance="edge_IN_0")

    def all_say(*expected: Any) -> Callable[[], bool]:
        return lambda: [own(instance, NAME), one(edge, NAME), one(instance, "web/cache")] == [expected] * 3

    eventually(all_say(True, ""), "it says PONG")
    redis_cli = ("-h", host, "-p", port)
    run("redis-cli", *redis_cli, "CONFIG", "SET", "requirepass", "x")
    eventually(all_say(False, UNEXPECTED), "it wants a password first")
    run("redis-cli", *redis_cli, "-a", "x", "--no-auth-warning", "CONFIG", "SET", "requirepass", "")
    eventually(all_say(True, ""), "it says PONG again")


@pytest.mark.real("nginx", "openssl")
@pytest.mark.parametrize("trusts", [True, False])
def test_nginx_is_asked_by_tls_and_its_certificate_is_verified(
    trusts: bool, daemons: Daemons, nginx: programs.Nginx, tmp_path: Path
) -> None:
    """By whom this machine trusts; an edge takes the word of the instance's relay."""
    nobody = tmp_path / "nobody"
    nobody.mkdir()
    authorities = {"SSL_CERT_FILE": str(nginx.certificate if trusts else nobody / "x"), "SSL_CERT_DIR": str(nobody)}
    http = {"protocol": "http", "path": "/", **OFTEN}
    asked: dict[str, dict[str, Any]] = {
        "encrypted": {"protocol": "tcp", "probe": OFTEN | {"tls": True}},
        "verified": {"protocol": "tcp", "probe": OFTEN | {"tls": "verify"}},
        "http": {"protocol": "https", "probe": http},
        "http-verified": {"protocol": "tcp", "probe": http | {"tls": "verify"}},
        "plain-beside": {"protocol": "https", "probe": http | {"port": nginx.plain}},
        "not-plain": {"protocol": "https", "probe": http | {"tls": False}},
        "not-tls": {"protocol": "tcp", "probe": http | {"port": nginx.plain, "tls": True}},
    }
    endpoints = {
        name: {
            "type": "input",
            "public_port": free_port("0.0.0.0"),
            "port": free_port("0.0.0.0"),
            "target": f"127.0.0.1:{nginx.tls}",
            **keys,
        }
        for name, keys in asked.items()
    }
    roles = {"web": {"instances": [INSTANCES[0]], "endpoints": endpoints}}
    file = {"version": 1, "service": "test", "edge": {"instances": [EDGE]}, "roles": roles}
    instance = daemons(file, environment=authorities)
    edge = daemons(file, instance="edge_IN_0", environment={"SSL_CERT_FILE": str(nobody / "x")})
    verified = (True, "") if trusts else (False, NOT_TRUSTED)
    expected = {
        "encrypted": (True, ""),
        "verified": verified,
        "http": (True, ""),
        "http-verified": verified,
        "plain-beside": (True, ""),
        "not-plain": (False, "HTTP 400"),
        "not-tls": (False, "TLS fails"),
    }
    eventually(lambda: {name: own(instance, f"web/{name}") for name in asked} == expected, "its own machine says so")
    eventually(lambda: {name: one(edge, f"web/{name}") for name in asked} == expected, "and its edge")


@dataclass
class StandIn(Web):
    """Says beside an application how that is: one status for each request, and the last one again and again."""

    statuses: list[int] = field(default_factory=lambda: [200])

    def next_status(self) -> int:
        """Of the request that has just come."""
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


def beside(daemons: Daemons, echo: Echo, stand_in: StandIn, **keys: Any) -> Site:
    probe = {"protocol": "http", "port": stand_in.port, "path": "/primary", **OFTEN, **keys}
    return site(daemons, echo.target, probe=probe)


def test_a_stand_in_at_another_port_is_counted(daemons: Daemons, echo: Echo) -> None:
    """One bad answer, or two good ones, are nothing; each series that is long enough is one change of the log."""
    stand_in = StandIn(free_port(), statuses=[200, 503, 204, 503, 503, 200, 200, 503, 200, 204, 200])
    with stand_in.serving():
        made = beside(daemons, echo, stand_in, expect=[200, 204], rise=3, fall=2)
        eventually(lambda: len(stand_in.statuses) == 1, "all has been said")
        eventually(made.is_told(True), "it is up")
        found = [*made.instance.events("target up"), *made.instance.events("target down")]
        in_order = sorted(found, key=lambda each: str(each["time"]))
        assert [each["event"] for each in in_order] == ["target up", "target down", "target up"]
        [down] = made.instance.events("target down")
        assert (down["endpoint"], down["reason"]) == (NAME, "HTTP 503")
    assert {each.split(b"\r\n")[0] for each in stand_in.asked} == {b"GET /primary HTTP/1.1"}


def test_what_a_stand_in_says_is_told_to_an_edge_which_sends_nobody_then(daemons: Daemons, echo: Echo) -> None:
    """Though the application takes connections: the edge does not reach that port, and its relay's word is enough."""
    stand_in = StandIn(free_port())
    with stand_in.serving():
        made = beside(daemons, echo, stand_in)
        eventually(made.is_told(True), "it is up")
        with dial(made.public, host=EDGE) as client:
            assert echoed(client) == b"ping"
            accepted = echo.accepted
            stand_in.statuses[:] = [503]
            eventually(made.is_told(False, "HTTP 503"), "it is no primary any more")
            for _ in range(3):
                with dial(made.public, host=EDGE) as other, pytest.raises(ConnectionError):
                    echoed(other)
            assert echo.accepted == accepted, "no connection has reached it"
            assert echoed(client) == b"ping", "and who is there stays"
        stand_in.statuses[:] = [200]
        eventually(made.is_told(True), "it is back")
        with dial(made.public, host=EDGE) as client:
            assert echoed(client) == b"ping"
