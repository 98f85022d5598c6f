"""What this machine's own files say of names: whom to ask, and what comes before asking."""

import asyncio
import os
import time
from pathlib import Path

import dns.name
import pytest

from relay.config.values import HostPort
from relay.errors import SourceError
from relay.fleet import local_names
from relay.fleet.local_names import LocalNames, hosts_of, resolver_of


def servers(text: str, *given: HostPort) -> list[str]:
    found = resolver_of(text.encode(), given).nameservers
    return [each if isinstance(each, str) else f"{each.answer_nameserver()} {each.answer_port()}" for each in found]


def test_a_hosts_file() -> None:
    found = hosts_of(
        b"\xff\n# 10.0.0.9 no\n10.0.0.4 DB.test. db # 10.0.0.5 other\n2001:DB8::4 db.test\n10.0.0.4 db.test\n"
        b"nonsense db.test\n10.0.0.6\n"
    )
    assert dict(found) == {"db.test": ("10.0.0.4", "2001:db8::4"), "db": ("10.0.0.4",)}


def test_who_is_asked() -> None:
    assert servers("nameserver 10.0.0.1\nnameserver 2001:db8::1\n") == ["10.0.0.1", "2001:db8::1"]
    assert servers("") == servers("search test\n") == servers("nameserver nonsense\n") == ["127.0.0.1"]
    assert servers("nameserver https://example.com/\nnameserver 10.0.0.1\n") == ["10.0.0.1"]
    assert servers("nameserver 10.0.0.1\n", HostPort("10.0.0.2", 5353)) == ["10.0.0.2 5353"]


def test_how_it_is_asked() -> None:
    found = resolver_of(b"search a.test b.test\noptions ndots:2 timeout:30\n")
    assert found.search == [dns.name.from_text("a.test"), dns.name.from_text("b.test")]
    assert (found.ndots, found.timeout) == (2, 2.0)
    with pytest.raises(SourceError, match=r"/etc/resolv\.conf cannot be used: .*; mend it"):
        resolver_of(b"search a..test\n")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    found = tmp_path / "resolv.conf", tmp_path / "hosts"
    found[0].write_text("nameserver 10.0.0.1\n")
    found[1].write_text("10.0.0.4 db.test\n")
    return found


def names(files: tuple[Path, Path]) -> LocalNames:
    return LocalNames(resolv_conf=str(files[0]), hosts=str(files[1]))


async def test_both_are_read_again_when_they_change(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_names, "LOOK_S", 0.0)
    local = names(files)
    first = await local.look()
    assert (first.resolver.nameservers, dict(first.hosts)) == (["10.0.0.1"], {"db.test": ("10.0.0.4",)})
    assert await local.look() is first, "nothing has changed"
    files[0].write_text("nameserver 10.0.0.20\n")
    second = await local.look()
    assert (second.resolver.nameservers, second.hosts) == (["10.0.0.20"], first.hosts)
    new = files[1].with_suffix(".new")
    new.write_text("10.0.0.5 db.test\n")
    new.rename(files[1])
    assert dict((await local.look()).hosts) == {"db.test": ("10.0.0.5",)}
    files[1].unlink()
    assert dict((await local.look()).hosts) == {}


async def test_they_are_looked_at_once_a_second(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_names, "LOOK_S", 1000.0)
    local = names(files)
    first = await local.look()
    files[1].write_text("")
    assert await local.look() is first


async def test_what_cannot_be_read_any_more_goes_on_to_count(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_names, "LOOK_S", 0.0)
    local = names(files)
    first = await local.look()
    files[1].unlink()
    files[1].mkdir()
    assert (await local.look()).hosts == first.hosts


async def test_a_file_that_was_never_read(files: tuple[Path, Path]) -> None:
    files[0].unlink()
    os.mkfifo(files[0])
    with pytest.raises(SourceError, match="is a pipe, not a file"):
        await names(files).look()


async def test_one_that_hangs_holds_nobody_up(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_names, "_DEADLINE_S", 0.05)
    monkeypatch.setattr(local_names, "_stamp", lambda _: time.sleep(0.5))
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.005)
            beats += 1

    beating = asyncio.create_task(beat())
    with pytest.raises(SourceError, match="has not answered within"):
        await names(files).look()
    beating.cancel()
    assert beats
