"""Why a target is down, as a number and in words."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.targets import why


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (why.NOTHING, ""),
        (why.of_error(errno.ECONNREFUSED), "connection refused"),
        (why.of_error(errno.EACCES), "permission denied"),
        (why.RESET, "connection reset by peer"),
        (why.of_error(None), "input/output error"),
        (why.no_answer(5.0), "no answer in 5 s"),
        (why.no_answer(0.25), "no answer in 0.2 s"),
        (why.no_answer(86400.0), "no answer in 6553.5 s"),
        (why.http_status(503), "HTTP 503"),
        (why.NOT_HTTP, "the answer is not HTTP"),
        (why.CLOSED, "closes the connection without an answer"),
        (why.NO_TLS, "TLS fails"),
        (why.NOT_A_SOCKET, "is not a socket"),
        (why.BACKLOG_FULL, "its backlog is full"),
        (why.BUSY, "asks for no new connections (`relay drain`)"),
        (why.TOLD, "its relay says that it is down"),
        (why.UNEXPECTED, "the answer is not what is expected"),
        (why.of_certificate(62), "its certificate is not valid for its name or address"),
        (why.of_certificate(64), "its certificate is not valid for its name or address"),
        (why.of_certificate(9), "its certificate is not valid at this time"),
        (why.of_certificate(10), "its certificate is not valid at this time"),
        (why.of_certificate(18), "its certificate is signed by nobody whom this machine trusts"),
    ],
)
def test_in_words(number: int, words: str) -> None:
    assert why.text_of(number) == words
    assert number < 1 << why.BITS


def test_what_a_number_means_never_changes() -> None:
    """Relays of other versions are told it."""
    assert tuple((4 << 16) + n for n in (1, 9, 10, 13)) == (why.NOT_HTTP, why.HELD, why.UNEXPECTED, why.NOT_TRUSTED)


def test_of_a_file_with_its_path() -> None:
    path = "/run/redis/redis.sock"
    assert why.text_of(why.of_error(errno.EACCES), path) == "permission denied: /run/redis/redis.sock"
    assert why.text_of(why.NOT_A_SOCKET, path) == "is not a socket: /run/redis/redis.sock"
    assert why.text_of(why.no_answer(5.0), path) == "no answer in 5 s"
    assert why.text_of(why.NOTHING, path) == ""


def test_what_another_relay_wrote_is_read_and_what_makes_no_sense_is_down_all_the_same() -> None:
    told = (why.UNEXPECTED, why.NOT_ITS_NAME, why.NOT_NOW, why.NOT_TRUSTED)
    for number in (why.of_error(errno.ECONNREFUSED), why.no_answer(5.0), why.http_status(503), why.BUSY, *told):
        assert why.read(str(number).encode()) == number
    for text in (b"", b"x", b"-1", b"0", b"65536000000", b"9999999", str(why.TOLD).encode(), "²".encode()):
        assert why.read(text) == why.TOLD


@given(st.binary(max_size=12))
def test_whatever_comes_is_a_failure_that_has_words_and_fits(text: bytes) -> None:
    number = why.read(text)
    assert 0 < number < 1 << why.BITS
    assert why.text_of(number)
