"""What `relay status` says: ledger and snapshot as one plain value. Reads shared memory, asks nobody."""

import os
import time
from collections.abc import Sequence
from typing import Final, Literal

from typing_extensions import TypedDict

from relay import ENGINE, __version__
from relay.config.snapshot import EndpointRow, Snapshot, TargetRow
from relay.control import answers, done
from relay.control.faults import reason_of
from relay.control.holds import hold_for_s
from relay.control.senders import NOBODY, ToldStatus
from relay.control.source_status import SourceStatus
from relay.control.troubles import troubles
from relay.ledger import clocks
from relay.ledger.layout import (
    CAUSES,
    ENVELOPE_REASONS,
    REASONS,
    STATE_NAMES,
    Count,
    DaemonWord,
    Health,
    State,
    TargetCount,
    Word,
)
from relay.ledger.ledger import Ledger, WorkerLedger
from relay.processes.standing import behind, unguarded
from relay.targets import health
from relay.targets.health import TargetHealth

_HEALTH: Final[dict[int, Literal["unknown", "up", "down"]]] = {
    Health.UNKNOWN: "unknown",
    Health.UP: "up",
    Health.DOWN: "down",
}


def status(
    ledger: Ledger,
    snapshot: Snapshot,
    keeper_pid: int,
    program: int,
    registry: answers.RegistryStatus | None = None,
    told: ToldStatus = NOBODY,
    upgrade_failed: str = "",
    *,
    control_crashes: int = 0,
    sources: Sequence[SourceStatus] = (),
) -> answers.Status:
    """The answer to `GET /v1/status`. `told`: whom `relay drain` tells. `control_crashes`: how often in a row it ended.

    `upgrade_failed`: why the last one has not come to its end.

    `program` is the one in which this process runs. Until a control that was replaced has ended it may still be asked, and
    the version that it tells is its own.
    """
    words = ledger.words
    return {
        "version": __version__,
        "engine": "compiled" if ENGINE.compiled else "interpreted",
        "engine_reason": ENGINE.reason,
        "service": snapshot.service,
        "instance": snapshot.instance,
        "generation": snapshot.generation,
        "uptime_s": round((clocks.age_ns(words, DaemonWord.STARTED_MONOTONIC_NS) or 0) / 1e9, 3),
        "keeper": {"pid": keeper_pid},
        "program": words[DaemonWord.PROGRAM],
        "upgrading": program != words[DaemonWord.PROGRAM] or bool(behind(ledger)),
        "upgrade_failed": upgrade_failed,
        "draining": is_draining(ledger),
        "control": {
            "pid": os.getpid(),
            "restarts": words[DaemonWord.CONTROL_RESTARTS],
            "crashes_in_a_row": control_crashes,
        },
        "workers": [_worker(ledger, snapshot, n) for n in range(ledger.workers)],
        "worker_restarts": worker_restarts(ledger),
        "hung": words[DaemonWord.HUNG],
        "troubles": troubles(ledger, snapshot.generation, control_crashes),
        "busy_for_s": busy_for_s(ledger),
        **told,
        "reload": {
            "last_successful": bool(words[DaemonWord.RELOAD_OK]),
            "last_success_timestamp": words[DaemonWord.RELOAD_OK_AT_NS] / 1e9,
            "failed": words[DaemonWord.RELOADS_FAILED],
        },
        "registry": registry,
        "sources": list(sources),
        "endpoints": [endpoint(ledger, row) for row in snapshot.endpoints],
    }


def endpoint(ledger: Ledger, row: EndpointRow) -> answers.EndpointStatus:
    """One endpoint's part of the status."""
    slot = row.slot
    return {
        "name": row.name,
        "type": row.type,
        "protocol": row.protocol,
        "listen": row.listen,
        "leads_to": row.leads_to,
        "distribution": row.distribution,
        "targets": [target.text for target in row.targets],
        "target_set": [target_status(ledger, row, target) for target in row.targets] if row.distribution else [],
        **_target_of(ledger, row),
        "active": ledger.active(slot),
        "held": ledger.total(slot, Count.HELD),
        "hold_for_s": hold_for_s(ledger, row),
        "accepted": ledger.total(slot, Count.ACCEPTED),
        "denied": _nonzero(ledger, slot, Count.DENIED, REASONS),
        "enforce": row.enforce,
        "deny": row.deny,
        "would_deny": _nonzero(ledger, slot, Count.WOULD_DENY, ENVELOPE_REASONS),
        "closed": _nonzero(ledger, slot, Count.CLOSED, CAUSES),
        "received_bytes": ledger.total(slot, Count.RECEIVED),
        "sent_bytes": ledger.total(slot, Count.SENT),
        "connect_failures": ledger.total(slot, Count.CONNECT_FAILURES),
    }


class _Target(TypedDict):
    """How an endpoint's target is: a part of `EndpointStatus`."""

    target_up: bool | None
    target_reason: str
    target_since_s: float | None
    target_looked_s: float | None
    target_looked: answers.Looked


def _target_of(ledger: Ledger, row: EndpointRow) -> _Target:
    """How the target is; of several, whether one of them is up."""
    if row.distribution is None:
        found = health.of_endpoint(ledger, row)
        states, reason = {found.health}, reason_of(row, None, found)
    else:
        found, reason = TargetHealth(), ""
        states = {health.of_target(ledger, row, target).health for target in row.targets}
    up = True if Health.UP in states else False if states == {Health.DOWN} else None
    since_s, looked_s, looked = _ages(found)
    return {
        "target_up": up,
        "target_reason": reason,
        "target_since_s": since_s,
        "target_looked_s": looked_s,
        "target_looked": looked,
    }


def _ages(found: TargetHealth) -> tuple[float | None, float | None, answers.Looked]:
    """For how long it has been so, how long ago that was found last, and by what."""
    now_ns = time.monotonic_ns()
    since_s, looked_s = (
        round(max(0, now_ns - at_ns) / 1e9, 3) if at_ns else None for at_ns in (found.since_ns, found.looked_ns)
    )
    return since_s, looked_s, None if looked_s is None else "dialled" if found.dialled else "probed"


def target_status(ledger: Ledger, row: EndpointRow, target: TargetRow) -> answers.TargetStatus:
    """One of several targets of an endpoint: how it is, and what this machine's connections met."""
    now_ns = time.monotonic_ns()
    found = health.of_target(ledger, row, target)
    since_s, looked_s, looked = _ages(found)
    rows = ledger.worker(0).target_counts_at(target.slot)
    ejected_ns = max(ledger.words[row + TargetCount.EJECTED_UNTIL_NS] for row in rows) - now_ns
    connected = ledger.target_total(target.slot, TargetCount.CONNECTED)
    took_ns = ledger.target_total(target.slot, TargetCount.CONNECT_SUM_NS)
    return {
        "target": target.text,
        "instance": target.instance,
        "health": _HEALTH[found.health],
        "reason": reason_of(row, target, found),
        "since_s": since_s,
        "looked_s": looked_s,
        "looked": looked,
        "active": ledger.target_total(target.slot, TargetCount.ACTIVE),
        "connected": connected,
        "failures": ledger.target_total(target.slot, TargetCount.FAILURES),
        "ejections": ledger.target_total(target.slot, TargetCount.EJECTIONS),
        "retries": ledger.target_total(target.slot, TargetCount.RETRIES),
        "ejected_for_s": round(max(0, ejected_ns) / 1e9, 3),
        "mean_connect_s": round(took_ns / 1e9 / connected, 6) if connected else None,
        "weight": target.weight,
        "declared_weight": target.declared_weight,
        "share": health.share_of(ledger, row, target) / health.STEPS,
        "backup": target.backup,
    }


def unguarded_text(ledger: Ledger) -> str:
    """What systemd is told of workers whose holder is dead; empty: there are none."""
    which = ", ".join(f"worker {n}" for n in unguarded(ledger))
    return f"; if {which} dies, its connections will: see `relay status`" if which else ""


def is_busy(ledger: Ledger) -> bool:
    """Whether this instance asks for no new connections (`relay drain`)."""
    return clocks.busy_left_ns(ledger.words, time.monotonic_ns()) > 0


def is_draining(ledger: Ledger) -> bool:
    """Whether the daemon is stopping: no connection is accepted, and those that are open may end."""
    return bool(ledger.words[DaemonWord.DRAIN_UNTIL_NS])


def busy_for_s(ledger: Ledger) -> float:
    """For how long it still does."""
    return round(clocks.busy_left_ns(ledger.words, time.monotonic_ns()) / 1e9, 3)


def busy(ledger: Ledger, snapshot: Snapshot, whom: ToldStatus = NOBODY, *, told: bool) -> done.Busy:
    """The answer to `POST /v1/drain`. `whom` it tells; `told`: the registry is."""
    return {
        **whom,
        "busy_for_s": busy_for_s(ledger),
        "behind_edge": [row.name for row in snapshot.endpoints if row.edges],
        "active": sum(ledger.active(row.slot) for row in snapshot.endpoints),
        "told": told,
    }


def connections(ledger: Ledger, snapshot: Snapshot) -> list[answers.Connection]:
    """The answer to `GET /v1/connections`: every open one."""
    names = {row.slot: row.name for row in snapshot.endpoints}
    now_ns = time.monotonic_ns()
    return [
        {
            "endpoint": names.get(flow.slot, "?"),
            "peer": flow.peer,
            "state": STATE_NAMES[flow.state],
            "age_s": round((now_ns - flow.started_ns) / 1e9, 3),
            "received_bytes": flow.received_bytes,
            "sent_bytes": flow.sent_bytes,
            "worker": flow.worker,
        }
        for flow in ledger.flows()
        if flow.state not in (State.END, State.LINE)  # counted as closed already
    ]


def worker_restarts(ledger: Ledger) -> int:
    """Times a worker was started again, by its holder or with a new one."""
    return ledger.words[DaemonWord.HOLDER_RESTARTS] + sum(
        ledger.worker(n)[Word.RESTARTS] for n in range(ledger.workers)
    )


def worker_connections(ledger: Ledger, snapshot: Snapshot, n: int) -> int:
    """Connections that are open now at worker `n`."""
    part = ledger.worker(n)
    return sum(ledger.words[part.counts_at(row.slot) + Count.ACTIVE] for row in snapshot.endpoints)


def survives_crash(part: WorkerLedger) -> bool:
    """Whether a worker's connections would outlive it. Not where its holder is dead, or the kernel shares no descriptors."""
    return not part[Word.UNSHARED] and bool(part[Word.HOLDER_PID] or not part[Word.PID])


def _worker(ledger: Ledger, snapshot: Snapshot, n: int) -> answers.WorkerStatus:
    part = ledger.worker(n)
    return {
        "pid": part[Word.PID],
        "holder_pid": part[Word.HOLDER_PID],
        "survives_crash": survives_crash(part),
        "restarts": part[Word.RESTARTS],
        "crashes_in_a_row": part[Word.CRASHES],
        "hung": part[Word.HUNG],
        "unserved": part[Word.UNSERVED],
        "connections": worker_connections(ledger, snapshot, n),
        "flows_adopted": part[Word.FLOWS_ADOPTED],
        "generation": part[Word.GENERATION],
        "heartbeat_age_s": round((time.monotonic_ns() - part[Word.HEARTBEAT_NS]) / 1e9, 3),
        "accept_pauses": part[Word.ACCEPT_PAUSES],
        "pipes": part[Word.PIPES],
        "pipes_degraded": part[Word.PIPES_DEGRADED],
        "pipes_refused": part[Word.PIPES_REFUSED],
        "log_lines_dropped": part[Word.LOG_DROPPED],
    }


def _nonzero(ledger: Ledger, slot: int, first: int, names: tuple[str, ...]) -> dict[str, int]:
    counts = {name: ledger.total(slot, first + n) for n, name in enumerate(names)}
    return {name: count for name, count in counts.items() if count}
