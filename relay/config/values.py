"""The value formats of the two files: plain functions from what the YAML holds to what relay works with.

Every function takes the value as read (any plain YAML type) and returns the parsed one, or raises `WrongValue`.
The pattern beside a format is the same rule in the words of JSON Schema, where it can be said there.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

from relay.address import join_host_port
from relay.config.wording import brief, nearest, shown
from relay.errors import WrongValue

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

# One day. A longer timeout on a connection is `off`; a longer drain outlives every service manager's patience.
DURATION_MAX_S = 24 * 3600.0
DURATION_PATTERN = r"^[1-9][0-9]{0,8}(ms|s|m|h)$"
DURATION_OR_OFF_PATTERN = r"^(off|[1-9][0-9]{0,8}(ms|s|m|h))$"
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

# More than any machine accepts, so the cap only catches a slip of the keyboard.
RATE_MAX = 10_000_000
RATE_PATTERN = r"^[1-9][0-9]{0,7}/(s|m)$"
_PER_UNIT_S = {"s": 1, "m": 60}

# fs.nr_open's default (proc_sys_fs(5)): no process may hold more descriptors, and a connection takes two.
CONNECTIONS_MAX = 1_048_576

# Ten times what one etcd and one roster in every machine's memory were tried with (docs/scale.md).
INSTANCES_MAX = 10_000

# Of one of several targets. HAProxy's server weights have the same range.
WEIGHT_MAX = 256

WORKERS_MAX = 64  # far beyond what one network card feeds; a larger number is a slip

# Every port of a range is a listening socket, and so a descriptor in each process of relay: as many as a process may have
# by default (getrlimit(2), RLIMIT_NOFILE) are a service that wants another design.
PORTS_MAX = 1024
PORTS_PATTERN = r"^[1-9][0-9]{0,4}-[1-9][0-9]{0,4}$"

# sun_path has 108 bytes with its closing NUL (unix(7)).
UNIX_PATH_MAX_BYTES = 107

# RFC 1123 section 2.1: a DNS label. Lower case, because `shop` and `Shop` are one name in DNS.
SERVICE_NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
# A DNS label that starts with a letter (RFC 1035 section 2.3.1). No underscore: an id is split at `_IN_`.
ROLE_NAME_PATTERN = r"^[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$"
# Never a DNS name, so `.` and `_` are free; `/` is not, because a reference is written role/endpoint.
ENDPOINT_NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9._-]{0,62}$"
# The index has one way to be written, so that an id can be compared as text.
INSTANCE_ID_PATTERN = r"^[A-Za-z]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?_IN_(0|[1-9][0-9]{0,5})$"

ADDRESS_PATTERN = r"^[0-9A-Fa-f.:]+$"
NETWORK_PATTERN = r"^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$"
HOST_PORT_PATTERN = r"^(localhost|[0-9.]+|\[[0-9A-Fa-f.:]+\]):[1-9][0-9]{0,4}$"
TARGET_PATTERN = r"^((localhost|[0-9.]+|\[[0-9A-Fa-f.:]+\]):[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?|unix:/[\s\S]+)$"
# RFC 9112 section 3.2.1, origin-form, less what would have to be escaped: it goes into a request as it is.
PROBE_PATH_PATTERN = r"^/[!-~]{0,255}$"
UNIX_PATH_PATTERN = r"^/[\s\S]+$"  # a path may hold any character, a line break among them

_LOCALHOST = ("127.0.0.1", "::1")  # RFC 6761 section 6.3: the loopback addresses, without asking a resolver


@dataclass(frozen=True, slots=True)
class HostPort:
    """An IP address, or `localhost`, and a port (1..65535). `str()` writes it as the files do."""

    host: str
    port: int

    def __str__(self) -> str:
        return join_host_port(self.host, self.port)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The IP addresses it stands for, in the order to try them: one, or two for `localhost`."""
        return _LOCALHOST if self.host == "localhost" else (self.host,)


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports from `first` to `last` (1..65535), one or more. `str()` writes them as the files do."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"

    def __len__(self) -> int:
        return self.last - self.first + 1

    @property
    def numbers(self) -> range:
        """Each of them."""
        return range(self.first, self.last + 1)


@dataclass(frozen=True, slots=True)
class Target:
    """Where connections go: `host` and `port` for tcp, an absolute `path` for unix. `str()` writes it back.

    A range of ports begins at `port` and has `port_count` of them. `weight` and `backup` are as one of several.
    """

    kind: Literal["tcp", "unix"]
    host: str = ""
    port: int = 0
    path: str = ""
    port_count: int = 1
    weight: int = 1
    backup: bool = False

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        text = join_host_port(self.host, self.port)
        return text if self.port_count == 1 else f"{text}-{self.port + self.port_count - 1}"

    @property
    def addresses(self) -> tuple[str, ...]:
        """The IP addresses to dial, in the order to try them; none for unix."""
        return () if self.kind == "unix" else HostPort(self.host, self.port).addresses


def choice(*allowed: str) -> Callable[[object], str]:
    """A parser that takes exactly these words. A slip of spelling is told the word it is nearest to."""
    listed = ", ".join(f"`{word}`" for word in allowed)

    def parse(value: object) -> str:
        if isinstance(value, str) and value in allowed:
            return value
        near = nearest(value, allowed) if isinstance(value, str) else None
        fix = f"did you mean `{near}`?" if near else f"write one of {listed}"
        raise WrongValue(f"{shown(value)} is not known here", fix)

    return parse


def duration(value: object) -> float:
    """`15s`, `200ms`, `4m`, `1h` to seconds. More than zero, at most 24 hours."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, int) and 0 < value <= DURATION_MAX_S:
            raise WrongValue(f"{shown(value)} has no unit", f"write `{value}s` or `{value}ms`")
        raise WrongValue(
            f"{shown(value)} is not a duration", "write a whole number above zero and a unit: `15s`, `200ms`"
        )
    if not isinstance(value, str) or not re.fullmatch(DURATION_PATTERN, value):
        raise WrongValue(
            f"{shown(value)} is not a duration",
            "write a whole number above zero and a unit: `15s`, `200ms`, `4m`, `1h`",
        )
    number = value.rstrip("mhs")
    seconds = int(number) * _UNIT_S[value[len(number) :]]
    if seconds > DURATION_MAX_S:
        raise WrongValue(f"{shown(value)} is longer than a day", "write `24h` or less")
    return seconds


def duration_or_off(value: object) -> float | None:
    """As `duration`; `off` is None."""
    if value == "off":
        return None
    if value is False or value == 0:
        raise WrongValue(f"{shown(value)} does not turn it off", "write `off`")
    return duration(value)


def rate(value: object) -> float:
    """`500/s` or `30/m` to events per second."""
    if not isinstance(value, str) or not re.fullmatch(RATE_PATTERN, value):
        raise WrongValue(
            f"{shown(value)} is not a rate", "write a whole number above zero per second or minute: `500/s`, `30/m`"
        )
    number, _, unit = value.partition("/")
    if int(number) > RATE_MAX:
        raise WrongValue(f"{shown(value)} is above {RATE_MAX}", "write a smaller rate, or none for no limit")
    return int(number) / _PER_UNIT_S[unit]


def whole_number(largest: int, least: int = 1) -> Callable[[object], int]:
    """A parser for a whole number from `least` to `largest`."""

    def parse(value: object) -> int:
        if isinstance(value, str) and value.isascii() and value.isdigit():
            raise WrongValue(f"{shown(value)} is read as a text", "write the number without quotes or leading zeros")
        if isinstance(value, bool) or not isinstance(value, int):
            raise WrongValue(f"{shown(value)} is not a whole number", f"write {least} to {largest}")
        if not least <= value <= largest:
            raise WrongValue(f"{shown(value)} is out of range", f"write {least} to {largest}")
        return value

    return parse


port = whole_number(65535)
connections = whole_number(CONNECTIONS_MAX)


def ports(value: object) -> Ports:
    """`8080`, or the range `8995-8999` of at most `PORTS_MAX` ports."""
    if isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
        number = port(value)
        return Ports(number, number)
    if not isinstance(value, str) or not re.fullmatch(PORTS_PATTERN, value):
        raise WrongValue(f"{shown(value)} is not a port", "write 1 to 65535, or a range such as `8995-8999`")
    first, _, last = value.partition("-")
    found = Ports(int(first), int(last))
    if max(found.first, found.last) > 65535:
        raise WrongValue(f"{shown(value)} is out of range", "write ports from 1 to 65535")
    if found.first > found.last:
        raise WrongValue(f"{shown(value)} ends before it begins", f"write `{last}-{first}`")
    if len(found) > PORTS_MAX:
        raise WrongValue(f"{shown(value)} has {len(found)} ports", f"write a range of at most {PORTS_MAX}")
    return found


def flag(value: object) -> bool:
    """`true` or `false`."""
    if not isinstance(value, bool):
        raise WrongValue(f"{shown(value)} is neither true nor false", "write `true` or `false`")
    return value


def workers(value: object) -> int | Literal["auto"]:
    """A number of worker processes, or `auto`."""
    if value == "auto":
        return "auto"
    if isinstance(value, str) and not value.isdigit():
        raise WrongValue(f"{shown(value)} is not a number of workers", f"write 1 to {WORKERS_MAX}, or `auto`")
    return whole_number(WORKERS_MAX)(value)


def address(value: object) -> IPAddress:
    """An IP address of a machine. No wildcard, no multicast, no zone; IPv4-mapped IPv6 is asked for as IPv4."""
    parsed = listen_address(value)
    if parsed.is_unspecified:
        raise WrongValue(f"{shown(value)} is every address, not one machine's", "write the machine's own address")
    return parsed


def listen_address(value: object) -> IPAddress:
    """As `address`; the wildcards `0.0.0.0` and `::` are taken too."""
    if not isinstance(value, str):
        raise WrongValue(f"{shown(value)} is not an IP address", "write one such as `10.0.0.4`")
    try:
        parsed = ip_address(value)
    except ValueError:
        raise WrongValue(f"{shown(value)} is not an IP address", _address_fix(value)) from None
    if isinstance(parsed, IPv6Address):
        if parsed.scope_id is not None:
            raise WrongValue(
                f"{shown(value)} has a zone, which means one machine only", "write the address without `%`"
            )
        if parsed.ipv4_mapped is not None:
            raise WrongValue(f"{shown(value)} is an IPv4 address in IPv6 form", f"write `{parsed.ipv4_mapped}`")
    if parsed.is_multicast or parsed == IPv4Address("255.255.255.255"):
        raise WrongValue(f"{shown(value)} belongs to no one machine", "write a machine's own address")
    return parsed


def _address_fix(text: str) -> str:
    if "//" in text:
        return "write the address alone, not a URL"
    if "/" in text:
        return "write one address, without `/`"
    if re.fullmatch(r"[0-9.]+:[0-9]+|\[.*\](:[0-9]+)?", text):
        return "write the address alone, without a port or brackets"
    return "no names are looked up here: write an address such as `10.0.0.4`"


def network(value: object) -> IPNetwork:
    """`203.0.113.0/24`, `2001:db8::/32` or one address. Host bits are dropped (`203.0.113.9/24`: `203.0.113.0/24`)."""
    if not isinstance(value, str) or "%" in value:
        raise WrongValue(f"{shown(value)} is not a network", "write one such as `203.0.113.0/24`")
    if not re.fullmatch(NETWORK_PATTERN, value):  # ip_network would also take a mask, `10.0.0.0/255.0.0.0`
        raise WrongValue(f"{shown(value)} is not a network", "write an address and a prefix length: `203.0.113.0/24`")
    try:
        parsed = ip_network(value, strict=False)
    except ValueError:
        raise WrongValue(f"{shown(value)} is not a network", "write one such as `203.0.113.0/24`") from None
    if isinstance(parsed, IPv6Network) and parsed.prefixlen >= 96 and parsed.network_address.ipv4_mapped is not None:
        inner = f"{parsed.network_address.ipv4_mapped}/{parsed.prefixlen - 96}"
        raise WrongValue(f"{shown(value)} is an IPv4 network in IPv6 form", f"write `{inner}`")
    return parsed


def host_port(value: object) -> HostPort:
    """`127.0.0.1:9464`, `[::1]:9464` or `localhost:9464`."""
    if type(value) is int and 1 <= value <= 65535:
        raise WrongValue(f"{shown(value)} has no address", f"write `127.0.0.1:{value}`")
    if not isinstance(value, str):
        raise WrongValue(f"{shown(value)} is not an address with a port", "write one such as `127.0.0.1:3000`")
    host, colon, port_text = value.rpartition(":")
    if not colon or not port_text or value.endswith("]"):
        raise WrongValue(f"{shown(value)} has no port", "write an address and a port: `127.0.0.1:3000`, `[::1]:3000`")
    if not re.fullmatch(r"[1-9][0-9]{0,4}", port_text) or int(port_text) > 65535:
        raise WrongValue(f"{shown(value)} ends in no valid port", "write 1 to 65535 after the last colon")
    if host == "localhost":
        return HostPort(host, int(port_text))
    bracketed = host.startswith("[") and host.endswith("]")
    if not host:
        raise WrongValue(f"{shown(value)} has no address", f"write `127.0.0.1:{port_text}`")
    if re.fullmatch("[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", host):
        raise WrongValue(
            f"{shown(value)} does not tell the address from the port", f"write `[{brief(host)}]:{port_text}`"
        )
    parsed = listen_address(host[1:-1] if bracketed else host)
    if bracketed != isinstance(parsed, IPv6Address):
        raise WrongValue(f"{shown(value)} has brackets around an IPv4 address", f"write `{parsed}:{port_text}`")
    return HostPort(str(parsed), int(port_text))


def target(value: object) -> Target:
    """A `host_port` that is one address, with a port or a range of `ports`; or `unix:/path`."""
    if isinstance(value, str) and value.startswith("unix:"):
        return Target("unix", path=unix_path(value.removeprefix("unix:")))
    if isinstance(value, str) and value.startswith("/"):
        raise WrongValue(f"{shown(value)} is a path", f"write `unix:{brief(value)}`")
    count = 1
    if isinstance(value, str) and (found := re.fullmatch(r"(.*):([0-9]+-[0-9]+)", value)):
        several = ports(found[2])
        value, count = f"{found[1]}:{several.first}", len(several)
    where = host_port(value)
    if where.host != "localhost" and ip_address(where.host).is_unspecified:
        raise WrongValue(f"{shown(value)} is no address to connect to", f"write `127.0.0.1:{where.port}`")
    return Target("tcp", where.host, where.port, port_count=count)


def unix_path(value: object) -> str:
    """The path of a Unix socket: absolute, at most 107 bytes (unix(7))."""
    if not isinstance(value, str) or not value.startswith("/"):
        raise WrongValue(f"{shown(value)} is not an absolute path", "write one that starts with `/`")
    if "\0" in value or "\n" in value or value.endswith("/"):
        raise WrongValue(f"{shown(value)} cannot name a socket", "write the path of a file")
    try:
        size_bytes = len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise WrongValue(f"{shown(value)} cannot be written in UTF-8", "write a path that can") from None
    if size_bytes > UNIX_PATH_MAX_BYTES:
        raise WrongValue(f"the path has {size_bytes} bytes", f"write one of at most {UNIX_PATH_MAX_BYTES}")
    return value


def probe_path(value: object) -> str:
    """What an http probe asks for: `/healthz`, `/status?deep=1`. A missing slash is written for it."""
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]{1,256}", value):
        raise WrongValue(f"{shown(value)} cannot be asked for", "write a path such as `/healthz`, without spaces")
    return value if value.startswith("/") else f"/{value}"


def not_empty(value: object) -> object:
    """A list with something in it."""
    if value in ([], ()):
        raise WrongValue("is empty", "write at least one, or remove the key above it")
    return value


def service_name(value: object) -> str:
    """A service's name: a DNS label in lower case."""
    return _named(value, SERVICE_NAME_PATTERN, "lower-case letters, digits and inner hyphens, at most 63")


def role_name(value: object) -> str:
    """A role's name: a DNS label that starts with a letter."""
    return _named(value, ROLE_NAME_PATTERN, "a letter, then letters, digits and inner hyphens, at most 63")


def endpoint_name(value: object) -> str:
    """The name of an endpoint, or of an access list: a letter, then letters, digits, `.`, `_` and `-`, at most 63."""
    return _named(value, ENDPOINT_NAME_PATTERN, "a letter, then letters, digits, `.`, `_` and `-`, at most 63")


def _named(value: object, pattern: str, rule: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise WrongValue(f"{shown(value)} is not a valid name", f"write {rule}")
    return value


def instance_id(value: object) -> str:
    """An instance's id: its role, `_IN_` and its index in the role, counted from 0."""
    if not isinstance(value, str) or not re.fullmatch(INSTANCE_ID_PATTERN, value):
        raise WrongValue(
            f"{shown(value)} is not an instance id", "write a role, `_IN_` and an index from 0: `web_IN_0`"
        )
    return value


def version(value: object) -> Literal[1]:
    """The number of the file format: 1."""
    if type(value) is not int or value != 1:
        raise WrongValue(f"{shown(value)} is not a format this relay reads", "write `version: 1`")
    return 1
