"""The load generator and its servers: load/ compiled, run, and read."""

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from network import LOOPBACK, Side
from process import BenchError, Cpus, Process, pinned

BENCH = Path(__file__).resolve().parent
SOURCES = BENCH / "load"
LOAD = SOURCES / "load"
GRACE_S = 10.0  # a client ends by itself at its deadline; one that does not is stuck
HOLD_S = 120.0  # a bound for hanging: 20,000 connections take some seconds


def build_load() -> None:
    """Compiles load/ unless the program is newer. Raises BenchError without a C compiler."""
    files = sorted(SOURCES.glob("*.[ch]"))
    if LOAD.exists() and LOAD.stat().st_mtime > max(file.stat().st_mtime for file in files):
        return
    if shutil.which("cc") is None:
        raise BenchError("no C compiler for bench/load (apt-get install gcc libc6-dev)")
    new = LOAD.with_suffix(f".{os.getpid()}")  # another bench may run the one that is there, or compile it too
    command = ["cc", "-O2", "-Wall", "-Wextra", *(str(file) for file in files if file.suffix == ".c"), "-o", str(new)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"bench/load does not compile:\n{done.stderr}")
    new.replace(LOAD)


def start_server(stack: ExitStack, kind: str, where: Sequence[str], cpus: Cpus, log: Path, side: Side) -> None:
    """A server of this kind at these addresses (`address:port`), stopped when the stack ends."""
    server = Process("server", side.command([str(LOAD), kind, *where]), cpus=cpus, log=log, cwd=BENCH)
    stack.callback(server.stop)
    server.wait_until(lambda: server.output().endswith("]}\n"), "listening")


def hold(stack: ExitStack, address: tuple[str, int], count: int, cpus: Cpus, log: Path) -> None:
    """So many connections to the address, open and idle until the stack ends. Raises BenchError where one fails."""
    command = [str(LOAD), "hold", *map(str, address), str(count)]
    holder = Process("idle connections", command, cpus=cpus, log=log, cwd=BENCH)
    stack.callback(holder.stop)
    holder.wait_until(lambda: holder.output().endswith("}\n"), "open", HOLD_S)


def run_clients(
    arguments: Sequence[str], seconds: float, each: Sequence[Cpus], side: Side = LOOPBACK.near
) -> list[dict[str, float]]:
    """A client on each of these CPUs, at the same time; what each printed.

    Raises BenchError when one measures nothing, and when one is stuck. None is left running.
    """
    deadline_s = time.monotonic() + seconds + GRACE_S
    command = side.command([str(LOAD), *arguments])
    with ExitStack() as stack:
        clients = [_client(stack, command, cpus) for cpus in each]
        return [_figures(client, deadline_s) for client in clients]


def _client(stack: ExitStack, command: list[str], cpus: Cpus) -> subprocess.Popen[str]:
    client = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=pinned(cpus),
    )
    stack.enter_context(client)  # its end waits for the client's, and closes both pipes
    stack.callback(_end, client)
    return client


def _end(client: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        client.kill()


def _figures(client: subprocess.Popen[str], deadline_s: float) -> dict[str, float]:
    try:
        printed, complaint = client.communicate(timeout=max(0.0, deadline_s - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise BenchError(f"stuck {GRACE_S:.0f} s after the end of the measurement") from None
    if client.returncode:
        raise BenchError(complaint.strip().removeprefix("load: "))
    return {key: float(value) for key, value in json.loads(printed).items()}


def together(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    """Clients that ran at the same time as one: what they did is added up, and of times the longest counts."""
    added = ("ops", "bytes", "errors")
    return {key: (sum if key in added else max)(each[key] for each in figures) for key in figures[0]}
