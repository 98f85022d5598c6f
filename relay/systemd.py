"""What the service manager is told: sd_notify(3), by hand, because it is one datagram."""

import os
import socket
import time


def notify(*lines: str) -> None:
    """Send lines such as `READY=1` or `STATUS=…` to the service manager; without one, nothing happens.

    Raises nothing: a service manager that does not listen must not stop the service.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    # sd_notify(3): "@" stands for the NUL byte of an abstract socket's name.
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode(), address)
    except OSError:
        return


def reloading() -> None:
    """RELOADING=1 with the time stamp that Type=notify-reload asks for; READY=1 must follow."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_s() -> float | None:
    """How often at the most the service manager wants a WATCHDOG=1, in seconds; None: not at all."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not usec.isdecimal() or int(usec) == 0 or pid != str(os.getpid()):
        return None
    return int(usec) / 1e6
