"""The block in a hosts file: what is in it, that the rest stays byte for byte, and every way in which a file refuses it."""

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.roster import Member, Roster
from relay.errors import OperatorError
from relay.names.hosts import block, put, remove, without, write
from relay.names.zone import Zone
from tests.e2e.programs import RUN_S, program
from tests.harness import HANG_S, examples

ZONE = Zone(
    "shop",
    {"web": {"http-in": 80}, "Store": {}, "idle": {}},
    Roster((Member("web", 0, "10.0.0.4"), Member("web", 1, "10.0.0.5"), Member("Store", 0, "2001:db8::4"))),
    unhealthy={"web_IN_0"},
    address="127.0.0.153",
    serial=1,
    ttl_s=5,
)
BLOCK = block(ZONE)
OTHER = "# BEGIN relay shop2\n10.9.9.9 x.shop2.internal\n# END relay shop2\n"
DEBIAN = "127.0.0.1\tlocalhost\n127.0.1.1\thost\n\n# IPv6\n::1     localhost ip6-localhost\n"


def test_what_is_in_it() -> None:
    assert BLOCK.splitlines() == [
        "# BEGIN relay shop",
        "# relay writes this block. A hosts file takes no turns: a role's name is its first healthy instance.",
        "10.0.0.4 web-0.web.shop.internal web-0.web",
        "10.0.0.5 web-1.web.shop.internal web-1.web",
        "2001:db8::4 store-0.store.shop.internal store-0.store",
        "10.0.0.5 web.shop.internal",
        "2001:db8::4 store.shop.internal",
        "# END relay shop",
    ]


def test_where_nobody_is_healthy_the_first_is_given_out() -> None:
    members = Roster((Member("web", 0, "10.0.0.4", busy=True), Member("web", 1, "10.0.0.5", busy=True)))
    zone = Zone("shop", {"web": {}}, members, address="127.0.0.153", serial=1, ttl_s=5)
    assert "10.0.0.4 web.shop.internal" in block(zone).splitlines()


def test_an_instance_without_a_name_is_left_out() -> None:
    role = "r" * 62
    zone = Zone("shop", {role: {}}, Roster((Member(role, 0, "10.0.0.4"),)), address="::1", serial=1, ttl_s=5)
    assert block(zone).splitlines()[2:-1] == [f"10.0.0.4 {role}.shop.internal"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", BLOCK),
        (DEBIAN, DEBIAN + BLOCK),
        ("127.0.0.1 localhost", "127.0.0.1 localhost\n" + BLOCK),
        ("a\r\nb\n", "a\r\nb\n" + BLOCK.replace("\n", "\r\n")),
        ("a\r\nb", "a\r\nb\r\n" + BLOCK.replace("\n", "\r\n")),
        (OTHER, OTHER + BLOCK),
        (f"a\n# BEGIN relay shop\nold\n# END relay shop\n{OTHER}b", f"a\n{BLOCK}{OTHER}b"),
        ("a\n# BEGIN relay shop\nold\n# END relay shop", f"a\n{BLOCK}"),
        ("a\r\n# BEGIN relay shop \r\n# END relay shop\t\r\nb\r\n", "a\r\n" + BLOCK.replace("\n", "\r\n") + "b\r\n"),
        ("#BEGIN relay shop\n# BEGIN relay shop x\n", "#BEGIN relay shop\n# BEGIN relay shop x\n" + BLOCK),
        ("\x0b# BEGIN relay shop\u2028\n", "\x0b# BEGIN relay shop\u2028\n" + BLOCK),
    ],
)
def test_where_it_goes(before: str, after: str) -> None:
    assert put("hosts", before, BLOCK) == after
    assert put("hosts", after, BLOCK) == after


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\n# BEGIN relay shop\nb\n", "hosts:2: a BEGIN of `shop` without its END; write `# END relay shop`"),
        ("# BEGIN relay shop", "hosts:1: a BEGIN of `shop` without its END"),
        ("a\n\n# END relay shop\n", "hosts:3: an END of `shop` without its BEGIN"),
        ("# BEGIN relay shop\n# BEGIN relay shop\n# END relay shop\n", "hosts:2: the block of `shop` begins again"),
        (BLOCK + "a\n" + BLOCK, "hosts:10: there is a second block of `shop`"),
        (
            "# BEGIN relay shop\n" + OTHER,
            "hosts:2: BEGIN of `shop2` is inside the block of `shop`, which begins in line 1",
        ),
        ("# BEGIN relay shop\n# END relay x\n", "hosts:2: END of `x` is inside the block of `shop`"),
    ],
)
def test_marks_that_do_not_pair(text: str, words: str) -> None:
    for change, what in ((put, BLOCK), (without, "shop")):
        with pytest.raises(OperatorError) as caught:
            change("hosts", text, what)
        assert str(caught.value).startswith(words)
        assert str(caught.value).endswith("relay leaves the file alone")


def test_the_marks_of_others_are_theirs_to_repair() -> None:
    text = "# BEGIN relay shop2\n# BEGIN relay shop2\n"
    assert put("hosts", text, BLOCK) == text + BLOCK


LINES = st.lists(
    st.text(st.characters(exclude_characters="\n"), max_size=20)
    | st.sampled_from(("10.0.0.1 x", "# BEGIN relay shop2", "# END relay shop2", "# END relay", "\r", ""))
    | st.binary(max_size=8).map(lambda part: part.replace(b"\n", b"").decode("utf-8", "surrogateescape")),
    max_size=6,
).map("\n".join)


@examples(200)
@given(before=LINES, after=LINES, old=LINES)
def test_everything_around_it_stays(before: str, after: str, old: str) -> None:
    head = f"{before}\n" if before else ""
    old = old.replace(" relay ", " relais ")
    text = f"{head}# BEGIN relay shop\n{old}\n# END relay shop\n{after}"
    changed = put("hosts", text, BLOCK)
    crlf = text.partition("\n")[0].endswith("\r")
    ours = BLOCK.replace("\n", "\r\n") if crlf else BLOCK
    assert changed == f"{head}{ours}{after}"
    assert without("hosts", changed, "shop") == head + after
    assert without("hosts", text, "shop") == head + after


@examples(100)
@given(text=LINES)
def test_put_and_taken_away_again(text: str) -> None:
    back = without("hosts", put("hosts", text, BLOCK), "shop")
    assert back in (text, f"{text}\n", f"{text}\r\n")
    assert back.startswith(text)
    assert back == text or not text.endswith("\n")


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    content = DEBIAN.encode() + b"# caf\xe9 \xff\r\n"
    file.write_bytes(content)
    file.chmod(0o640)
    assert write(str(file), BLOCK)
    assert file.read_bytes() == content + BLOCK.encode()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    before = file.stat()
    assert not write(str(file), BLOCK)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert remove(str(file), "shop")
    assert file.read_bytes() == content
    assert not remove(str(file), "shop")
    assert [each.name for each in tmp_path.iterdir()] == ["hosts"]


def test_nobody_reads_half_of_it(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(DEBIAN + BLOCK)
    texts = DEBIAN + BLOCK, DEBIAN + BLOCK.replace("10.0.0.5", "10.0.0.6")
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            write(str(file), texts[1][len(DEBIAN) :])
            write(str(file), texts[0][len(DEBIAN) :])

    thread = threading.Thread(target=change)
    thread.start()
    try:
        seen: set[str] = set()
        deadline_s = time.monotonic() + HANG_S
        while len(seen) < 2 and time.monotonic() < deadline_s:
            seen.add(file.read_text())
    finally:
        stop.set()
        thread.join()
    assert seen == set(texts)


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    file, link = tmp_path / "real" / "hosts", tmp_path / "hosts"
    file.write_text(DEBIAN)
    link.symlink_to("real/hosts")
    assert write(str(link), BLOCK)
    assert link.is_symlink()
    assert file.read_text() == DEBIAN + BLOCK


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_stays(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(DEBIAN)
    os.chown(file, 65534, 12345)
    file.chmod(0o4755)
    write(str(file), BLOCK)
    found = file.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 12345, 0o4755)


def test_attributes_stay(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(DEBIAN)
    os.setxattr(file, "user.relay", b"kept")
    write(str(file), BLOCK)
    assert os.getxattr(file, "user.relay") == b"kept"


def test_an_editor_at_the_same_moment_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hosts"
    file.write_text(DEBIAN)
    calls = []

    def fsync(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            file.write_text(DEBIAN + "10.1.1.1 new\n")

    monkeypatch.setattr(os, "fsync", fsync)
    write(str(file), BLOCK)
    assert file.read_text() == DEBIAN + "10.1.1.1 new\n" + BLOCK

    monkeypatch.setattr(os, "fsync", lambda fd: file.write_text(f"{os.urandom(4).hex()}\n"))
    with pytest.raises(OperatorError, match="something else writes it all the time"):
        remove_and_write(file)
    assert [each.name for each in tmp_path.iterdir()] == ["hosts"]


def remove_and_write(file: Path) -> None:
    write(str(file), BLOCK.replace("10.0.0.5", "10.0.0.7"))


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "file").write_text("")
    for name, words in (
        ("missing", "no such file; create it, or set another file in `names.hosts`"),
        ("nowhere", "no such file; create it"),
        ("pipe", "is a pipe, not a file; set another file"),
        (".", "is a directory, not a file; set another file"),
        ("circle", "too many levels of symbolic links; its symbolic links lead in a circle"),
        ("file/hosts", "not a directory; set another file"),
    ):
        with pytest.raises(OperatorError) as caught:
            write(f"{tmp_path}/{name}", BLOCK)
        assert str(caught.value).startswith(f"cannot write the names to {tmp_path}/{name}: {words}")


def test_what_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hosts"
    file.write_text(DEBIAN)

    def full(fd: int) -> None:
        raise OSError(28, "x")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OperatorError, match="no space left on device; make room there"):
        write(str(file), BLOCK)
    assert file.read_text() == DEBIAN
    assert [each.name for each in tmp_path.iterdir()] == ["hosts"]


MOUNTED = """\
set -e
mkdir "$1/etc" "$1/ro"
echo "127.0.0.1 localhost" | tee "$1/inner" "$1/ro/hosts" >"$1/etc/hosts"
mount --bind "$1/inner" "$1/etc/hosts"
mount --bind "$1/ro" "$1/ro"
mount -o remount,bind,ro "$1/ro"
exec "$2" -c '
import sys
from relay.errors import OperatorError
from relay.names.hosts import write
for path in sys.argv[1:]:
    try:
        write(path, "# BEGIN relay shop\\n# END relay shop\\n")
    except OperatorError as error:
        print(error)
' "$1/etc/hosts" "$1/ro/hosts"
"""


@pytest.mark.real("unshare", "mount")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_file_that_is_a_mount_and_a_directory_that_is_read_only(tmp_path: Path) -> None:
    """As in a container, and under ProtectSystem=strict."""
    command = [program("unshare"), "--mount", "sh", "-c", MOUNTED, "sh", str(tmp_path), sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S)
    assert done.stderr == ""
    mounted, read_only = done.stdout.splitlines()
    assert "etc/hosts: device or resource busy; it is a mount of its own, as in a container" in mounted
    assert "ro/hosts: read-only file system; its directory is read-only for relay: see systemd/README.md" in read_only
    assert (tmp_path / "inner").read_text() == "127.0.0.1 localhost\n"
    assert not list(tmp_path.glob("etc/.hosts*"))


FILES_ONLY = """\
set -e
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/nsswitch" /etc/nsswitch.conf
for name in web-0.web.shop.internal web-1.web web.shop.internal store.shop.internal 10.0.0.5; do
    getent hosts "$name"
done
"""


@pytest.mark.real("unshare", "mount", "getent")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_programs_find_the_names(tmp_path: Path, ending: str) -> None:
    (tmp_path / "hosts").write_bytes(DEBIAN.replace("\n", ending).encode())
    (tmp_path / "nsswitch").write_text("hosts: files\n")
    write(str(tmp_path / "hosts"), BLOCK)
    command = [program("unshare"), "--mount", "sh", "-c", FILES_ONLY, "sh", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S)
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["10.0.0.4", "web-0.web.shop.internal", "web-0.web"],
        ["10.0.0.5", "web-1.web.shop.internal", "web-1.web"],
        ["10.0.0.5", "web.shop.internal"],
        ["2001:db8::4", "store.shop.internal"],
        ["10.0.0.5", "web-1.web.shop.internal", "web-1.web"],
    ], done.stderr
