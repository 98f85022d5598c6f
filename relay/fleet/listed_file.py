"""A file that lists instances, in the form of Prometheus' file_sd: groups of `targets`, whose labels are of no concern.

https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config
"""

import json
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any, Final

import yaml

from relay.config import references
from relay.config.instances import SOURCES_MAX
from relay.config.wording import printable, shown
from relay.errors import SourceError

SIZE_MAX_BYTES: Final = 1024 * 1024
"""Of such a file: 1,024 targets with their labels take a tenth of it."""

_GROUPS_MAX: Final = 10_000  # empty ones, and such as YAML's aliases make of few bytes
_EXAMPLE: Final = 'write `[{targets: ["10.0.0.4:5432"]}]`'
# libyaml, where PyYAML was built with it; numbers and words stay texts, which is what a target is.
_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)

Entry = tuple[str, int]
"""A host, an address or a name, and its port; 0: none is told."""


def entries_of(content: bytes, path: str) -> tuple[Entry, ...]:
    """The targets that such a file lists, in its order. Raises SourceError for anything else; `path` is only a name."""
    try:
        text = content.decode()
        groups = json.loads(text) if path.endswith(".json") else yaml.load(text, _LOADER)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        where = getattr(error, "problem_mark", None)
        line = getattr(error, "lineno", where.line + 1 if where is not None else 0)
        raise SourceError(f"{printable(path)}:{line}: neither JSON nor YAML; {_EXAMPLE}") from None
    found = tuple(_entry(target, path) for target in _targets(groups, path))
    if len(found) > SOURCES_MAX:
        raise SourceError(
            f"{printable(path)} lists {len(found)} targets, and a role has {SOURCES_MAX} at most; split it"
        )
    return found


def _targets(groups: Any, path: str) -> Iterator[Any]:
    if not isinstance(groups, list) or len(groups) > _GROUPS_MAX:
        raise SourceError(f"{printable(path)} is no list of groups of targets; {_EXAMPLE}")
    count = 0
    for group in groups:
        targets = group.get("targets") if isinstance(group, dict) else None
        if not isinstance(targets, list):
            raise SourceError(f"{printable(path)}: {shown(group)} has no list of `targets`; {_EXAMPLE}")
        count += len(targets)
        if count > _GROUPS_MAX:
            raise SourceError(f"{printable(path)} lists {count} targets or more; a role has {SOURCES_MAX} at most")
        yield from targets


def _entry(target: Any, path: str) -> Entry:
    if not isinstance(target, str):
        raise SourceError(f"{printable(path)}: {shown(target)} is no target; write `10.0.0.4:5432`")
    host, port = target, ""
    try:
        ip_address(host)
    except ValueError:
        if ":" in target:
            host, _, port = target.rpartition(":")
    try:
        if port or host != target:
            number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else 0
            if not 0 < number <= 65535:
                raise ValueError
        else:
            number = 0
        return _host(host.removeprefix("[").removesuffix("]") if host[:1] == "[" else host), number
    except ValueError:
        raise SourceError(f"{printable(path)}: {shown(target)} is no target; write `10.0.0.4:5432`") from None


def _host(text: str) -> str:
    """An address as it is always written, or a name in lower case. Raises ValueError."""
    try:
        return str(ip_address(text))
    except ValueError:
        return references.dns_name(text)
