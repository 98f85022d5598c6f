"""What is said of workers by the ledger alone."""

from relay.ledger.layout import DaemonWord, Word
from relay.processes.standing import behind, unguarded
from tests.ledger.rig import new_ledger


def test_which_are_of_the_old_program_and_which_have_no_holder() -> None:
    with new_ledger(workers=3) as ledger:
        assert (behind(ledger), unguarded(ledger)) == ([], [])
        for n in range(2):
            ledger.worker(n)[Word.PID], ledger.worker(n)[Word.HOLDER_PID] = 20 + n, 10 + n
        assert (behind(ledger), unguarded(ledger)) == ([], []), "the third has yet to start"
        ledger.worker(0)[Word.HOLDER_PID] = 0
        ledger.words[DaemonWord.PROGRAM] = 1
        ledger.worker(2)[Word.PROGRAM] = 1
        assert (behind(ledger), unguarded(ledger)) == ([0, 1], [0])
