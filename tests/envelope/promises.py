"""The three promises of relay/envelope/verdict.py, as checks that every parser's tests share."""

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st

from relay.envelope.verdict import INCOMPLETE, Reject

# The work is small; what takes long at times is a busy machine, and that is no failure of a parser.
PATIENT = settings(deadline=None)


def check_valid(parse: Callable[[bytes], object], data: bytes, expected: object, trailing: bytes) -> None:
    """`data` is a valid input without a byte too many: incomplete at each proper prefix, the same with bytes behind."""
    for length in range(len(data)):
        assert parse(data[:length]) is INCOMPLETE, f"{parse(data[:length])} at byte {length} of {data!r}"
    assert parse(data) == expected, data
    assert parse(data + trailing) == expected, data + trailing


def check_rejected(parse: Callable[[bytes], object], data: bytes, reason: str, at: int) -> None:
    """`data` is incomplete before `at` bytes; from there on it is one Reject, whose reason holds `reason`."""
    for length in range(at):
        assert parse(data[:length]) is INCOMPLETE, f"{parse(data[:length])} at byte {length} of {data!r}"
    first = parse(data[:at])
    assert isinstance(first, Reject), f"{first} at byte {at} of {data!r}"
    assert reason in first.reason
    for length in range(at, len(data) + 1):
        assert parse(data[:length]) == first
    assert parse(data + b"\r\n" + bytes(20_000)) == first


def check_final(parse: Callable[[bytes], object], data: bytes) -> None:
    """Whatever `data` is: no exception, and the first answer that is not INCOMPLETE never changes."""
    first: object = INCOMPLETE
    for length in range(len(data) + 1):
        answer = parse(data[:length])
        if first is INCOMPLETE:
            first = answer
        assert answer == first, f"{first}, then {answer} at byte {length} of {data!r}"


def check_pieces(
    so_far: Callable[[bytes], object], look: Callable[[bytes], object], data: bytes, cuts: set[int]
) -> None:
    """`data` cut there into pieces: `so_far`, which is shown all that has come after each, says what `look` says of it."""
    for length in sorted({cut for cut in cuts if cut < len(data)} | {len(data)}):
        answer = so_far(data[:length])
        assert answer == look(data[:length]), f"at byte {length} of {data!r}, cut at {sorted(cuts)}"
        if answer is not INCOMPLETE:
            return


CUTS = st.sets(st.integers(0, 400)) | st.just(set(range(20_000)))


@st.composite
def edited(draw: st.DrawFn, base: bytes) -> bytes:
    """`base` with up to four bytes changed, put in or taken out, and perhaps cut short."""
    data = bytearray(base)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        byte = draw(st.integers(0, 255) | st.sampled_from(b"\r\n \x00:/0"))
        match draw(st.sampled_from(["change", "change", "insert", "remove"])):
            case "insert":
                data.insert(at, byte)
            case "remove":
                del data[at : at + 1]
            case _:
                data[at : at + 1] = bytes([byte])
    return bytes(data[: draw(st.sampled_from([len(data), len(data), draw(st.integers(0, len(data)))]))])
