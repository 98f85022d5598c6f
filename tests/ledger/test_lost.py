"""What a record says of descriptors when their table is gone."""

from relay.ledger.layout import State, Word
from relay.ledger.ledger import NO_PIPE, Ledger, owner_of
from relay.ledger.lost import cross_out
from tests.ledger.rig import begin


def test_no_descriptor_is_named_any_more_and_all_else_stays(ledger: Ledger) -> None:
    part, other = ledger.worker(1), ledger.worker(0)
    for each in (part, other):
        begin(each, 0)
        begin(each, 3, "192.0.2.1:6")
        each.advance(3, State.SPLICE, 50)
        each.hold(3, 0, (60, 61))
        each.hold(3, 1, (62, 63))
        each.moved(3, 7, 8)
        each.aim(3, 5)
    part[Word.SCRATCH_R], part[Word.SCRATCH_W], part[Word.SNAPSHOT_FD] = 70, 71, 72
    part[Word.SCRATCH_OWNER] = owner_of(3, 1)
    untouched, before = list(other.flows()), list(part.flows())
    cross_out(part)
    for record in before:
        record.client_fd = record.target_fd = -1
        record.up_pipe = record.down_pipe = NO_PIPE
    assert (list(part.flows()), list(other.flows())) == (before, untouched)
    words = (Word.SCRATCH_R, Word.SCRATCH_W, Word.SCRATCH_OWNER, Word.SNAPSHOT_FD)
    assert [part[word] for word in words] == [0, 0, 0, 0]
