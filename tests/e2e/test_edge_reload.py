"""The set of instances changes under an edge that has connections open."""

import os
import signal
from contextlib import ExitStack
from typing import Any

from tests.conftest import Daemons
from tests.e2e.peers import next_worker
from tests.harness import Daemon, Echo, dial, eventually
from tests.ports import free_port

EDGE = "127.250.0.1"


def active(edge: Daemon) -> dict[str, int]:
    """Connections to each target."""
    return {each["target"]: each["active"] for each in edge.endpoint("web/in")["target_set"]}


def all_ended(edge: Daemon, *targets: str) -> None:
    """Wait until nobody is connected, nor to any of these, which are all: the target is counted after the endpoint."""

    def none() -> bool:
        return edge.endpoint("web/in")["active"] == 0 and active(edge) == dict.fromkeys(targets, 0)

    eventually(none, "all have ended")


def file(public: int, private: int, *instances: str) -> dict[str, Any]:
    """A service of these instances."""
    own = {"public_port": public, "port": private, "target": "127.0.0.1:1", "probe": {"interval": "1h"}}
    roles = {"web": {"instances": list(instances), "endpoints": {"in": {"type": "input", **own}}}}
    return {"version": 1, "service": "test", "edge": {"instances": [EDGE]}, "roles": roles}


def change(edge: Daemon, service: dict[str, Any]) -> None:
    """Reload."""
    edge.write_service(service)
    code, answer = edge.ask("POST", "/v1/reload")
    assert code == 200, answer


def test_a_connection_to_an_instance_that_left_is_counted_in_nobody_elses_place(daemons: Daemons) -> None:
    """Two reloads later a newcomer has the place that the other one had in the ledger."""
    public, private = free_port(EDGE), free_port("0.0.0.0")
    stays, leaves, comes = (f"127.1.0.{n}" for n in (1, 2, 3))
    with ExitStack() as stack:
        for host in (stays, leaves, comes):
            stack.enter_context(Echo((host, private)))
        edge = daemons(file(public, private, stays, leaves), {"workers": 1}, instance="edge_IN_0")
        clients = [stack.enter_context(dial(public, host=EDGE)) for _ in range(40)]
        eventually(lambda: sum(active(edge).values()) == 40, "all are connected")
        assert active(edge)[f"{leaves}:{private}"] > 0
        for instances in ((stays,), (stays, comes)):
            change(edge, file(public, private, *instances))
        assert active(edge)[f"{comes}:{private}"] == 0
        for client in clients:
            client.close()
        all_ended(edge, f"{stays}:{private}", f"{comes}:{private}")
        assert list(edge.events("bug")) == []


def test_connections_to_an_instance_that_left_and_came_back_are_not_counted_for_ever(daemons: Daemons) -> None:
    """The worker died meanwhile, and its successor knew the instance only by the records of these connections."""
    public, private = free_port(EDGE), free_port("0.0.0.0")
    stays, leaves = "127.1.0.1", "127.1.0.2"
    with ExitStack() as stack:
        for host in (stays, leaves):
            stack.enter_context(Echo((host, private)))
        edge = daemons(file(public, private, stays, leaves), {"workers": 1}, instance="edge_IN_0")
        clients = [stack.enter_context(dial(public, host=EDGE)) for _ in range(40)]
        eventually(lambda: sum(active(edge).values()) == 40, "all are connected")
        change(edge, file(public, private, stays))
        worker = edge.worker_pid()
        os.kill(worker, signal.SIGKILL)
        next_worker(edge, worker)
        change(edge, file(public, private, stays, leaves))
        for client in clients:
            client.close()
        all_ended(edge, f"{stays}:{private}", f"{leaves}:{private}")
