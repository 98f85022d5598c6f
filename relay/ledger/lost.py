"""A descriptor table that is gone with its holder: what the ledger says of its descriptors is true no more.

Their numbers mean something else in the next table, a listening socket for one. Not what became of the connections: they
have all ended, and are still to be counted.
"""

from typing import Final

from relay.ledger.layout import RECORD_BYTES, WORD_BYTES, Word
from relay.ledger.ledger import WorkerLedger

_RECORD_WORDS: Final = RECORD_BYTES // WORD_BYTES
_NONE: Final = (1 << 64) - 1  # two integers, each -1: no descriptor
_DESCRIPTORS: Final = (1, 2, 3)  # words of a record: client and target, the ends of the one pipe, and of the other


def cross_out(part: WorkerLedger) -> None:
    """Have no record of this worker's name a descriptor. Cut off in the midst, it is done again: nobody works meanwhile."""
    for word in (Word.SCRATCH_OWNER, Word.SCRATCH_R, Word.SCRATCH_W, Word.SNAPSHOT_FD):
        part[word] = 0
    for record in part.flows():
        for word in _DESCRIPTORS:
            part.words[part.records_at + record.index * _RECORD_WORDS + word] = _NONE
