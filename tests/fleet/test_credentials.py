"""What etcd knows this machine by: read again when it is needed; what cannot be read holds up nobody."""

import asyncio
import os
import shutil
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relay.config.settings import Registry
from relay.errors import OperatorError
from relay.fleet import credentials
from relay.fleet.credentials import Credentials, Kept
from relay.fleet.gateway import Refused
from tests.fleet.etcds import certificates, settings
from tests.harness import HANG_S

pytestmark = pytest.mark.real("openssl")


class Script:
    """What files say: a text, a fault, or nothing as long as the gate is closed."""

    def __init__(self) -> None:
        self.says: str | Exception = "one"
        self.gate = threading.Event()
        self.gate.set()
        self.reads = 0

    def load(self) -> str:
        self.reads += 1
        self.gate.wait(HANG_S)
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


@pytest.fixture
def script() -> Iterator[Script]:
    made = Script()
    yield made
    made.gate.set()  # or its thread would outlast the test


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read is given up soon."""
    monkeypatch.setattr(credentials, "_READ_S", 0.05)


async def test_what_files_say_now_and_said_last(script: Script) -> None:
    kept = Kept("a file", script.load)
    script.says = OperatorError("cannot read it")
    with pytest.raises(Refused, match="cannot read it"):
        await kept.get()
    assert kept.complaint == ""
    script.says = "one"
    assert await kept.get() == "one"
    script.says = OperatorError("cannot read it")
    assert (await kept.get(), kept.complaint) == ("one", "cannot read it; what could be read last is used")
    script.says = "two"
    assert (await kept.get(), kept.complaint) == ("two", "")


@pytest.mark.usefixtures("hasty")
async def test_a_read_that_does_not_end_is_made_once_and_waited_for_once(script: Script) -> None:
    kept = Kept("a file", script.load)
    assert await kept.get() == "one"
    script.gate.clear()
    for _ in range(50):
        async with asyncio.timeout(HANG_S):
            assert await kept.get() == "one"
    assert script.reads == 2
    assert kept.complaint.startswith("reading a file does not come to an end; ")
    script.says = "two"
    script.gate.set()
    async with asyncio.timeout(HANG_S):
        while await kept.get() == "one":  # noqa: ASYNC110  # a thread ends
            await asyncio.sleep(0.001)
    assert kept.complaint == ""


@pytest.mark.usefixtures("hasty")
async def test_a_first_read_that_does_not_end_refuses_each_who_asks(script: Script) -> None:
    script.gate.clear()
    kept = Kept("a file", script.load)
    for _ in range(3):
        with pytest.raises(Refused, match="reading a file does not come to an end"):
            await kept.get()


async def test_those_who_ask_at_the_same_time_wait_for_one_read(script: Script) -> None:
    kept = Kept("a file", script.load)
    script.gate.clear()
    asking = [asyncio.ensure_future(kept.get()) for _ in range(5)]
    await asyncio.sleep(0)
    asking[0].cancel()
    script.gate.set()
    assert await asyncio.gather(*asking[1:]) == ["one"] * 4
    assert script.reads == 1


async def test_a_mistake_of_ours_is_seen(script: Script) -> None:
    script.says = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        await Kept("a file", script.load).get()


def of(directory: Path, url: str, **keys: str) -> Credentials:
    registry = settings(directory, [url], **keys).registry
    assert isinstance(registry, Registry)
    return Credentials.of(registry)


def fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_text("secret\r\nmore\n"), ""),
        (lambda path: path.write_text("\n"), "no password on the first line of"),
        (lambda path: path.write_bytes(b"\xff\n"), "no password on the first line of"),
        (fifo, "is a pipe, not a file; check `password_file`"),
        (lambda path: path.mkdir(), "is a directory, not a file; check `password_file`"),
        (lambda _: None, "no such file; check `password_file`"),
    ],
)
async def test_the_password_is_the_first_line(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    path = tmp_path / "password"
    make(path)
    found = of(tmp_path, "http://127.0.0.1:1", username="relay", password_file=str(path))
    async with asyncio.timeout(HANG_S):
        if said:
            with pytest.raises(Refused, match=said):
                await found.password()
        else:
            assert (found.username, await found.password()) == ("relay", "secret")


async def test_where_nobody_is_asked_nothing_is_read(tmp_path: Path) -> None:
    found = of(tmp_path, "http://127.0.0.1:1", ca="/nowhere")
    assert (found.username, await found.password(), await found.tls(), found.complaint) == ("", "", True, "")


async def test_a_tls_context_is_made_anew_when_a_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, make = certificates(tmp_path / "tls"), ssl.create_default_context
    contexts: list[ssl.SSLContext] = []

    def counted(**keys: str) -> ssl.SSLContext:
        contexts.append(make(**keys))  # type: ignore[arg-type]
        return contexts[-1]

    monkeypatch.setattr(ssl, "create_default_context", counted)
    key, cert = tmp_path / "key", tmp_path / "cert"
    shutil.copy(made["client.key"], key)
    shutil.copy(made["client.pem"], cert)
    found = of(tmp_path, "https://127.0.0.1:1", ca=made["ca.pem"], cert=str(cert), key=str(key))
    first = await found.tls()
    assert await found.tls() is first
    shutil.copy(made["server.key"], key)  # the first of two files that are replaced
    for _ in range(3):
        assert await found.tls() is first
    assert found.complaint.startswith(f"etcd's certificates ({made['ca.pem']}, {cert}, {key}) cannot be used: ")
    assert len(contexts) == 2, "what does not fit is tried once"
    shutil.copy(made["server.pem"], cert)
    second = await found.tls()
    assert (second is contexts[2], found.complaint) == (True, "")
    key.unlink()
    assert await found.tls() is second
    assert found.complaint == f"cannot read {key}: no such file; check `key`; what could be read last is used"
    fifo(key)
    assert await found.tls() is second
    assert found.complaint.startswith(f"cannot read {key}: it is no ordinary file; check `key`")
    assert len(contexts) == 3


async def test_certificates_that_were_never_of_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"cannot read /nowhere: no such file; check `ca`"):
        await of(tmp_path, "https://127.0.0.1:1", ca="/nowhere").tls()
