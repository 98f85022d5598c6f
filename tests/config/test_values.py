"""The value formats: what is taken, what is refused, and that a refusal always says what to write."""

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config import values
from relay.config.values import HostPort, Ports, Target

PARSERS: dict[str, Callable[[object], object]] = {
    "duration": values.duration,
    "duration_or_off": values.duration_or_off,
    "rate": values.rate,
    "port": values.whole_number(65535),
    "ports": values.ports,
    "flag": values.flag,
    "workers": values.workers,
    "address": values.address,
    "listen_address": values.listen_address,
    "network": values.network,
    "host_port": values.host_port,
    "target": values.target,
    "unix_path": values.unix_path,
    "service_name": values.service_name,
    "role_name": values.role_name,
    "endpoint_name": values.endpoint_name,
    "instance_id": values.instance_id,
    "version": values.version,
    "choice": values.choice("tcp", "http"),
}
PATTERNS = {
    "duration": values.DURATION_PATTERN,
    "duration_or_off": values.DURATION_OR_OFF_PATTERN,
    "rate": values.RATE_PATTERN,
    "address": values.ADDRESS_PATTERN,
    "listen_address": values.ADDRESS_PATTERN,
    "network": values.NETWORK_PATTERN,
    "host_port": values.HOST_PORT_PATTERN,
    "target": values.TARGET_PATTERN,
    "unix_path": values.UNIX_PATH_PATTERN,
    "service_name": values.SERVICE_NAME_PATTERN,
    "role_name": values.ROLE_NAME_PATTERN,
    "endpoint_name": values.ENDPOINT_NAME_PATTERN,
    "instance_id": values.INSTANCE_ID_PATTERN,
}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("15s", 15.0), ("200ms", 0.2), ("4m", 240.0), ("1h", 3600.0), ("24h", 86400.0), ("1ms", 0.001)],
)
def test_durations(text: str, seconds: float) -> None:
    assert values.duration(text) == pytest.approx(seconds)
    assert values.duration_or_off(text) == values.duration(text)


@pytest.mark.parametrize(
    "text", ["24h1", "25h", "86401s", "0s", "-1s", "1.5s", "015s", "s", "5 s", "5S", "5s\n", "1d", "٣s"]
)
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="; write"):
        values.duration(text)


def test_a_bare_number_is_told_its_unit() -> None:
    with pytest.raises(ValueError, match=r"^`30` has no unit; write `30s` or `30ms`$"):
        values.duration(30)


def test_off_is_for_idle_alone() -> None:
    assert values.duration_or_off("off") is None
    with pytest.raises(ValueError, match="`off` is not a duration"):
        values.duration("off")
    for wrong in (False, 0, 0.0):
        with pytest.raises(ValueError, match="; write `off`"):
            values.duration_or_off(wrong)


@pytest.mark.parametrize(("text", "per_s"), [("500/s", 500.0), ("30/m", 0.5), ("1/m", 1 / 60), ("10000000/s", 1e7)])
def test_rates(text: str, per_s: float) -> None:
    assert values.rate(text) == pytest.approx(per_s)


@pytest.mark.parametrize("wrong", ["10000001/s", "0/s", "1/h", "1 /s", "1/s\n", "1.5/s", "/s", "5", 5, True, None])
def test_no_rates(wrong: object) -> None:
    with pytest.raises(ValueError, match="; write"):
        values.rate(wrong)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:3000", "127.0.0.1", 3000),
        ("[::1]:3000", "::1", 3000),
        ("[2001:DB8:0::1]:1", "2001:db8::1", 1),
        ("localhost:65535", "localhost", 65535),
        ("0.0.0.0:9464", "0.0.0.0", 9464),
    ],
)
def test_host_ports(text: str, host: str, port: int) -> None:
    parsed = values.host_port(text)
    assert parsed == HostPort(host, port)
    assert values.host_port(str(parsed)) == parsed


def test_localhost_is_both_loopback_addresses() -> None:
    assert values.target("localhost:80").addresses == ("127.0.0.1", "::1")
    assert values.target("[::2]:80").addresses == ("::2",)
    assert values.target("unix:/x").addresses == ()


@given(address=st.ip_addresses(), port=st.integers(1, 65535))
def test_a_targets_text_reads_back(address: object, port: int) -> None:
    text = f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"
    try:
        parsed = values.target(text)
    except ValueError:
        ip = ip_address(str(address))
        assert ip.is_multicast or ip.is_unspecified or str(ip) == "255.255.255.255" or getattr(ip, "ipv4_mapped", None)
        return
    assert str(parsed) == text
    assert values.target(str(parsed)) == parsed


def test_unix_targets() -> None:
    path = "/run/postgresql/.s.PGSQL.5432"
    assert values.target(f"unix:{path}") == Target("unix", path=path)
    assert str(Target("unix", path=path)) == f"unix:{path}"
    longest = "/" + "ü" * 53  # 107 bytes
    assert values.unix_path(longest) == longest
    with pytest.raises(ValueError, match="the path has 108 bytes; write one of at most 107"):
        values.unix_path(longest + "x")
    for wrong in ("unix:", "unix:run/x", "unix:/run/", "unix:/a\0b", "unix:/a\n", "unix:/\ud800"):
        with pytest.raises(ValueError, match="; write"):
            values.target(wrong)


def test_a_target_is_an_address() -> None:
    with pytest.raises(ValueError, match="no names are looked up here: write an address"):
        values.target("db.internal:5432")
    with pytest.raises(ValueError, match=r"write `127\.0\.0\.1:80`"):
        values.target("0.0.0.0:80")


@given(address=st.ip_addresses(), data=st.data())
def test_networks_drop_host_bits(address: IPv4Address | IPv6Address, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, address.max_prefixlen))
    expected = ip_network(f"{address}/{length}", strict=False)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None and length >= 96:
        with pytest.raises(ValueError, match="IPv4 network in IPv6 form"):
            values.network(f"{address}/{length}")
    else:
        assert values.network(f"{address}/{length}") == expected


def test_one_address_is_a_network() -> None:
    assert values.network("203.0.113.7") == ip_network("203.0.113.7/32")
    assert values.network("2001:db8::7") == ip_network("2001:db8::7/128")


@pytest.mark.parametrize(
    "wrong",
    [
        "10.0.0.0/33",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0/0.255.255.255",
        "10.0.0.0/",
        "x",
        "fe80::%1/64",
        "010.0.0.0/8",
        10,
        None,
    ],
)
def test_no_networks(wrong: object) -> None:
    with pytest.raises(ValueError, match="; write"):
        values.network(wrong)


def test_wildcards_are_for_listening() -> None:
    assert values.listen_address("0.0.0.0") == ip_address("0.0.0.0")
    assert values.listen_address("::") == ip_address("::")
    for wildcard in ("0.0.0.0", "::"):
        with pytest.raises(ValueError, match="is every address"):
            values.address(wildcard)


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("service_name", ["a", "shop-1", "9to5"], ["", "-a", "a-", "Shop", "a_b", "a.b", "shop\n", "é"]),
        ("role_name", ["a", "Web-1"], ["", "1a", "a-", "a_b", "a.b", "a/b", "web\n", "é"]),
        ("endpoint_name", ["a", "Http.In_1-x"], ["", "1a", "_a", "a/b", "a b", "a\n", "é"]),
        ("instance_id", ["web_IN_0", "W-1_IN_99"], ["web", "web_IN_", "web_IN_00", "web_in_0", "_IN_0", "web_IN_-1"]),
    ],
)
def test_names(name: str, taken: list[str], refused: list[str]) -> None:
    longest = "x" * 63 + ("_IN_0" if name == "instance_id" else "")
    for text in [*taken, longest]:
        assert PARSERS[name](text) == text
    for wrong in [*refused, "x" + longest, taken[0] + "\n", 0, None]:
        with pytest.raises(ValueError, match="; write"):
            PARSERS[name](wrong)


def test_numbers_are_never_texts_or_truths() -> None:
    port = values.whole_number(65535)
    assert [port(1), port(65535)] == [1, 65535]
    refused: list[object] = [0, 65536, -1, True, 80.0, "80", "x", None, [], 10**5000]
    for wrong in refused:
        with pytest.raises(ValueError, match="; write"):
            port(wrong)


@pytest.mark.parametrize(
    ("written", "first", "last"),
    [(80, 80, 80), ("8995-8999", 8995, 8999), ("7-7", 7, 7), ("1-1024", 1, 1024), ("64512-65535", 64512, 65535)],
)
def test_ports(written: object, first: int, last: int) -> None:
    found = values.ports(written)
    assert found == Ports(first, last)
    assert list(found.numbers) == list(range(first, last + 1))
    assert len(found) == last - first + 1
    assert values.ports(int(str(found)) if len(found) == 1 else str(found)) == found


@pytest.mark.parametrize(
    "wrong",
    [
        0,
        65536,
        True,
        "80",
        "9-8",
        "0-9",
        "1-1025",
        "65000-65536",
        "1-02",
        "1 - 2",
        "1-2-3",
        "-5",
        1.5,
        [1, 2],
        {},
        None,
    ],
)
def test_no_ports(wrong: object) -> None:
    with pytest.raises(ValueError, match="; write"):
        values.ports(wrong)


def test_a_target_with_a_range() -> None:
    assert values.target("[::1]:5-7") == Target("tcp", "::1", 5, port_count=3)
    for text in ("[::1]:5-7", "127.0.0.1:1-1024", "localhost:80-81"):
        assert str(values.target(text)) == text
    for wrong in ("127.0.0.1:7-5", "127.0.0.1:1-1025", "nowhere:5-7", ":5-7", "127.0.0.1:5-", "::1:5-7"):
        with pytest.raises(ValueError, match=r"; (write|no names are looked up here)"):
            values.target(wrong)
    with pytest.raises(ValueError, match="ends in no valid port"):
        values.host_port("127.0.0.1:9464-9465")


def test_flags() -> None:
    assert [values.flag(True), values.flag(False)] == [True, False]
    refused: list[object] = ["yes", "true", 1, 0, None, [], "no"]
    for wrong in refused:
        with pytest.raises(ValueError, match="; write `true` or `false`"):
            values.flag(wrong)


def test_workers() -> None:
    assert values.workers("auto") == "auto"
    assert values.workers(64) == 64
    for wrong in (0, 65, True, "4", "many", None):
        with pytest.raises(ValueError, match="; write"):
            values.workers(wrong)


def test_choice_says_what_was_meant() -> None:
    parse = values.choice("info", "warning")
    assert parse("info") == "info"
    with pytest.raises(ValueError, match="did you mean `warning`"):
        parse("WARN")
    with pytest.raises(ValueError, match="write one of `info`, `warning`"):
        parse(3)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30), st.just([]), st.just({})
)
WRITTEN = st.text(alphabet="0123456789abfhmsoxIN_:./[]%-\n", max_size=24)


@pytest.mark.parametrize("name", PARSERS)
@given(value=st.one_of(SCALARS, WRITTEN))
def test_anything_is_a_value_or_a_refusal_with_its_remedy(name: str, value: object) -> None:
    try:
        PARSERS[name](value)
    except ValueError as error:
        refusal = str(error)
    else:
        # What is taken also fits the pattern that the editor checks.
        assert name not in PATTERNS or re.search(PATTERNS[name], str(value))
        return
    what, separator, fix = refusal.partition("; ")
    assert what
    assert separator
    assert fix
    assert refusal.isprintable()
