"""Memory files."""

import os

import pytest

from relay.kernel import memory


@pytest.mark.parametrize("content", [b"", b"a" * 300_000])
def test_it_is_read_whole_and_by_everybody(content: bytes) -> None:
    fd = memory.create("x", content)
    try:
        assert memory.read(fd) == memory.read(fd) == content
        assert os.lseek(fd, 0, os.SEEK_CUR) == len(content), "the offset is shared with others"
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)
