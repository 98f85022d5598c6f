"""Why a dial failed, as the log says it; and whose trouble it is, the target's or this machine's."""

import contextlib
import errno
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.config.snapshot import TargetRow
from relay.kernel import connecting
from relay.kernel.connecting import NOT_BEGUN, target_socket
from relay.kernel.connecting import connect as real_connect
from relay.ledger.layout import Count
from relay.targets import why
from relay.targets.health import failed_dial
from tests.dataplane.rig import refusing, rig_to, silent_target, tcp_target, unroutable
from tests.ledger.rig import target_up


def missing(_: Path) -> None:
    """Nothing is there."""


def plain_file(path: Path) -> None:
    path.touch()


def left_behind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def datagrams(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize(
    ("put", "words"),
    [
        (missing, "no such file or directory"),
        (plain_file, "is not a socket"),
        (left_behind, "connection refused"),
        (datagrams, "connection refused"),  # nobody has it open: a socket that is open is in the next test
    ],
)
def test_a_unix_target(put: Callable[[Path], None], words: str, stack: contextlib.ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    put(path)
    rig = rig_to(stack, TargetRow(f"unix:{path}", path=str(path)))
    assert rig.ending(rig.connect()) == "reset"
    record = rig.ended()
    assert (record["cause"], record["reason"]) == ("connect_failed", f"{words}: {path}")


def test_a_unix_target_of_another_kind(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    rig = rig_to(stack, TargetRow(f"unix:{path}", path=str(path)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        assert rig.ending(rig.connect()) == "reset"
    assert rig.ended()["reason"] == f"protocol wrong type for socket: {path}"


def test_a_target_that_refuses_or_says_nothing(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, row := refusing())
    assert rig.ending(rig.connect()) == "reset"
    assert rig.ended()["reason"] == "connection refused"
    part = rig.part
    assert part.words[part.counts_at(0) + Count.DIAL_WHY] == failed_dial(why.of_error(errno.ECONNREFUSED), row.port)


def test_no_answer_says_how_long_it_was_waited_for(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, silent_target(stack), connect_s=5.0)
    client = rig.connect()
    rig.flow()
    rig.tick(5.0)
    assert rig.ending(client) == "reset"
    record = rig.ended()
    assert (record["cause"], record["reason"]) == ("connect_timeout", "no answer in 5 s")


def test_who_gets_there_by_another_way_has_no_reason(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, refusing(), target)
    client = rig.connect()
    target.accept(rig).close()
    client.close()
    assert "reason" not in rig.ended()


@pytest.mark.interpreted
@pytest.mark.parametrize("code", NOT_BEGUN)
def test_trouble_of_this_machine_is_an_error_and_no_target_is_down(
    code: int, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rig_to(stack, TargetRow("[2001:db8::1]:80", host="2001:db8::1", port=80))
    monkeypatch.setattr(connecting, "connect", lambda target, row: code)
    assert rig.ending(rig.connect()) == "reset"
    assert (target_up(rig.ledger), rig.ledger.total(0, Count.CONNECT_FAILURES)) == (None, 0)
    rig.log.flush()
    lines = {line["event"]: line for line in rig.records()}
    assert (lines["connection"]["cause"], lines["dial"]["level"]) == ("error", "error")
    assert lines["dial"]["reason"] == lines["connection"]["reason"] == f"[2001:db8::1]:80: {NOT_BEGUN[code]}"


def test_so_it_is_when_the_kernel_itself_says_it(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, row := unroutable())
    assert rig.ending(rig.connect()) == "reset"
    assert (target_up(rig.ledger), rig.ledger.total(0, Count.CONNECT_FAILURES)) == (None, 0)
    record = rig.ended()
    assert (record["cause"], record["reason"]) == ("error", f"{row.text}: {NOT_BEGUN[errno.ENETUNREACH]}")


@pytest.mark.interpreted
@pytest.mark.parametrize("code", [errno.ENETUNREACH, errno.EADDRNOTAVAIL])
def test_so_it_is_where_the_clients_own_address_is_dialled_from(
    code: int, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target, transparent=True)
    monkeypatch.setattr(connecting, "target_socket", lambda row, *_, **__: target_socket(row))
    monkeypatch.setattr(connecting, "connect", lambda target, row: code)
    assert rig.ending(rig.connect()) == "reset"
    record = rig.ended()
    assert (record["cause"], record["reason"]) == ("error", f"{target.row.text}: {NOT_BEGUN[code]}")


@pytest.mark.interpreted
def test_no_permission_for_a_unix_socket_is_the_targets(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rig_to(stack, TargetRow("unix:/run/redis/redis.sock", path="/run/redis/redis.sock"))
    monkeypatch.setattr(connecting, "connect", lambda target, row: errno.EACCES)
    assert rig.ending(rig.connect()) == "reset"
    record = rig.ended()
    assert (record["cause"], record["reason"]) == ("connect_failed", "permission denied: /run/redis/redis.sock")
    assert target_up(rig.ledger) is False


@pytest.mark.interpreted
def test_no_memory_for_a_connection_is_waited_for(stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target)
    codes = [errno.ENOBUFS]
    monkeypatch.setattr(connecting, "connect", lambda sock, row: codes.pop() if codes else real_connect(sock, row))
    client = rig.connect()
    rig.flow()
    assert rig.exhausted == ["descriptors for targets"]
    rig.tick()
    target.accept(rig).close()
    client.close()
    rig.ended()
