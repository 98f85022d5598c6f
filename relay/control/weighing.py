"""`relay weight`: a target's weight by hand, for a canary and back. In the snapshot it is in force; a file keeps it."""

import errno
import json
from pathlib import Path
from typing import Any, Final

from relay.config import reading, weights
from relay.config.settings import Settings
from relay.config.snapshot import BY_INSTANCE, EndpointRow, Snapshot, TargetRow
from relay.config.values import WEIGHT_MAX
from relay.config.weights import NO_WEIGHTS, Weights
from relay.control import done
from relay.errors import IdentityError, OperatorError, UnreadableError, os_reason
from relay.fleet.machine_id import machine_hash
from relay.kernel import state_file

_FORMAT: Final = 1
_SIZE_MAX_BYTES: Final = 1024 * 1024  # several times what a machine's targets all take


def weight_in(text: str) -> int | None:
    """What is written for a weight; None for `off`. Raises OperatorError."""
    if text == "off":
        return None
    if text.isascii() and text.isdigit() and int(text) <= WEIGHT_MAX:
        return int(text)
    raise OperatorError(f"`{text}` is no weight; write 0 to {WEIGHT_MAX}, or `off` for what the file says")


def with_one(snapshot: Snapshot, name: str, target: str, weight: int | None) -> tuple[Weights, TargetRow]:
    """The weights in force with this one of the target, which may be called by its instance, its text or its address.

    None: as the file has it. Also the target. Raises OperatorError where there is no such target, or several.
    """
    row = _row(snapshot, name)
    found = [each for each in row.targets if target in (each.instance, each.text)]
    found = found or [each for each in row.targets if target == each.host]
    if not target or len(found) != 1:
        there = ", ".join(filter(None, (each.instance or each.text for each in row.targets))) or "none"
        said = f"several targets of {name} are at `{target}`" if found else f"no target `{target}` at {name}"
        raise OperatorError(f"{said}; it has {there}")
    in_force = weights.from_plain(snapshot.weights)
    before = {key: each for key, each in in_force.items() if key != (name, found[0].text)}
    return before if weight is None else before | {(name, found[0].text): weight}, found[0]


def _row(snapshot: Snapshot, name: str) -> EndpointRow:
    several = [row for row in snapshot.endpoints if row.distribution not in (None, "instance")]
    for row in several:
        if row.name == name:
            return row
    if any(row.name in (name, name + BY_INSTANCE) for row in snapshot.endpoints):
        raise OperatorError(f"{name} has one target on {snapshot.instance}, which gets every connection")
    here = ", ".join(row.name for row in several) or "none"
    raise OperatorError(f"no endpoint `{name}` with several targets on {snapshot.instance}, which has {here}")


def weighed_now(snapshot: Snapshot, name: str, target: TargetRow, trouble: str) -> done.Weighed:
    """The answer to `POST /v1/weight`, of the snapshot that is in force now. `trouble`: why it is not kept over a restart."""
    rows = [row for row in snapshot.endpoints if row.name == name]
    now = next((each for row in rows for each in row.targets if each.text == target.text), target)
    return {
        "endpoint": name,
        "target": now.text,
        "instance": now.instance,
        "weight": now.weight,
        "declared_weight": now.weight if now.declared_weight is None else now.declared_weight,
        "by_hand": now.declared_weight is not None,
        "trouble": trouble,
    }


# --- over a restart -----------------------------------------------------------------------------------------------------


def path_of(settings: Settings, service: str) -> Path:
    """The file that keeps a service's weights."""
    return Path(settings.state) / f"{service}.weights.json"


def recall(settings: Settings, service: str) -> tuple[Weights, str]:
    """What was kept on this machine, and what is wrong with it (nothing: ""). A copied disk carries another one's."""
    path = path_of(settings, service)
    try:
        plain = json.loads(reading.read_bytes(str(path), deadline_s=reading.DEADLINE_S, most_bytes=_SIZE_MAX_BYTES))
        if plain["format"] != _FORMAT:
            return NO_WEIGHTS, f"{path} is of a later version of relay: the weights set by hand are not in force"
        if (plain["service"], plain["machine"]) != (service, _machine(settings, service)):
            return NO_WEIGHTS, f"{path} is another machine's: its weights are not in force"
        return weights.from_plain(plain["weights"]), ""
    except UnreadableError as error:
        if error.code == errno.ENOENT:
            return NO_WEIGHTS, ""
        return NO_WEIGHTS, f"{error}. The weights set by hand are not in force"
    except (ValueError, TypeError, KeyError, RecursionError):
        return NO_WEIGHTS, f"{path} is damaged: the weights set by hand are not in force; remove it"


def keep(settings: Settings, service: str, in_force: Weights) -> str:
    """Write them down for the next start. Blocks. Why that cannot be, or ""."""
    path = path_of(settings, service)
    plain: dict[str, Any] = {
        "format": _FORMAT,
        "service": service,
        "machine": _machine(settings, service),
        "weights": weights.to_plain(in_force),
    }
    try:
        state_file.write(path, json.dumps(plain).encode())
    except OSError as error:
        return f"cannot write {path}: {os_reason(error)}; set another `state` in instance.yaml"
    return ""


def keep_in_force(settings: Settings, snapshot: Snapshot) -> str:
    """Write down what is in force, if a control process that was killed had yet to. Blocks. Why that cannot be, or ""."""
    in_force = weights.from_plain(snapshot.weights)
    kept, _ = recall(settings, snapshot.service)
    return "" if kept == in_force else keep(settings, snapshot.service, in_force)


def _machine(settings: Settings, service: str) -> str:
    try:
        return machine_hash(settings.machine_id, service)
    except IdentityError:
        return ""
