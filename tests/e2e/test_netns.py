"""Machines of a service, each with its own address and its own relay, somebody who is none of them, and forged addresses."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.conftest import Daemons
from tests.e2e.hosts import FAMILIES, Family, Host, network
from tests.e2e.peers import counted, listening
from tests.envelope import reference
from tests.harness import Daemon, Echo, echoed, eventually

pytestmark = [pytest.mark.real("ip", "ss"), pytest.mark.slow]

ROLES: Final = ("web", "app", "store")
OUTSIDER: Final = "outsider"
UNDECLARED: Final = 9999
SILENT_S: Final = 1.5  # a handshake takes no time here, and its first packet is sent again after a second (RFC 6298)


@dataclass
class Site:
    """Three machines with one relay each, and an outsider. Every endpoint has a target of its own."""

    family: Family
    hosts: dict[str, Host]
    daemons: dict[str, Daemon]
    echoes: dict[str, Echo]
    service: dict[str, Any]

    def address(self, host: str) -> str:
        return self.hosts[host].address[self.family]

    def port(self, endpoint: str) -> int:
        return int(reference.find(self.service, endpoint)["port"])

    def dial(self, host: str, endpoint: str, **keys: Any) -> Any:
        """A connection from a machine to the one that has this endpoint."""
        return self.hosts[host].dial(self.family, self.address(endpoint.partition("/")[0]), self.port(endpoint), **keys)

    def is_let_in(self, host: str, endpoint: str) -> bool:
        """Whether bytes from a machine come back from the endpoint's target. If not, the connection is reset and counted."""
        before = self.refused(endpoint)
        try:
            with self.dial(host, endpoint) as client:
                assert echoed(client) == b"ping"
                return True
        except ConnectionResetError:
            eventually(lambda: self.refused(endpoint) > before, "it is counted, a moment later")
            return False

    def refused(self, endpoint: str) -> int:
        """How many connections to it were not let in."""
        return sum(self.endpoint(endpoint)["denied"].values())

    def shall_be_let_in(self, host: str, endpoint: str) -> bool:
        return reference.lets_in(self.service, endpoint, self.address(host))

    def endpoint(self, name: str) -> dict[str, Any]:
        """What the machine's daemon says of it."""
        return self.daemons[name.partition("/")[0]].endpoint(name)

    def reload(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the file, on every machine."""
        change(self.service["roles"])
        for daemon in self.daemons.values():
            daemon.write_service(self.service)
            code, answer = daemon.ask("POST", "/v1/reload")
            assert code == 200, answer


@pytest.fixture(scope="module")
def hosts() -> Iterator[dict[str, Host]]:
    """The machines."""
    names = (*ROLES, OUTSIDER)
    with network(*names) as made:
        yield dict(zip(names, made, strict=True))


@pytest.fixture(scope="module", params=FAMILIES)
def site(
    request: pytest.FixtureRequest, hosts: dict[str, Host], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A service on them, by IPv4 or by IPv6."""
    family: Family = request.param
    directory = tmp_path_factory.mktemp(family)
    address = {name: host.address[family] for name, host in hosts.items()}
    web = {
        "site": {"type": "input", "public_port": 8080},
        "some": {
            "type": "input",
            "public_port": 8081,
            "access": [{"deny": address["app"]}, {"deny": address[OUTSIDER]}],
        },
        "admin": {"type": "input", "public_port": 8082, "access": [{"permit": address["store"]}]},
    }
    jobs = {"jobs": {"type": "internal", "port": 9000}}
    store = {"pg": {"type": "internal", "port": 5432, "from": ["web"]}, "sync": {"type": "internal", "port": 5433}}
    declared: dict[str, dict[str, Any]] = {"web": web, "app": jobs, "store": store}
    with ExitStack() as stack:
        echoes = {}
        for role, endpoints in declared.items():
            for name, keys in endpoints.items():
                echo = stack.enter_context(Echo(str(directory / f"{role}-{name}")))
                echoes[f"{role}/{name}"] = echo
                keys |= {"target": echo.target, "port": keys.get("port") or keys["public_port"]}
        roles = {role: {"instances": [address[role]], "endpoints": declared[role]} for role in ROLES}
        service = {"version": 1, "service": "shop", "roles": roles}
        daemons = Daemons(directory)
        stack.callback(daemons.end)
        made = {
            role: daemons(service, {"workers": 2}, instance=f"{role}_IN_0", wrapper=hosts[role].wrapper)
            for role in ROLES
        }
        yield Site(family, hosts, made, echoes, service)


def test_who_may_connect_to_what(site: Site) -> None:
    """From every machine to every endpoint: the roster, narrowed by `from`; access; and nothing else is there."""
    names = reference.endpoints(site.service)
    before = {name: site.endpoint(name) for name in names}
    served = {name: site.echoes[name].accepted for name in names}
    seen = {(host, name): site.is_let_in(host, name) for host in site.hosts for name in names}
    assert seen == {(host, name): site.shall_be_let_in(host, name) for host, name in seen}
    assert {name for (host, name), let_in in seen.items() if host == OUTSIDER and let_in} == {"web/site"}
    for name in names:
        let_in = sum(seen[host, name] for host in site.hosts)
        assert site.echoes[name].accepted == served[name] + let_in, (
            "its target sees those that are let in, and nobody else"
        )
        reason = "roster" if reference.find(site.service, name)["type"] == "internal" else "access"
        refused = before[name]["denied"].get(reason, 0) + len(site.hosts) - let_in
        expected = {"accepted": before[name]["accepted"] + let_in, "denied": {reason: refused} if refused else {}}
        eventually(lambda: expected.items() <= site.endpoint(name).items(), f"the account of {name}: {expected}")  # noqa: B023


def test_nothing_undeclared_listens(site: Site) -> None:
    for role, host in site.hosts.items():
        declared = reference.endpoints(site.service, role) if role in ROLES else []
        address = site.address(role)
        at = f"[{address}]" if ":" in address else address
        assert listening(*host.wrapper) == {f"{at}:{site.port(name)}" for name in declared}
        with pytest.raises(ConnectionRefusedError):
            site.hosts["web"].dial(site.family, address, UNDECLARED)


def test_a_roster_that_changes_admits_and_cuts(site: Site) -> None:
    """An instance that comes is let in at once, and cut off when it goes; so is a role that is taken out of `from`."""
    others = [(host, name) for host, name in (("web", "store/pg"), ("app", "store/sync"), (OUTSIDER, "web/site"))]
    with ExitStack() as stack:
        steady = [stack.enter_context(site.dial(host, name)) for host, name in others]
        assert not site.is_let_in(OUTSIDER, "store/sync")
        assert not site.is_let_in("app", "store/pg")

        def more(roles: dict[str, Any]) -> None:
            roles["app"]["instances"].append(site.address(OUTSIDER))
            roles["store"]["endpoints"]["pg"]["from"].append("app")

        site.reload(more)
        came = [
            stack.enter_context(site.dial(host, name)) for host, name in ((OUTSIDER, "store/sync"), ("app", "store/pg"))
        ]
        came.append(stack.enter_context(site.dial(OUTSIDER, "store/pg")))
        for client in (*steady, *came):
            assert echoed(client) == b"ping"

        def less(roles: dict[str, Any]) -> None:
            roles["app"]["instances"].pop()
            roles["store"]["endpoints"]["pg"]["from"].pop()

        site.reload(less)
        for client in came:
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        for client in steady:
            assert echoed(client) == b"ping"
    assert not site.is_let_in(OUTSIDER, "store/sync")
    assert not site.is_let_in("app", "store/pg")
    for name, count in (("store/sync", 1), ("store/pg", 2)):
        eventually(lambda: site.endpoint(name)["closed"].get("revoked") == count, f"{count} are cut")  # noqa: B023


def test_a_forged_address_leads_nowhere(site: Site) -> None:
    """The outsider sends from the address of an instance. The answer goes to that instance, which knows nothing of it."""
    counted(site.daemons["store"], "store/pg", active=0)
    before, seen = site.endpoint("store/pg"), site.echoes["store/pg"].accepted
    resets = site.hosts["web"].resets_sent()
    with pytest.raises(TimeoutError):
        site.dial(OUTSIDER, "store/pg", source=site.address("web"), for_s=SILENT_S)
    assert site.hosts["web"].resets_sent() > resets, "it did arrive, and was answered"
    after = site.endpoint("store/pg")
    assert {key: after[key] for key in ("accepted", "active", "denied")} == {
        key: before[key] for key in ("accepted", "active", "denied")
    }
    assert site.echoes["store/pg"].accepted == seen
    assert site.is_let_in("web", "store/pg"), "whose address it was, is let in as before"
