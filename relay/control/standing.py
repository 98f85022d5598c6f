"""What control tells the keeper, and through it systemd: how things stand, in one line."""

from typing import Final

from relay.config.snapshot import Snapshot
from relay.control.status import unguarded_text
from relay.control.troubles import troubles, unserved
from relay.kernel import messages
from relay.ledger.layout import DaemonWord
from relay.ledger.ledger import Ledger

STEADY_S: Final = 10.0  # a control that has lived for so long did not end at its start


def standing(
    ledger: Ledger, snapshot: Snapshot, control_crashes: int, upgrade: str, *, starting: bool
) -> messages.Message:
    """The message. `upgrade`: what there is to say of one.

    `starting`: not all workers work by the snapshot yet; then there may be nothing to say: no status.
    """
    wrong = troubles(ledger, snapshot.generation, control_crashes)
    if starting:
        return messages.status("; ".join(wrong))
    text = f"{snapshot.instance}: {len(snapshot.endpoints)} endpoints open, generation {snapshot.generation}"
    if not ledger.words[DaemonWord.RELOAD_OK]:
        text += "; the last reload failed, the former configuration stands"
    text = "; ".join((text, *wrong)) + upgrade + unguarded_text(ledger)
    return messages.ready(text, unserved(ledger, snapshot.generation))
