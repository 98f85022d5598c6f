"""What is wrong with relay's own processes, in words: for `relay status`, systemd and the log. From the ledger alone."""

from relay.ledger.layout import Word
from relay.ledger.ledger import Ledger
from relay.processes.child import CRASHES_SAID


def unserved(ledger: Ledger, generation: int) -> str:
    """Which workers lack a socket for a declared address, of those that work by that snapshot; empty: none."""
    parts = [ledger.worker(n) for n in range(ledger.workers)]
    lacking = [part for part in parts if part[Word.GENERATION] >= generation and part[Word.UNSERVED]]
    if not lacking:
        return ""
    which = ", ".join(f"worker-{part.index} for {part[Word.UNSERVED]}" for part in lacking)
    why = "the log says which (`no socket for`); raise LimitNOFILE= of the unit if descriptors ran out, or report it"
    return f"there is no socket for a declared address: {which}; {why}"


def troubles(ledger: Ledger, generation: int, control_crashes: int) -> list[str]:
    """All of it, a sentence each. `control_crashes`: times in a row that control has ended at its start."""
    crashes = [(f"worker-{n}", ledger.worker(n)[Word.CRASHES]) for n in range(ledger.workers)]
    looping = [
        f"{name} ends at its start, {count} times in a row, and is started again ever later: the log says why (`crash`)"
        for name, count in (*crashes, ("control", control_crashes))
        if count >= CRASHES_SAID
    ]
    lost = unserved(ledger, generation)
    return [*looping, *([lost] if lost else [])]
