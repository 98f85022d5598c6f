"""The value formats that name something elsewhere: a registry's URL, a file, another role's endpoint, a loopback port.

As in values.py: each takes the value as read and returns the parsed one, or raises WrongValue.
"""

import re
from ipaddress import ip_address

from relay.config.values import ENDPOINT_NAME_PATTERN, ROLE_NAME_PATTERN, HostPort, duration, host_port
from relay.config.wording import shown
from relay.errors import WrongValue

URL_PATTERN = r"^https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f.:]+\])(:[1-9][0-9]{0,4})?/?$"
FILE_PATTERN = r"^/[\s\S]+$"
ENDPOINT_PATTERN = rf"{ROLE_NAME_PATTERN[:-1]}/{ENDPOINT_NAME_PATTERN[1:]}"
LEASE_MIN_S = 2  # etcd 3.4 raises a shorter one to ceil(3 * election ticks / 2) of 100 ms each, at its defaults 2 s
# Labels of at most 63 characters; the last one is no number, or it would be an address that is written wrongly.
NAME_PATTERN = r"([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
NAME_MAX_CHARS = 253  # RFC 1035 section 2.3.4 has 255 bytes, with the lengths of the first label and of the root
LOOPBACK_PATTERN = r"^(localhost|127(\.[0-9]{1,3}){3}|\[::1\]):[1-9][0-9]{0,4}$"


def url(value: object) -> str:
    """The URL of a registry's endpoint, `https://10.0.9.1:2379`: no path, no user; returned without a closing slash."""
    if not isinstance(value, str) or not re.fullmatch(URL_PATTERN, value):
        example = f"http://{value}" if isinstance(value, str) and re.fullmatch(URL_PATTERN, f"http://{value}") else ""
        fix = f"write `{example or 'http://10.0.9.1:2379'}`"
        raise WrongValue(f"{shown(value)} is not the URL of a registry", fix + ("" if example else ", or one like it"))
    port = re.search(r":([0-9]+)/?$", value)
    if port is not None and int(port[1]) > 65535:
        raise WrongValue(f"{shown(value)} ends in no valid port", "write 1 to 65535 after the last colon")
    return value.rstrip("/")


def file(value: object) -> str:
    """The absolute path of a file or directory; returned without a closing slash."""
    if not isinstance(value, str) or not value.startswith("/"):
        raise WrongValue(f"{shown(value)} is not an absolute path", "write one that starts with `/`")
    if "\0" in value or "\n" in value or not value.strip("/"):
        raise WrongValue(f"{shown(value)} names no file", "write the path of one")
    return value.rstrip("/")


def endpoint(value: object) -> tuple[str, str]:
    """`store/postgres` as its role and its endpoint."""
    if not isinstance(value, str) or not re.fullmatch(ENDPOINT_PATTERN, value):
        raise WrongValue(f"{shown(value)} is not an endpoint", "write its role and its name: `store/postgres`")
    role, _, name = value.partition("/")
    return role, name


def loopback(value: object) -> HostPort:
    """A `host_port` that only this machine reaches. `localhost` is taken as 127.0.0.1."""
    where = host_port(value)
    host = "127.0.0.1" if where.host == "localhost" else where.host
    if not ip_address(host).is_loopback:
        raise WrongValue(
            f"{shown(value)} is open to other machines", f"write a loopback address: `127.0.0.1:{where.port}`"
        )
    return HostPort(host, where.port)


def name_server(value: object) -> HostPort:
    """As `loopback`; not where systemd-resolved answers (systemd-resolved.service(8))."""
    where = loopback(value)
    if where.port == 53 and where.host in ("127.0.0.53", "127.0.0.54"):
        raise WrongValue(f"{shown(value)} is systemd-resolved's own", "write another one, such as `127.0.0.153:53`")
    return where


def resolver(value: object) -> HostPort:
    """The address and port of a DNS server: no name, which it would take one to look up."""
    where = host_port(value)
    if where.host == "localhost" or ip_address(where.host).is_unspecified:
        raise WrongValue(f"{shown(value)} is not the address of a DNS server", "write one such as `10.0.0.2:53`")
    return where


def lease(value: object) -> float:
    """A duration of whole seconds from 2 on: etcd's shortest lease with its default election timeout."""
    seconds = duration(value)
    if seconds < LEASE_MIN_S or seconds % 1:
        raise WrongValue(f"{shown(value)} is no lease of etcd's", f"write whole seconds, `{LEASE_MIN_S}s` or more")
    return seconds


def word(value: object) -> str:
    """A word of printable characters."""
    if not isinstance(value, str) or not re.fullmatch("[!-~]{1,64}", value):
        raise WrongValue(f"{shown(value)} is not a name", "write one word")
    return value


def dns_name(value: object) -> str:
    """A machine's name as DNS has it (RFC 1123 section 2.1), in lower case and without a closing dot.

    An underscore is taken too: names of services begin with one (RFC 2782).
    """
    text = value.removesuffix(".") if isinstance(value, str) else ""
    if text and not text.isascii():
        raise WrongValue(f"{shown(value)} is not written as DNS has it", "write its `xn--` form: see `idn2 NAME`")
    if (
        not re.fullmatch(NAME_PATTERN, text)
        or len(text) > NAME_MAX_CHARS
        or re.fullmatch("[0-9]+", text.split(".")[-1])
    ):
        raise WrongValue(f"{shown(value)} is neither an address nor a name", "write one such as `db.example.com`")
    return text.lower()


def target_file(value: object) -> str:
    """The path of a file with targets; one that is not absolute is beside the service file."""
    if not isinstance(value, str) or not value or value.endswith("/") or "\0" in value or "\n" in value:
        raise WrongValue(f"{shown(value)} names no file", "write the path of one, such as `targets.yaml`")
    return value
