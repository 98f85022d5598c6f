"""An ordinary user has so many pipe pages and no more (pipe(7), pipe-user-pages-soft). Past that, no flow fails."""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Final

import pytest

from tests.conformance.paths import assert_accounts
from tests.conformance.peers import Site, Target, connect, fin, together, want_descriptors
from tests.conformance.streams import KIB, receive_exactly, stream
from tests.conftest import Daemons
from tests.dataplane.unprivileged import NOBODY, as_nobody
from tests.harness import Daemon, eventually, one_endpoint
from tests.ports import free_port

FLOWS: Final = 1_500
# A Unix socket that nobody reads takes 208 KiB (net.core.wmem_default); what is beyond that stands in a pipe.
SIZE_BYTES: Final = 288 * KIB


@pytest.mark.alone
@pytest.mark.real("setpriv")
def test_1500_busy_flows_without_privileges(daemons: Daemons, tmp_path: Path) -> None:
    """Each is stalled with a pipe of its own. When the readers go on, each gets its own bytes, every one of them."""
    with (
        want_descriptors(3 * FLOWS),
        Target(Site.within(tmp_path), "unix") as target,
        contextlib.ExitStack() as stack,
        together() as pool,
    ):
        assert isinstance(target.address, str)
        Path(target.address).chmod(0o777)
        port = free_port()
        daemon = daemons.make(one_endpoint(port, f"unix:{target.address}"), wrapper=as_nobody())
        if os.getuid() == 0:
            os.chown(daemon.directory, NOBODY, NOBODY)
        daemon.start()
        assert os.stat(f"/proc/{daemon.worker_pid()}").st_uid != 0
        clients = []
        for number in range(FLOWS):
            client = stack.enter_context(connect(("127.0.0.1", port)))
            client.sendall(number.to_bytes(4))
            client.sendall(stream(number).head(SIZE_BYTES))
            fin(client)
            clients.append(client)
        eventually(lambda: over_workers(daemon, "pipes") >= FLOWS, "every flow holds a pipe")
        assert over_workers(daemon, "pipes_degraded") > 0
        assert over_workers(daemon, "pipes_refused") == 0
        served = sorted(pool.map(lambda _: serve(target), range(FLOWS)))
        assert served == [(number, True) for number in range(FLOWS)]
        assert all(client.recv(8) == b"ok" and client.recv(1) == b"" for client in clients)
    assert_accounts(daemon, {"client_fin": FLOWS})


def over_workers(daemon: Daemon, count: str) -> int:
    """One of the workers' counts, summed."""
    return sum(int(worker[count]) for worker in daemon.status()["workers"])


def serve(target: Target) -> tuple[int, bool]:
    """Read one flow to its end and answer: (its number, whether its bytes are right)."""
    with target.accept() as served:
        number = int.from_bytes(receive_exactly(served, 4))
        data = receive_exactly(served, SIZE_BYTES)
        ended = served.recv(1) == b""
        served.sendall(b"ok")
    return number, ended and hashlib.sha256(data).hexdigest() == stream(number).sha256(SIZE_BYTES)
