"""How the workers stand, by what the ledger says: of which program they are, and whether they have a holder."""

from relay.ledger.layout import DaemonWord, Word
from relay.ledger.ledger import Ledger


def behind(ledger: Ledger) -> list[int]:
    """Workers that still run in the program that was replaced, or are just being started in the new one."""
    program = ledger.words[DaemonWord.PROGRAM]
    return [n for n in range(ledger.workers) if ledger.worker(n)[Word.PROGRAM] != program]


def unguarded(ledger: Ledger) -> list[int]:
    """Workers whose holder is dead. They work on, but their own death would end their connections."""
    parts = [ledger.worker(n) for n in range(ledger.workers)]
    return [n for n, part in enumerate(parts) if part[Word.PID] and not part[Word.HOLDER_PID]]
