"""Reload: read, validate, plan, bind, hand over. All or nothing: whatever fails, what stood before still stands.

Also how the daemon starts: the first snapshot is a reload from nothing.
"""

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from relay.address import Address
from relay.config.compile import compile_snapshot
from relay.config.document import parse
from relay.config.load import Loaded, load_service, load_settings, parse_service
from relay.config.model import Service
from relay.config.plan import Plan, plan
from relay.config.roster import Member, Roster, split_instance
from relay.config.settings import Settings
from relay.config.snapshot import NO_SLOTS, Slots, Snapshot
from relay.config.weights import NO_WEIGHTS, Weights, from_plain, to_plain, weighed
from relay.control import answers, done
from relay.control.explain import who_is_cut
from relay.control.in_force import InForce
from relay.control.weighing import recall
from relay.errors import IdentityError, OperatorError, Problem
from relay.fleet.identity import Vacancy, identify
from relay.fleet.join import Joined, abandon, join, known_at_start
from relay.fleet.numbering import everybody
from relay.fleet.sources import members_at_once
from relay.kernel.listening import close_all, filter_refusal, open_listener, try_listener

# What a running daemon does not change: a reload says so instead of pretending.
FIXED = ("id", "role", "address", "workers", "metrics", "admin", "registry", "names", "machine_id", "state")


@dataclass(frozen=True, slots=True)
class ConfigFiles:
    """Where the configuration comes from: the command line of `relay run`."""

    service: str
    settings: str
    settings_required: bool
    instance: str | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A configuration that can be put in force: everything that can fail has been done."""

    service: Loaded[Service]
    snapshot: Snapshot
    settings: Settings
    plan: Plan
    opened: dict[str, socket.socket]  # by listening address
    warnings: tuple[Problem, ...]
    notes: tuple[str, ...] = field(default=())
    roster_at_ns: int = 0  # at a start: when a registry last told who is there, as in `Seen`; 0: it never did

    def told(self, generation: int, *notes: str) -> done.Reloaded:
        """What is told of it, when it is in force as that generation; `notes` beside its own."""
        return {
            "generation": generation,
            "changes": [str(change) for change in self.plan.changes],
            "warnings": [str(warning) for warning in self.warnings],
            "notes": [*self.notes, *notes],
        }

    def would_be(self, old: Snapshot, open_now: Iterable[answers.Connection]) -> done.WouldReload:
        """What would change, and who of the connections would be cut, if it came into force in place of `old`."""
        flows = ((each["endpoint"], Address.parse(each["peer"]).host) for each in open_now)
        return {**self.told(old.generation), "cut": who_is_cut(flows, self.snapshot, old)}


@dataclass(frozen=True, slots=True)
class Who:
    """Who this machine is, and who is in the service."""

    instance: str
    roster: Roster
    confirmed_ns: int = 0  # when a registry said so last, as in `Seen`; 0: none did
    notes: tuple[str, ...] = ()
    joined: Joined | None = None  # at a start: how it came by its number

    @classmethod
    def of(cls, snapshot: Snapshot) -> "Who":
        """As the snapshot in force has it."""
        return cls(snapshot.instance, snapshot.roster)

    def seeing(self, service: Service, registered: Iterable[Member]) -> "Who":
        """The same machine, when these are registered. It is there itself, whatever a registry says."""
        there = list(registered)
        mine = self.roster.get(self.instance)
        told = next(
            (member for member in there if mine is not None and (member.id, member.address) == (mine.id, mine.address)),
            mine,
        )
        return Who(self.instance, Roster.of_service(service, there, me=told))


def start(files: ConfigFiles) -> Prepared:
    """Read the files and open all that they declare. The registry is asked who is there; a number is taken if need be.

    So are the sources of instances, for 2 s at most: what gives no answer by then is only said.

    Raises OperatorError (ConfigError, IdentityError, ListenError, RegistryError), and then nothing was opened.
    """
    service, settings = _read(files)
    who = _at_start(service.value, settings.value, files)
    try:
        who = _with_sources(who, service, settings.value)
        weights, note = recall(settings.value, service.value.service)
        snapshot = _compile(service, settings.value, who, 1, NO_SLOTS, weights=weights)
        notes = (*who.notes, *([note] if note else []))
        prepared = _opened(service, snapshot, settings.value, None, (*service.warnings, *settings.warnings), notes)
    except OperatorError:
        if who.joined is not None:
            abandon(settings.value, who.joined)
        raise
    return replace(prepared, roster_at_ns=who.confirmed_ns)


def reload(
    files: ConfigFiles, running: Settings, in_force: InForce, registered: Iterable[Member], *, dry_run: bool = False
) -> Prepared:
    """Read the files and open what must be opened beyond what is in force.

    `running` are the settings that the daemon started with; `registered` are whom the registry told of. Sources of instances
    that are new are asked, for 2 s at most.
    A `dry_run` tries the addresses and opens nothing. Raises OperatorError as `start` does; then nothing was opened.
    """
    service, new = _read(files)
    settings = new.value.model_copy(update={key: getattr(running, key) for key in FIXED})
    old = in_force.snapshot
    # What etcd knows this machine by must stay.
    _refuse_another_life(split_instance(old.instance)[0], in_force.service, service.value, settings)
    looked_up, unanswered = members_at_once(service.value, settings, service.document.path, old.roster)
    there = everybody(service.value, registered, looked_up)
    who = _still(service.value, settings, files, Who.of(old), there)
    gone, weights = who.roster.absent(old.gone), from_plain(old.weights)
    snapshot = _compile(service, settings, who, old.generation + 1, old.slots, gone, weights)
    warnings, notes = (*service.warnings, *new.warnings), (*unanswered, *_needs_restart(new.value, running))
    return _opened(service, snapshot, settings, old, warnings, notes, dry_run=dry_run)


def follow(
    settings: Settings, in_force: InForce, registered: Iterable[Member], gone: Iterable[str] = ()
) -> Prepared | None:
    """What is to be put in force because the roster has changed, by the service file that is in force; None: nothing.

    `gone` are the addresses of those whose lease ran out; that they are forgotten later changes nothing.
    Raises OperatorError, and then nothing was opened.
    """
    old = in_force.snapshot
    who = Who.of(old).seeing(in_force.service, registered)
    absent = who.roster.absent(gone)
    if who.roster == old.roster and set(absent) <= set(old.gone):
        return None
    weights = from_plain(old.weights)
    snapshot = _compile(in_force.loaded, settings, who, old.generation + 1, old.slots, absent, weights)
    return _by_itself(snapshot, settings, in_force)


def weigh(settings: Settings, in_force: InForce, weights: Weights) -> Prepared:
    """What is to be put in force because these weights were set by hand. Raises OperatorError, and nothing was opened."""
    old = in_force.snapshot
    snapshot = _compile(in_force.loaded, settings, Who.of(old), old.generation + 1, old.slots, old.gone, weights)
    return _by_itself(snapshot, settings, in_force)


def _by_itself(snapshot: Snapshot, settings: Settings, in_force: InForce) -> Prepared:
    """What came about without the files being read again."""
    old = in_force.snapshot
    # A control that was started anew has the settings that the daemon began with; these two a reload changes.
    snapshot = replace(snapshot, drain_s=old.drain_s, log_level=old.log_level)
    return _opened(in_force.loaded, snapshot, settings, old, (), ())


def back(settings: Settings, before: Snapshot, loaded: Loaded[Service], failed: Snapshot, why: str) -> Prepared:
    """What stood before `failed`, as the next generation: workers have taken that one, and cannot serve it.

    Raises OperatorError where a port that was closed meanwhile cannot be opened again, and then nothing was opened.
    """
    try:
        return _opened(loaded, replace(before, generation=failed.generation + 1), settings, failed, (), ())
    except OperatorError as error:
        raise OperatorError(f"{why}. And what stood before cannot be put back: {error}") from None


def _read(files: ConfigFiles) -> tuple[Loaded[Service], Loaded[Settings]]:
    return load_service(files.service), load_settings(files.settings, required=files.settings_required)


def _opened(
    service: Loaded[Service],
    compiled: Snapshot,
    settings: Settings,
    old: Snapshot | None,
    warnings: tuple[Problem, ...],
    notes: tuple[str, ...],
    *,
    dry_run: bool = False,
) -> Prepared:
    snapshot, unfiltered = _as_the_kernel_lets(compiled)
    difference = plan(old, snapshot)
    opened: dict[str, socket.socket] = {}
    try:
        for each in difference.open:
            if dry_run:
                try_listener(each.row, each.port)
            else:
                opened[each.address] = open_listener(each.row, each.port)
    except OperatorError:
        close_all(opened)
        raise
    return Prepared(service, snapshot, settings, difference, opened, warnings, (*notes, *unfiltered))


def service_of(snapshot: Snapshot, known: Loaded[Service] | None = None) -> Loaded[Service]:
    """The service that the snapshot was compiled from. `known`: one that was read before, and may be the same."""
    if known is not None and (known.document.path, known.document.text) == (snapshot.file, snapshot.text):
        return known
    return parse_service(parse(snapshot.text.encode(), snapshot.file))


def compile_files(
    files: ConfigFiles, known: Who, generation: int, slots: Slots, weights: Weights = NO_WEIGHTS
) -> tuple[Snapshot, Settings, tuple[Problem, ...]]:
    """What the files say to the instance that is `known`, with warnings; nothing is opened. `slots` are those in force.

    Raises OperatorError.
    """
    service, settings = _read(files)
    who = _still(service.value, settings.value, files, known, known.roster)
    snapshot, _ = _as_the_kernel_lets(_compile(service, settings.value, who, generation, slots, weights=weights))
    return snapshot, settings.value, (*service.warnings, *settings.warnings)


def _at_start(service: Service, settings: Settings, files: ConfigFiles) -> Who:
    """Who this machine is, and who is in the service: the registry is asked."""
    registered, at_ns = known_at_start(service, settings)
    found = _identified(service, settings, files, registered)
    if isinstance(found, str):
        return Who(found, Roster.of_service(service, registered), at_ns)
    return _joined(service, settings, found)


def _with_sources(who: Who, service: Loaded[Service], settings: Settings) -> Who:
    """Before a start: the same machine, when the sources of instances are asked."""
    if not service.value.named:
        return who
    looked_up, unanswered = members_at_once(service.value, settings, service.document.path)
    there = everybody(service.value, who.roster, looked_up)
    roster = Roster.of_service(service.value, there, me=who.roster.get(who.instance))
    return replace(who, roster=roster, notes=(*who.notes, *unanswered))


def _still(service: Service, settings: Settings, files: ConfigFiles, known: Who, registered: Iterable[Member]) -> Who:
    """Who this machine is by changed files, and who is in the service. Raises OperatorError if it would be another."""
    registered = tuple(registered)
    found = _identified(service, settings, files, registered)
    if isinstance(found, str):
        return Who(found, Roster.of_service(service, registered))
    role, ordinal = split_instance(known.instance)
    if role != found.role or found.ordinal not in (None, ordinal):
        wanted = found.role if found.ordinal is None else f"{found.role}_IN_{found.ordinal}"
        raise OperatorError(f"this machine is {known.instance}, and is now to be {wanted}; that takes a restart")
    if ordinal >= (count := service.roles[role].count):
        what = f"role `{role}` has {count} instances, so the last id is {role}_IN_{count - 1}"
        raise IdentityError(
            f"{what}, and this machine is {known.instance}; stop relay here first, or raise `instances`"
        )
    return known.seeing(service, registered)


def _identified(
    service: Service, settings: Settings, files: ConfigFiles, registered: Iterable[Member]
) -> str | Vacancy:
    # What etcd tells of makes nobody an instance: a number must be taken, or there may be two with it.
    by_directory = settings.registry is not None and settings.registry.directory is not None
    return identify(service, settings, files.instance, registered=registered if by_directory else ())


def _refuse_another_life(role: str, before: Service, after: Service, settings: Settings) -> None:
    """What etcd knows this machine by cannot change while it is there. Raises OperatorError."""
    if settings.registry is None or settings.registry.directory is not None:
        return
    restart = "etcd knows this machine by it, so that takes a restart"
    if after.service != before.service:
        raise OperatorError(f"the service is called {after.service}, and was {before.service}; {restart}")
    if role in before.roles and role in after.roles and (role in before.counted) != (role in after.counted):
        now, then = ("a count", "addresses") if role in after.counted else ("addresses", "a count")
        raise OperatorError(f"role {role} has {now} under `instances`, and had {then}; {restart}")


def _joined(service: Service, settings: Settings, vacancy: Vacancy) -> Who:
    joined = join(service, settings, vacancy)
    role, ordinal = split_instance(joined.instance)
    roster = Roster.of_service(service, joined.members, me=Member(role, ordinal, joined.address))
    return Who(joined.instance, roster, joined.confirmed_ns, (joined.warning,) if joined.warning else (), joined)


def _compile(
    service: Loaded[Service],
    settings: Settings,
    who: Who,
    generation: int,
    slots: Slots,
    gone: tuple[str, ...] = (),
    weights: Weights = NO_WEIGHTS,
) -> Snapshot:
    file = os.path.basename(service.document.path)
    snapshot = compile_snapshot(
        service.value, settings, who.instance, generation=generation, file=file, slots=slots, roster=who.roster
    )
    _refuse_clashes(snapshot, settings)
    return replace(
        snapshot,
        endpoints=weighed(snapshot.endpoints, weights),
        file=service.document.path,
        text=service.document.text,
        gone=gone,
        weights=to_plain(weights),
    )


def _as_the_kernel_lets(snapshot: Snapshot) -> tuple[Snapshot, tuple[str, ...]]:
    """The snapshot less the filters that the kernel refuses, and what to say about each. Denied is denied: with a reset."""
    refusals = {row.name: filter_refusal(row) for row in snapshot.endpoints if row.drop_filter}
    rows = tuple(
        replace(row, deny="reset", drop_filter="") if refusals.get(row.name) else row for row in snapshot.endpoints
    )
    notes = (f"{name}: `deny: drop` is a reset here: {why}" for name, why in refusals.items() if why)
    return replace(snapshot, endpoints=rows), tuple(notes)


def _refuse_clashes(snapshot: Snapshot, settings: Settings) -> None:
    """What relay itself serves must not be at an endpoint's address: one of the two would not be served."""
    own = {"admin.listen": settings.admin.listen, "names.listen": settings.names.listen}
    if settings.metrics is not None:
        own["metrics.listen"] = settings.metrics.listen
    for key, where in own.items():
        for row in snapshot.endpoints:
            if str(where) in row.listens:
                raise OperatorError(f"{key} {where} is also where {row.name} listens; change one of the two")


def _needs_restart(new: Settings, running: Settings) -> tuple[str, ...]:
    changed = [key for key in FIXED if getattr(new, key) != getattr(running, key)]
    if new.log.format != running.log.format:
        changed.append("log.format")
    return tuple(f"`{key}` in the settings changed; that takes a restart" for key in changed)
