"""The ports that tests are given: each once, whoever else runs tests."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests import ports
from tests.ports import Block, free_port, free_ports


@pytest.fixture
def block(monkeypatch: pytest.MonkeyPatch) -> Iterator[Block]:
    """A small one within this process's own, so that its end comes soon. It begins where no other one does."""
    first = free_ports(9) + 1
    for name, value in (("_FIRST", first), ("_END", first + 8), ("_BLOCK", 8)):
        monkeypatch.setattr(ports, name, value)
    made = Block()
    with made.claim:
        yield made


def holding(stack: contextlib.ExitStack, *taken: int) -> None:
    """Listen on these."""
    for port in taken:
        stack.enter_context(socket.create_server(("127.0.0.1", port)))


def test_one_after_the_other_and_round(block: Block) -> None:
    given = [block.take(count, "127.0.0.1") for count in (1, 2, 3, 1, 1)]
    first = given[0]
    assert given == [first, first + 1, first + 3, first + 6, first + 7]
    assert block.take(1, "127.0.0.1") == first
    assert block.take(7, "127.0.0.1") == first + 1
    assert block.take(2, "::1") == first, "a row is not cut in two by the end"


def test_what_is_in_use_is_left_out_however_it_is_scattered(block: Block) -> None:
    first = block.take(1, "127.0.0.1")
    with contextlib.ExitStack() as stack:
        holding(stack, first + 1, first + 4)
        assert block.take(2, "127.0.0.1") == first + 2
        assert block.take(3, "127.0.0.1") == first + 5
        with pytest.raises(AssertionError, match=f"not 4 free ports in a row from {first} to {first + 7}"):
            block.take(4, "127.0.0.1")
    assert block.take(4, "127.0.0.1") == first


def test_more_than_a_block_has(block: Block) -> None:
    with pytest.raises(AssertionError, match="not 9 free ports in a row"):
        block.take(9, "127.0.0.1")


def test_each_process_has_its_own() -> None:
    program = "from tests.ports import free_port; print(free_port(), flush=True); input()"
    mine = {free_port() for _ in range(20)}
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            other = subprocess.Popen(
                [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.enter_context(other)
            stack.callback(other.kill)
            assert other.stdout is not None
            mine.add(int(other.stdout.readline()))
    assert len({(port - ports._FIRST) // ports._BLOCK for port in mine}) == 4
    assert len(mine) == 23
