"""The messages of etcd 3.4's JSON gateway. Pure: plain data for requests; of answers what they mean.

https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/. Keys and values travel in base64, int64 as texts, and what is zero or
empty is left out.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from relay.config.wording import printable
from relay.errors import RegistryError
from relay.fleet.entries import KeyValue

# gRPC's numbers of what another member may answer better: https://grpc.github.io/grpc/core/md_doc_statuscodes.html
# Cancelled, unknown, deadline exceeded, resource exhausted, aborted, internal, unavailable.
_ELSEWHERE: Final = frozenset({1, 2, 4, 8, 10, 13, 14})
NOT_FOUND: Final = 5
"""The number of what etcd does not have."""

T = TypeVar("T")
Compare = dict[str, Any]
Operation = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a read or a transaction gave: whether its comparisons held, and what each `get` of it found, and how many."""

    cluster: str
    revision: int
    succeeded: bool
    found: tuple[tuple[KeyValue, ...], ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """One message of a watch. The first has no events: the watch is there. `compacted`: it is over, read all anew.

    To go on later, count from the last event's `mod_revision`: the store's `revision` may be ahead of the events.
    """

    revision: int
    events: tuple[KeyValue, ...] = ()
    compacted: bool = False


def absent(key: str) -> Compare:
    """Holds when there is no such key."""
    return {"key": _coded(key), "target": "CREATE", "create_revision": "0"}


def unchanged(found: KeyValue) -> Compare:
    """Holds when nobody has written the key since."""
    return {"key": _coded(found.key), "target": "MOD", "mod_revision": str(found.mod_revision)}


def holds(key: str, value: bytes) -> Compare:
    """Holds when the key has this value."""
    return {"key": _coded(key), "target": "VALUE", "value": _coded(value)}


def put(key: str, value: bytes, lease: int = 0) -> Operation:
    """Write a key, which goes with the lease."""
    return {"request_put": {"key": _coded(key), "value": _coded(value), "lease": str(lease)}}


def delete(key: str) -> Operation:
    """Remove a key, if it is there."""
    return {"request_delete_range": {"key": _coded(key)}}


def get(key: str) -> Operation:
    """Read one key."""
    return {"request_range": {"key": _coded(key)}}


def get_all(prefix: str, *, keys_only: bool = False) -> Operation:
    """Read every key that starts so."""
    return {"request_range": {**all_of(prefix), "keys_only": keys_only}}


def get_from(first: str, end: str, *, limit: int = 0, revision: int = 0) -> Operation:
    """Read the keys from `first` to before `end`, as they were at a revision: so many of them, or all."""
    between = {"key": _coded(first), "range_end": _coded(end)}
    return {"request_range": {**between, "limit": str(limit), "revision": str(revision)}}


def count_from(first: str, end: str) -> Operation:
    """Count the keys from `first` to before `end`."""
    return {"request_range": {"key": _coded(first), "range_end": _coded(end), "count_only": True}}


class Refused(RegistryError):
    """A definite answer: another endpoint would give the same. Those who ask a `Client` know it as a RegistryError."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Unfit(Exception):
    """This endpoint gave no answer that can be used; the next one may."""


def failure(status: int, answer: dict[str, Any]) -> Exception:
    """What an error of the gateway means: a refusal, or an endpoint that is of no use now."""
    code, message = answer.get("code", answer.get("grpc_code")), answer.get("message", answer.get("error"))
    if not isinstance(code, int) or not isinstance(message, str):
        return Unfit(f"HTTP status {status}, and nothing that etcd would say")
    message = printable(message)
    return Unfit(message) if code in _ELSEWHERE else Refused(f"etcd refuses: {message}", code)


def parsed(text: bytes) -> dict[str, Any]:
    """The JSON object in an answer; an empty one where there is none."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        answer = None
    return answer if isinstance(answer, dict) else {}


def understood(answer: dict[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
    """What `read` makes of an answer. Raises Unfit where it is not of the form that it must have."""
    try:
        return read(answer)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError):
        raise Unfit("it answers, but not as etcd does") from None


def read_batch(status: int, line: bytes) -> Batch:
    """A message of a watch. Raises Unfit, and Refused when the watch is cancelled."""

    def read(result: dict[str, Any]) -> Batch:
        _, revision = read_header(result)
        if int(result.get("compact_revision", 0)):
            return Batch(revision, compacted=True)
        return Batch(revision, tuple(map(_event, result.get("events", ()))))

    message = parsed(line)
    error, result = message.get("error"), message.get("result")
    if status != 200 or not isinstance(result, dict):
        raise failure(status, error if isinstance(error, dict) else message)
    if result.get("canceled") and "compact_revision" not in result:
        raise Refused(f"cancelled: {printable(str(result.get('cancel_reason', 'no reason given')))}", 0)
    return understood(result, read)


def read_header(answer: dict[str, Any]) -> tuple[str, int]:
    """The cluster's id, and the store's revision. A watch that is cancelled for compaction has none: 0."""
    header = answer["header"]
    return str(header["cluster_id"]), int(header.get("revision", 0))


def read_answer(answer: dict[str, Any]) -> Reply:
    """What a transaction gave."""
    ranges = [each["response_range"] for each in answer.get("responses", ()) if "response_range" in each]
    found = tuple(map(read_key_values, ranges))
    counts = tuple(int(each.get("count", 0)) for each in ranges)
    return Reply(*read_header(answer), answer.get("succeeded", False) is True, found, counts)


def read_key_values(answer: dict[str, Any]) -> tuple[KeyValue, ...]:
    """What a range found."""
    return tuple(_key_value(each) for each in answer.get("kvs", ()))


def _key_value(plain: dict[str, Any]) -> KeyValue:
    return KeyValue(
        base64.b64decode(plain["key"]).decode(errors="replace"),
        base64.b64decode(plain.get("value", "")),
        int(plain.get("mod_revision", 0)),
        int(plain.get("lease", 0)),
    )


def _event(plain: dict[str, Any]) -> KeyValue:
    found = _key_value(plain["kv"])
    return replace(found, value=None) if plain.get("type") == "DELETE" else found


def _coded(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def all_of(prefix: str) -> dict[str, Any]:
    """A request's range: every key that starts with `prefix`, whose last character is ASCII."""
    return {"key": _coded(prefix), "range_end": _coded(prefix[:-1] + chr(ord(prefix[-1]) + 1))}
