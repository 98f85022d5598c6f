"""What a reload changes: the pure difference of two snapshots."""

from dataclasses import dataclass, fields

from relay.config.snapshot import EndpointRow, Snapshot


@dataclass(frozen=True, slots=True)
class Change:
    """One endpoint that differs. `listen` is its address: the new one, or for `close` the one that goes.

    Or, for `set`, a setting of the instance and its new value.
    """

    action: str  # open | close | change | set
    endpoint: str
    listen: str
    keys: tuple[str, ...] = ()  # what differs, for `change`

    def __str__(self) -> str:
        if self.action == "set":
            return f"set {self.endpoint} to {self.listen}"
        what = f" ({', '.join(self.keys)})" if self.keys else ""
        return f"{self.action} {self.endpoint} on {self.listen}{what}"


@dataclass(frozen=True, slots=True)
class Opening:
    """One address that must be bound: `port` of the endpoint `row`."""

    address: str
    row: EndpointRow
    port: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The way from one snapshot to the next. A listening address that stays keeps its socket and its backlog."""

    changes: tuple[Change, ...]
    open: tuple[Opening, ...]
    close: tuple[str, ...]  # listening addresses that must go


# The table says what `rules` say; the filter follows from `deny` and the rules.
_NOT_A_CHANGE = {"name", "slot", "table", "drop_filter"}


def plan(old: Snapshot | None, new: Snapshot) -> Plan:
    """The difference between what stands (None: nothing) and what shall stand."""
    before = {row.name: row for row in old.endpoints} if old else {}
    after = {row.name: row for row in new.endpoints}
    changes: list[Change] = []
    if old is not None:
        changes += [
            Change("set", name, f"{value}") for name, value in _settings(new) if (name, value) not in _settings(old)
        ]
    changes += [Change("close", name, row.listen) for name, row in before.items() if name not in after]
    for name, row in after.items():
        if name not in before:
            changes.append(Change("open", name, row.listen))
        elif keys := _difference(before[name], row):
            changes.append(Change("change", name, row.listen, keys))
    listening = {address for row in before.values() for address in row.listens}
    wanted = {address: Opening(address, row, port) for row in after.values() for address, port in row.listens.items()}
    to_open = tuple(each for address, each in wanted.items() if address not in listening)
    return Plan(tuple(changes), to_open, tuple(sorted(listening - wanted.keys())))


def _settings(snapshot: Snapshot) -> tuple[tuple[str, str], ...]:
    return ("drain", f"{snapshot.drain_s:g}s"), ("log.level", snapshot.log_level)


def _difference(old: EndpointRow, new: EndpointRow) -> tuple[str, ...]:
    names = (field.name for field in fields(EndpointRow))
    return tuple(name for name in names if name not in _NOT_A_CHANGE and _value(old, name) != _value(new, name))


def _value(row: EndpointRow, name: str) -> object:
    if name == "rules":  # where in the file a rule stands decides nothing
        return [(rule.permit, rule.network) for rule in row.rules]
    return getattr(row, name)
