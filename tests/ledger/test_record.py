"""A client in its record: as text, or packed with what it connected to, of one whom an edge has named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.address import Address, host_text
from relay.ledger import record
from relay.ledger.layout import RECORD_BYTES, Flag, State
from relay.ledger.ledger import Ledger
from tests.ledger.rig import begin, new_ledger

ADDRESS = st.builds(
    Address,
    st.builds(host_text, st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)),
    st.integers(0, 65535),
)


@given(ADDRESS, ADDRESS)
def test_who_is_named_is_read_as_it_was(peer: Address, came_to: Address) -> None:
    """Of whichever families, also of two: the peer is the same text for its readers as ever."""
    with new_ledger() as ledger:
        part = ledger.worker(0)
        begin(part, 3, peer="[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535")
        part.identify(3, record.by_ends(peer.packed, peer.port, came_to.packed, came_to.port), Flag.ASKS_TAKEN)
        [flow] = ledger.flows()
        assert (flow.peer, flow.came_to, flow.flags) == (str(peer), came_to, Flag.ASKS_TAKEN)
        assert (flow.index, flow.state, flow.slot, flow.client_fd) == (3, State.DIAL, 3, 43)
        part.identify(3, record.by_text(str(peer)), 0)
        [flow] = ledger.flows()
        assert (flow.peer, flow.came_to) == (str(peer), None)


@pytest.mark.parametrize("peer", ["192.0.2.1:5", "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff%interface]:65535"])
def test_what_a_program_before_wrote(peer: str, ledger: Ledger) -> None:
    """The text of the peer, and nothing else, in the same layout."""
    begin(ledger.worker(0), 0, peer="192.0.2.99:9999")
    at = ledger.worker(0).records_at * 8 + record.CLIENT_AT
    ledger._memory[at : at + record.CLIENT_BYTES] = peer.encode().ljust(record.CLIENT_BYTES, b"\0")
    [flow] = ledger.flows()
    assert (flow.peer, flow.came_to) == (peer, None)


def test_neighbours_are_left_alone(ledger: Ledger) -> None:
    part = ledger.worker(0)
    for index in range(3):
        begin(part, index, peer=f"192.0.2.{index}:1")
    peer, came_to = Address("2001:db8::1", 2), Address("192.0.2.9", 80)
    part.identify(1, record.by_ends(peer.packed, peer.port, came_to.packed, came_to.port), Flag.PROBE)
    assert [flow.peer for flow in ledger.flows()] == ["192.0.2.0:1", "[2001:db8::1]:2", "192.0.2.2:1"]
    assert record.CLIENT_AT + record.CLIENT_BYTES == RECORD_BYTES


def test_no_record_is_read_where_there_is_no_flow(ledger: Ledger) -> None:
    at = ledger.worker(0).records_at * 8
    assert record.read(ledger._memory, at, 0, 0) is None
