"""Logs: records travel as JSON lines to one writer, and never hold up the process that made them.

Every process of the daemon puts its lines into one socket; the control process takes them out in a thread and
writes them to standard error: as JSON, or as text when a person is reading. A full socket drops the line and counts
it, because a slow journal must not stop a byte that is being forwarded.
"""

import contextlib
import json
import os
import socket
import sys
import time
from typing import Any, Final, Literal

Level = Literal["debug", "info", "warning", "error"]
LEVELS: Final[dict[str, int]] = {"debug": 0, "info": 1, "warning": 2, "error": 3}
_SYSLOG: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3}  # sd-daemon(3), "<N>" before a line
_BATCH_LINES: Final = 64
# One message of a SEQPACKET socket must fit its send buffer (212,992 by default) many times over.
_MESSAGE_BYTES: Final = 32 * 1024
_TEXT_MAX: Final = 32 * 1024  # of one fact, and of all facts of a list: the rest of a traceback helps nobody
_END: Final = b"\0"  # a message that is no line: the writer has written all before it, and stops


class Logger:
    """Where a process puts its lines. `level` is the least that is written."""

    def __init__(self, sink: socket.socket, process: str, level: Level) -> None:
        self._sink = sink
        self._process = process
        self._lines: list[str] = []
        self._second = 0
        self._second_text = ""
        self.dropped = 0
        self.level: Level = level

    def wants(self, level: Level) -> bool:
        """Whether a line of this level would be written: ask before building a costly one."""
        return LEVELS[level] >= LEVELS[self.level]

    def event(self, level: Level, event: str, **facts: Any) -> None:
        """One line, sent at once. `facts` must be JSON values."""
        if self.wants(level):
            record = {"time": self.now(), "level": level, "event": event, "process": self._process, **facts}
            record = {key: _bounded(value) for key, value in record.items()}
            self._lines.append(json.dumps(record, default=str))
            self.flush()

    def add(self, line: str) -> None:
        """One line that is JSON already, sent with the next `flush`."""
        self._lines.append(line)
        if len(self._lines) >= _BATCH_LINES:
            self.flush()

    def now(self) -> str:
        """The time as RFC 3339 UTC with milliseconds."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{int((now - second) * 1000):03d}Z"

    def flush(self) -> None:
        """Send what is waiting. Lines that nobody has room for are dropped and counted in `dropped`."""
        lines, self._lines = self._lines, []
        start = size = 0
        for end, line in enumerate(lines):
            size += len(line)
            if size >= _MESSAGE_BYTES:
                self._send(lines[start : end + 1])
                start, size = end + 1, 0
        if start < len(lines):
            self._send(lines[start:])

    def _send(self, lines: list[str]) -> None:
        try:
            self._sink.send(("\n".join(lines) + "\n").encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            self.dropped += len(lines)


def _bounded(value: Any) -> Any:
    """A fact that fits a message."""
    if isinstance(value, str) and len(value) > _TEXT_MAX:
        return value[:_TEXT_MAX] + " …"
    if isinstance(value, list):
        kept: list[Any] = []
        room = _TEXT_MAX
        for item in value:
            room -= len(str(item))
            if room < 0:
                return [*kept, f"and {len(value) - len(kept)} more"]
            kept.append(item)
    return value


def channel() -> tuple[socket.socket, socket.socket]:
    """The socket that all lines go through: (writing end, reading end)."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def copy_forever(lines: socket.socket, format_name: Literal["json", "text", "auto"]) -> None:
    """Take `lines` and write them to standard error, until `end`. Runs in a thread."""
    as_text = format_name == "text" or (format_name == "auto" and sys.stderr.isatty())
    prefix = not as_text and _is_journal()
    while (data := lines.recv(_MESSAGE_BYTES * 4)) not in (b"", _END):
        write(data.decode(errors="replace"), as_text=as_text, prefix=prefix)


def _is_journal() -> bool:
    """Whether standard error is the journal: systemd.exec(5), JOURNAL_STREAM names its device and inode."""
    try:
        at = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{at.st_dev}:{at.st_ino}"


def end(sink: socket.socket) -> None:
    """Let the writer stop, after what was sent before."""
    with contextlib.suppress(OSError):
        sink.send(_END, socket.MSG_DONTWAIT)


def write(lines: str, *, as_text: bool, prefix: bool) -> None:
    """Write JSON lines to standard error: `as_text` for people, `prefix` with the journal's priority."""
    if as_text or prefix:
        lines = "".join(_render(line, as_text=as_text) for line in lines.splitlines())
    data = lines.encode()
    while data:
        try:
            data = data[os.write(2, data) :]
        except OSError:
            return  # standard error is closed: there is nowhere to say so


def _render(line: str, *, as_text: bool) -> str:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:
        return line + "\n"
    if not as_text:
        return f"<{_SYSLOG.get(record.get('level', 'info'), 6)}>{line}\n"
    head = f"{record.pop('time', '')[11:23]} {record.pop('level', ''):<7} {record.pop('event', '')}"
    message = record.pop("message", "")
    facts = " ".join(f"{key}={value}" for key, value in record.items() if value not in ("", None))
    return " ".join(part for part in (head, message, facts) if part) + "\n"
