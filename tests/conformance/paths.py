"""The data paths that the suite can be put over.

To test another forwarder, write a `DataPath` for it, add it to `make`, and name it in RELAY_DATA_PATHS. `direct` is no
forwarder: it proves that a test asks for nothing that the kernel's own TCP does not give.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from tests.conftest import Daemons
from tests.harness import Daemon, Echo, eventually, one_endpoint, stop_all
from tests.ports import free_port

Address = tuple[str, int] | str
"""Where to connect: host and port, or the path of a Unix socket."""

Ends = Mapping[str, int]
"""How many flows ended for which cause (`relay.ledger.ledger.CAUSES`); `a|b` where either is right."""


_EDGE_HOST: Final = "127.250.0.1"
_INSTANCE_HOST: Final = "127.1.0.1"
_ON_THE_EDGE: Final = {
    # The edge's own time began a little earlier. A client that leaves meanwhile is noticed by the edge.
    "connect_timeout": {"connect_timeout", "connect_failed", "client_reset"},
    # To the edge the instance is the target, and what the instance says to its own client is a reset.
    "client_gone": {"client_fin", "target_reset"},
    # Both count the same time, and the first one to cut shows to the other as a reset.
    "idle": {"idle", "target_reset"},
}
_ON_THE_INSTANCE: Final = {"idle": {"idle", "client_reset"}}


@dataclass(frozen=True)
class Door:
    """An open data path. Clients connect to `address`; `pids` are the processes that forward (none: nobody does)."""

    address: Address
    pids: tuple[int, ...] = ()


class DataPath(Protocol):
    """A way from a client to a target."""

    hops: int
    """How many forwarders stand in a row."""

    def open(self, target: Address, ends: Ends, **keys: Any) -> AbstractContextManager[Door]:
        """Lead to `target`, with `keys` as an endpoint of a service file has them (`timeouts`, `limits`).

        On leaving, after the test has closed its sockets, the data path asserts that nothing is left of any flow and,
        where it counts them, that they ended as `ends` says.
        """
        ...


class Direct:
    """The target itself."""

    hops = 0

    @contextmanager
    def open(self, target: Address, ends: Ends, **_keys: Any) -> Iterator[Door]:
        """Nothing between; nothing is counted."""
        yield Door(target)


class Relay:
    """A real daemon with one endpoint. The next test with the same target and keys gets the same daemon.

    That saves most of the suite's time, and a daemon that has lived through much is the better one to test. One that
    failed a test is stopped and serves no other.
    """

    hops = 1

    def __init__(self, daemons: Daemons, layout: "Layout") -> None:
        self._daemons = daemons
        self._layout = layout
        self._running: dict[tuple[Address, str], tuple[Daemon, int]] = {}

    @contextmanager
    def open(self, target: Address, ends: Ends, **keys: Any) -> Iterator[Door]:
        """A daemon in front of `target`; at the end compare its accounts with `ends`."""
        which = (target, json.dumps(keys, sort_keys=True))
        daemon, port = self._running.pop(which) if which in self._running else self._start(target, keys)
        try:
            before, workers = daemon.endpoint("web/in"), worker_pids(daemon)
            yield Door((self._layout.host, port), workers)
            assert_accounts(daemon, ends, before)
            assert worker_pids(daemon) == workers, "a worker was started again"
        except BaseException:
            daemon.stop()
            raise
        self._running[which] = daemon, port

    def _start(self, target: Address, keys: dict[str, Any]) -> tuple[Daemon, int]:
        port = free_port(self._layout.host)
        # A target is a test's own: relay does not ask it when a dial has failed.
        file = self._layout.service(port, target, {"probe": False, **keys})
        return self._daemons(file, instance=self._layout.instance), port


@dataclass(frozen=True)
class Layout:
    """What stands before the target: the address and the id of the daemon, and its service file."""

    host: str
    instance: str
    service: Callable[[int, Address, dict[str, Any]], dict[str, Any]]


def _alone(port: int, target: Address, keys: dict[str, Any]) -> dict[str, Any]:
    """The one target of an endpoint."""
    return one_endpoint(port, _text(target), **keys)


def _of_several(port: int, target: Address, keys: dict[str, Any]) -> dict[str, Any]:
    """The only one of several targets that has a weight."""
    others = [{"address": f"127.0.0.1:{nobodys}", "weight": 0} for nobodys in (1, 2)]
    file = one_endpoint(port, "", **keys)
    file["roles"]["web"]["endpoints"]["in"]["target"] = [others[0], _text(target), others[1]]
    return file


def _bare(port: int, target: Address, keys: dict[str, Any]) -> dict[str, Any]:
    """An instance of a role without relay, behind an edge."""
    assert not isinstance(target, str), "see conftest.py"
    host, own = target
    endpoint = {"type": "input", "public_port": port, "port": own, **keys}
    role = {"bare": True, "instances": [host], "endpoints": {"in": endpoint}}
    return {"version": 1, "service": "test", "edge": {"instances": [_EDGE_HOST]}, "roles": {"web": role}}


class Edge:
    """Two real daemons: an edge's public port, and behind it an instance, which the edge tells who the client is.

    The accounts are the instance's; the edge's are worked out from them.
    """

    hops = 2

    def __init__(self, daemons: Daemons) -> None:
        self._daemons = daemons
        self._running: dict[tuple[Address, str], tuple[Daemon, Daemon, int]] = {}

    @contextmanager
    def open(self, target: Address, ends: Ends, **keys: Any) -> Iterator[Door]:
        """An edge and an instance in front of `target`; at the end compare the accounts of both with `ends`."""
        which = (target, json.dumps(keys, sort_keys=True))
        edge, instance, port = self._running.pop(which) if which in self._running else self._start(target, keys)
        pair = {edge: _seen_by(_ON_THE_EDGE, ends), instance: _seen_by(_ON_THE_INSTANCE, ends)}
        try:
            before = [daemon.endpoint("web/in") for daemon in pair]
            workers = [worker_pids(daemon) for daemon in pair]
            yield Door((_EDGE_HOST, port), tuple(pid for pids in workers for pid in pids))
            for (daemon, expected), account in zip(pair.items(), before, strict=True):
                assert_accounts(daemon, expected, account)
            assert [worker_pids(daemon) for daemon in pair] == workers, "a worker was started again"
            (instance_seen,) = edge.endpoint("web/in")["target_set"]
            assert instance_seen["active"] == 0
        except BaseException:
            stop_all((edge, instance))
            raise
        self._running[which] = edge, instance, port

    def _start(self, target: Address, keys: dict[str, Any]) -> tuple[Daemon, Daemon, int]:
        public, private = free_port(_EDGE_HOST), free_port(_INSTANCE_HOST)

        def service(text: str, probe: dict[str, str] | bool) -> dict[str, Any]:
            own = {"public_port": public, "port": private, "target": text, "probe": probe}
            endpoint = {"type": "input", **own, **keys}
            role = {"instances": [_INSTANCE_HOST], "endpoints": {"in": endpoint}}
            return {"version": 1, "service": "test", "edge": {"instances": [_EDGE_HOST]}, "roles": {"web": role}}

        # The probe goes through to the target, which a test wants to itself, or not to answer at all.
        with Echo() as first:
            file = service(first.target, {"interval": "1h"})
            instance, edge = self._daemons(file), self._daemons(file, instance="edge_IN_0")
            try:
                eventually(lambda: edge.endpoint("web/in")["target_set"][0]["health"] == "up", "the instance is up")
                # First: an edge that probes does so again when it hears that something has changed at the instance.
                self._reload(edge, service(_text(target), probe=False))
                eventually(lambda: instance.endpoint("web/in")["active"] == 0, "the last probe has ended")
                self._reload(instance, service(_text(target), probe=False))
            except BaseException:
                stop_all((edge, instance))
                raise
        return edge, instance, public

    @staticmethod
    def _reload(daemon: Daemon, file: dict[str, Any]) -> None:
        daemon.write_service(file)
        code, answer = daemon.ask("POST", "/v1/reload")
        assert code == 200, answer


def _text(target: Address) -> str:
    return f"unix:{target}" if isinstance(target, str) else f"{target[0]}:{target[1]}"


def _seen_by(table: Mapping[str, set[str]], ends: Ends) -> Ends:
    """What one of two daemons counts for these ends."""
    seen: Counter[str] = Counter()
    for causes, count in ends.items():
        seen["|".join(sorted(set().union(*(table.get(cause, {cause}) for cause in causes.split("|")))))] += count
    return seen


def worker_pids(daemon: Daemon) -> tuple[int, ...]:
    """The processes that forward."""
    return tuple(int(worker["pid"]) for worker in daemon.status()["workers"])


def assert_accounts(daemon: Daemon, ends: Ends, before: dict[str, Any] | None = None) -> None:
    """Assert that every flow that was let in has ended, for the causes in `ends` and no other, and no bug was logged.

    `before` is the endpoint's status at the start, where there were flows before that.
    """
    accepted_before, closed_before = (before["accepted"], before["closed"]) if before else (0, {})
    account: dict[str, Any] = {}

    def ended() -> bool:  # a client that is gone already may still stand in the backlog
        account.update(daemon.endpoint("web/in"))
        return account["accepted"] - accepted_before >= sum(ends.values()) and bool(account["active"] == 0)

    try:
        eventually(ended, "every flow has ended")
    except AssertionError as late:
        flows = daemon.ask("GET", "/v1/connections")[1]
        raise AssertionError(f"{late}\nexpected {dict(ends)}; {account}; open: {flows[:3]}") from None
    closed = Counter(account["closed"]) - Counter(closed_before)
    del closed["told"]  # an edge asks the relay itself now and then
    left, unexpected = closed.copy(), {}
    for causes, count in ends.items():
        found = sum(left.pop(cause, 0) for cause in causes.split("|"))
        if found != count:
            unexpected[causes] = found
    assert (unexpected, left) == ({}, Counter()), f"expected {dict(ends)}, counted {dict(closed)}"
    assert account["accepted"] == sum(account["closed"].values())
    eventually(lambda: daemon.ask("GET", "/v1/connections") == (200, []), "no flow is open")
    assert list(daemon.events("bug")) == []


def make(name: str, daemons: Daemons) -> DataPath:
    """The data path called `name`. Raises ValueError for a name that none has."""
    match name:
        case "relay":
            return Relay(daemons, Layout("127.0.0.1", "web_IN_0", _alone))
        case "several":
            return Relay(daemons, Layout("127.0.0.1", "web_IN_0", _of_several))
        case "bare":
            return Relay(daemons, Layout(_EDGE_HOST, "edge_IN_0", _bare))
        case "edge":
            return Edge(daemons)
        case "direct":
            return Direct()
    raise ValueError(f"no data path is called {name!r}; write relay, several, bare, edge or direct in RELAY_DATA_PATHS")
