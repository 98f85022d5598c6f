"""Every message between relay's own processes (channel.py): who says it, to whom, and what comes of it.

    from     to       message                  descriptors     what comes of it
    control  keeper   listeners: where         sockets         it holds them
    control  worker   listeners: where         sockets         it keeps them for the snapshot that comes next
    control  keeper   snapshot: number         a memory file   it holds by it, closes what is of no use, says `holds`
    control  worker   snapshot: number         a memory file   it works by it, and says `applied`
    control  keeper   serves: what             a socket        it holds that in place of the one before
    control  keeper   reloading                                systemd is told
    control  keeper   ready: text, unserved                    systemd is told, with that text; at the start, where a
                                                               declared address has no socket, the daemon ends
    control  keeper   status: text                             systemd is told that text, and no more
    control  worker   busy                                     it tells the machines that hold a line (dataplane/line.py)
    control  keeper   upgrade                  the trial's     it becomes the new program (processes/handover.py)
    keeper   control  reload, upgrade                          control does it: a signal asked for it
    keeper   control  holds                                    the next reload finds no port in use
    keeper   control  failed: text                             why an upgrade does not go on; empty: it does after all
    control  keeper   reload                                   the control that takes this one's place is told to
    worker   control  ready: worker, number                    it works for the first time; an old number is sent again
    worker   control  applied: worker, number                  the reload has its answer

What a holder and its successor say to each other is in processes/succession.py. Numbers that others look at stand in
the ledger: a message only wakes them. Old and new processes talk in an upgrade, so these forms are handed down with
`handover.FORMAT`.
"""

from collections.abc import Sequence
from typing import Any, Final

LISTENERS: Final = "listeners"
SNAPSHOT: Final = "snapshot"
SERVES: Final = "serves"
RELOADING: Final = "reloading"
READY: Final = "ready"
STATUS: Final = "status"
UPGRADE: Final = "upgrade"
RELOAD: Final = "reload"
HOLDS: Final = "holds"
APPLIED: Final = "applied"
FAILED: Final = "failed"
BUSY: Final = "busy"  # whether this instance is, says the ledger. A worker that does not know it goes by no line either

Message = dict[str, Any]


def kind_of(message: Message) -> str:
    """Which of these it is. A message of another version may be none: empty."""
    return str(message.get("op", ""))


def plain(kind: str) -> Message:
    """A message that says no more than its kind."""
    return {"op": kind}


def listeners(addresses: Sequence[str]) -> Message:
    """Listening sockets, as many as descriptors with it and in that order; each by its `host:port`."""
    return {"op": LISTENERS, "addresses": list(addresses)}


def snapshot(generation: int) -> Message:
    """The snapshot of that number, in the memory file with it."""
    return {"op": SNAPSHOT, "generation": generation}


def serves(what: str) -> Message:
    """The socket of what control serves beside the endpoints, such as `admin`, made anew."""
    return {"op": SERVES, "what": what}


def ready(status: str, unserved: str = "") -> Message:
    """All workers are at work; `status` is for `systemctl status`. `unserved`: why this is no start, if it is one."""
    return {"op": READY, "status": status, "unserved": unserved}


def status(text: str) -> Message:
    """Not all workers are at work, and `systemctl status` says why."""
    return {"op": STATUS, "status": text}


def failed(why: str) -> Message:
    """An upgrade does not go on, and why; nothing: it does after all."""
    return {"op": FAILED, "message": why}


def works(worker: int, kind: str, generation: int) -> Message:
    """That worker works by that snapshot: READY the first time, then APPLIED."""
    return {"worker": worker, "op": kind, "generation": generation}
