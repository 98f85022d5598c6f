"""The machine that the bench runs on: what its figures depend on, its CPUs, its ports, its descriptors."""

import contextlib
import os
import platform
import random
import re
import resource
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from process import BenchError, Cpus

LOWEST_PORT = 10000
BUSY_LOAD = 0.3  # above it others take so much of the machine that figures are not for publication


@dataclass(frozen=True, slots=True)
class Placement:
    """Which CPUs each part runs on. There is a generator and a server for each entry of `loads` and `servers`."""

    forwarder: Cpus
    loads: tuple[Cpus, ...]
    servers: tuple[Cpus, ...]

    def __str__(self) -> str:
        if self.forwarder is None:
            return "none"
        parts = {"forwarder": [self.forwarder], "generator": self.loads, "server": self.servers}
        numbers = {part: sorted(cpu for cpus in given for cpu in cpus or ()) for part, given in parts.items()}
        return ", ".join(f"{part} {' and '.join(map(str, cpus))}" for part, cpus in numbers.items())


def placement(pin: str) -> Placement:
    """Where everything runs, for a `--pin` of the command line.

    auto: the forwarder alone on one CPU; generator and server share another, or have one each from three CPUs on.
    one: everything on the same CPU, so no wake-up crosses CPUs and the rate follows the CPU time of all three.
    none, or auto on a machine with one CPU: nowhere in particular.
    """
    cpus = [frozenset({cpu}) for cpu in sorted(os.sched_getaffinity(0))]
    if pin == "one":
        return Placement(cpus[0], (cpus[0],), (cpus[0],))
    if pin == "none" or len(cpus) < 2:
        return Placement(None, (None,), (None,))
    return Placement(cpus[0], (cpus[1],), (cpus[2] if len(cpus) > 2 else cpus[1],))


def side_by_side(count: int) -> Placement:
    """A generator and a server on each of `count` CPUs, and the forwarder on all of these. BenchError without so many."""
    cpus = sorted(os.sched_getaffinity(0))[:count]
    if len(cpus) < count:
        raise BenchError(f"it takes {count} CPUs")
    each = tuple(frozenset({cpu}) for cpu in cpus)
    return Placement(frozenset(cpus), each, each)


def machine_facts() -> dict[str, str]:
    """What the figures depend on, for the head of the report."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "kernel": platform.release(),
        "CPU": f"{model[0].partition(': ')[2] if model else platform.machine()}, {os.cpu_count()} of them",
        "governor": governor.read_text().strip() if governor.exists() else "not told (a virtual machine?)",
        "load before": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "Python": f"{platform.python_version()} ({sys.executable})",
    }


def warning_of_load(load: float) -> str:
    """What to say of a load average before the bench; empty where it is low enough."""
    if load <= BUSY_LOAD:
        return ""
    return f"WARNING: the load is {load:.2f}, above {BUSY_LOAD}: others are at work, and the figures are not good"


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 nobody is bound to.

    They are below the range from which the kernel takes clients' ports (ip(7)), so no connection of the bench takes one
    of them before the forwarder does. In RELAY_BENCH_PORTS (`10000-10099`) whoever runs other programs as well can say
    which ports are the bench's.
    """
    if given := os.environ.get("RELAY_BENCH_PORTS"):
        if not re.fullmatch(r"\d+-\d+", given):
            raise BenchError(f"RELAY_BENCH_PORTS is `{given}`; write two ports, as in 10000-10099")
        lowest, highest = (int(port) for port in given.split("-"))
        highest += 1
    else:
        lowest, highest = LOWEST_PORT, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if highest - lowest < 100 * count:
            raise BenchError(
                f"net.ipv4.ip_local_port_range starts at {highest}: start it at 32768, the kernel's default"
            )
    found: list[int] = []
    for port in random.sample(range(lowest, highest), highest - lowest):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise BenchError(f"fewer than {count} free ports between {lowest} and {highest}")


@contextlib.contextmanager
def descriptors(count: int) -> Iterator[int]:
    """What is started meanwhile may have so many descriptors, or as many as can be had; how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_enough = hard == resource.RLIM_INFINITY or hard >= count
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard if is_enough else count))
    except (OSError, ValueError):  # without CAP_SYS_RESOURCE, or above nr_open (getrlimit(2), proc(5))
        count = hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield count
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
