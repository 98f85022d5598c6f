"""Memory files, and memory that is given back or shared."""

import os
import re
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from relay.kernel import memory
from tests.harness import HANG_S


@pytest.mark.parametrize("content", [b"", b"a" * 300_000])
def test_it_is_read_whole_and_by_everybody(content: bytes) -> None:
    fd = memory.create("x", content)
    try:
        assert memory.read(fd) == memory.read(fd) == content
        assert os.lseek(fd, 0, os.SEEK_CUR) == len(content), "the offset is shared with others"
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def mapped_kib() -> int:
    """How much of files is mapped into this process now."""
    found = re.search(r"^RssFile:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_text_that_is_released_is_there_when_it_is_used() -> None:
    before_kib = mapped_kib()
    memory.release_text()
    assert mapped_kib() < before_kib
    assert ssl.create_default_context().get_ciphers(), "a library that is seldom used"


# How much a child has for itself that has asked what every process asks, by what its parent did before.
CHILD = """
import asyncio, collections, email.message, http.client, json, logging, os, re, sys, unittest.mock
from relay.kernel import memory

if sys.argv[1] == "shares":
    memory.share_with_children()
if not (pid := os.fork()):
    asyncio.iscoroutine([].append)
    asyncio.iscoroutine(logging.Logger("x").debug)
    collections.Counter(_ for _ in ())
    for each in list(vars(logging.Logger)) + list(vars(asyncio.Task)):
        getattr(logging.Logger, each, None), getattr(asyncio.Task, each, None), getattr(json.JSONDecoder, each, None)
    print(re.search(r"Private_Dirty: +(\\d+)", open("/proc/self/smaps_rollup").read())[1], flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""


def private_kib(how: str) -> int:
    command = [sys.executable, "-c", CHILD, how]
    return int(subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=True).stdout)


def test_a_child_copies_less_of_what_is_shared_with_it() -> None:
    assert private_kib("shares") < 0.9 * private_kib("does not")
