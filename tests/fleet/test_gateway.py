"""The gateway's messages, as etcd 3.4 writes them."""

import json
from typing import Any

import pytest

from relay.fleet.entries import KeyValue
from relay.fleet.gateway import (
    Refused,
    Unfit,
    absent,
    failure,
    get_all,
    holds,
    put,
    read_answer,
    read_batch,
    understood,
)

HEADER = {"cluster_id": "12101053776118486841", "member_id": "1", "revision": "9007199254740993", "raft_term": "2"}


def line(**result: Any) -> bytes:
    return json.dumps({"result": {"header": HEADER, **result}}).encode()


def test_requests() -> None:
    assert get_all("/a/") == {"request_range": {"key": "L2Ev", "range_end": "L2Ew", "keys_only": False}}
    assert put("/a", b"1", 5) == {"request_put": {"key": "L2E=", "value": "MQ==", "lease": "5"}}
    assert absent("/a") == {"key": "L2E=", "target": "CREATE", "create_revision": "0"}
    assert holds("/a", b"") == {"key": "L2E=", "target": "VALUE", "value": ""}


def test_an_answer() -> None:
    """Numbers beyond what a double holds are texts, and what is zero is left out."""
    kv = {"key": "L2E=", "create_revision": "2", "mod_revision": "9007199254740993", "version": "1"}
    responses = [{"response_put": {"header": {"revision": "3"}}}, {"response_range": {"kvs": [kv], "count": "7"}}]
    answer = read_answer({"header": HEADER, "succeeded": True, "responses": [*responses, {"response_range": {}}]})
    assert (answer.revision, answer.succeeded, answer.counts) == (9007199254740993, True, (7, 0))
    assert answer.found == ((KeyValue("/a", b"", 9007199254740993),), ())
    assert not read_answer({"header": HEADER}).succeeded


def test_a_watchs_messages() -> None:
    assert read_batch(200, line(created=True)).events == ()
    deleted = {"type": "DELETE", "kv": {"key": "L2E=", "mod_revision": "6"}}
    assert read_batch(200, line(events=[deleted])).events == (KeyValue("/a", None, 6),)
    assert read_batch(200, line(canceled=True, compact_revision="4")).compacted
    with pytest.raises(Refused, match="cancelled: permission denied"):
        read_batch(200, line(canceled=True, created=True, cancel_reason="permission denied"))
    with pytest.raises(Unfit, match="no leader"):
        read_batch(200, b'{"error": {"grpc_code": 14, "http_code": 503, "message": "etcdserver: no leader"}}')


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b"[]", b"\xff", b'{"result": 7}', b'{"result": {"header": {}}}', line(events=[{}]), line(events=3)],
)
def test_what_is_no_message(text: bytes) -> None:
    with pytest.raises(Unfit):
        read_batch(200, text)


def test_who_may_know_better() -> None:
    assert isinstance(failure(503, {"code": 14, "message": "etcdserver: request timed out"}), Unfit)
    assert isinstance(failure(403, {"code": 7, "message": "etcdserver: permission denied"}), Refused)
    assert isinstance(failure(502, {}), Unfit)
    with pytest.raises(Unfit, match="it answers, but not as etcd does"):
        understood({"header": 7}, read_answer)
