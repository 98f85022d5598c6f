"""What control hands to keeper and workers, beside what it hears from them."""

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

from relay.control.delivery import Delivery
from relay.kernel import channel, messages
from relay.ledger.layout import DaemonWord, Word
from tests.config.rig import compiled
from tests.ledger.rig import new_ledger


async def test_no_snapshot_overtakes_its_sockets() -> None:
    """A worker that comes up in that moment has the snapshot before; what it says is heard before it is its turn."""
    snapshot = compiled("web_IN_0")
    keeper, worker = channel.pair(), channel.pair()
    with new_ledger() as ledger, keeper[0], keeper[1], worker[0], worker[1], socket.create_server(("", 0)) as opened:
        delivery = Delivery(keeper[0], (worker[0],), ledger, cast(Any, SimpleNamespace()))
        parcel = await delivery.pack(snapshot, {"127.0.0.1:80": opened})
        ready = messages.works(0, messages.READY, snapshot.generation - 1)
        asyncio.get_running_loop().call_soon(delivery.heard, worker[0], ready, snapshot)
        ledger.words[DaemonWord.GENERATION] = ledger.worker(0)[Word.GENERATION] = snapshot.generation
        assert await delivery.deliver(parcel) == []
        kinds = []
        while (received := channel.receive(worker[1])) is not None:
            kinds.append(messages.kind_of(received[0]))
            for fd in received[1]:
                socket.close(fd)
        assert kinds == [messages.LISTENERS, messages.SNAPSHOT]
        delivery.heard(worker[0], ready, snapshot)
        received = channel.receive(worker[1])
        assert received is not None
        assert messages.kind_of(received[0]) == messages.SNAPSHOT, "it has lost it"
        for fd in received[1]:
            socket.close(fd)
