"""What a worker begins with. The tests of the worker begin with all of it."""

from relay.dataplane.inherits import NOFILE_PER_FLOW, NOFILE_RESERVED, flows_max


def test_flows_max() -> None:
    assert flows_max(NOFILE_RESERVED + 100 * NOFILE_PER_FLOW) == 100
    assert flows_max(0) == flows_max(NOFILE_RESERVED) == 1
