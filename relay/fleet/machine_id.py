"""What tells this machine, and the daemon that runs on it, from others."""

import hashlib
import hmac
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from relay.config import reading
from relay.config.wording import printable
from relay.errors import IdentityError, UnreadableError

NEW_MACHINE_ID: Final = "rm -f /etc/machine-id /var/lib/dbus/machine-id && systemd-machine-id-setup"
"""What gives a machine an id of its own. Where D-Bus has one, that is taken again: systemd-machine-id-setup(1)."""

BOOT_VARIABLE: Final = "RELAY_BOOT_ID"
"""The environment variable that has the boot's id where /proc does not show it: systemd.unit(5), %b."""

_UNKNOWN_BOOT: Final = "boot unknown"
_ID_MAX_BYTES: Final = 4096  # a machine id has 33; past this it is another file, of which the beginning tells enough
_FILE_MAX_BYTES: Final = 1024 * 1024


def machine_hash(path: str, service: str, *, known: bool = False) -> str:
    """The machine id in the file at `path`, hashed with the service's name as the key, as 32 hexadecimal digits.

    The id itself is a secret of the machine, and must not be given away: machine-id(5). `known`: the machine has its number
    by it already, from a program that took zeros, and keeps it. Raises IdentityError.
    """
    where = printable(path)
    fix = f"run `{NEW_MACHINE_ID}` as root, or write `machine_id` with another file into instance.yaml"
    try:
        content = reading.read_bytes(path, deadline_s=reading.DEADLINE_S, most_bytes=_FILE_MAX_BYTES)
    except UnreadableError as error:
        raise IdentityError(f"cannot tell this machine from others: {where}: {error.reason}; {fix}") from None
    machine_id = content[:_ID_MAX_BYTES].strip()
    if what := _fault(machine_id, known=known):
        raise IdentityError(f"cannot tell this machine from others: {where} {what}; {fix}")
    return hmac.new(service.encode(), machine_id, hashlib.sha256).hexdigest()[:32]


def _fault(machine_id: bytes, *, known: bool) -> str:
    """Why this tells no machine from others; empty: it does. Any text may, such as a serial number, but for zeros."""
    if machine_id in (b"", b"uninitialized"):  # the latter before a first boot has set it: machine-id(5)
        return "has no machine id"
    if not known and not machine_id.strip(b"0-"):
        return "has a machine id of zeros, which any machine may have"
    return ""


@dataclass(frozen=True, slots=True)
class Daemon:
    """One running relay: its main process, in its pid namespace, in this boot of the kernel.

    Its other processes may be replaced, and its program by a live upgrade: it stays the same one.
    """

    boot: str
    pid_namespace: int
    pid: int
    started_ticks: int

    def __str__(self) -> str:
        return f"{self.boot}:{self.pid_namespace}:{self.pid}:{self.started_ticks}"

    @classmethod
    def of(cls, pid: int, address: str) -> "Daemon":
        """The daemon whose main process has this pid, on the machine with this address. Raises OSError: there is none."""
        started = _started_ticks(pid)
        if started is None:
            raise ProcessLookupError(f"no process {pid}")
        # Clones of one image may boot alike to the clock tick, but not at one address.
        boot = _boot_id() or f"{_UNKNOWN_BOOT} {address}"
        return cls(boot.replace(":", "."), os.stat("/proc/self/ns/pid").st_ino, pid, started)

    def sees_dead(self, other: str) -> bool:
        """Whether `other`, a daemon's text, is one of this boot and pid namespace whose process is gone.

        False also for one that cannot be seen from here: on another machine, in another container.
        """
        return self._runs(other) is False

    def runs_here(self, other: str) -> int:
        """The pid of `other`, a daemon's text, if it runs in this boot and pid namespace; 0: not, or not to be seen."""
        return int(other.split(":")[2]) if self._runs(other) else 0

    def _runs(self, other: str) -> bool | None:
        """Whether it runs; None: that cannot be seen from here."""
        boot, _, rest = other.partition(":")
        numbers = rest.split(":")
        if (
            boot != self.boot
            or boot.startswith(_UNKNOWN_BOOT)
            or len(numbers) != 3
            or not all(each.isascii() and each.isdecimal() for each in numbers)
        ):
            return None
        namespace, pid, started = map(int, numbers)
        if namespace != self.pid_namespace or not 0 < pid < 2**31:
            return None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # another user's, and there
        try:
            now = _started_ticks(pid)
        except OSError:
            return None  # there, but hidden from us: proc(5), hidepid
        return now == started


def _boot_id() -> str:
    """Which boot of the kernel this is, as the kernel writes it; empty where that cannot be told.

    The kernel's own file comes first: a variable may have been handed down from elsewhere. Where the unit hides the file
    (ProcSubset=pid) there is the variable, in which systemd writes the same without dashes.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        pass
    try:
        return str(uuid.UUID(hex=os.environ.get(BOOT_VARIABLE, "")))
    except ValueError:
        return ""


def _started_ticks(pid: int) -> int | None:
    """When the process was started, in clock ticks since the boot; None for a zombie. Raises OSError."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name before that may hold anything
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
