"""Requests at a steady rate, each on a connection of its own; what became of each is printed as JSON.

    python bench/steady.py SOURCE TARGET:PORT REQUESTS RATE

Request n comes from port FIRST_PORT + n of SOURCE and asks for /n: so it is known in every log that it passes. The rate
does not wait for answers: a client that waits makes nobody else late.
"""

import asyncio
import gc
import json
import resource
import socket
import struct
import sys
import time
from dataclasses import dataclass

from relay.kernel.loop import loop_factory

FIRST_PORT = 10_000
REQUESTS_MAX = 50_000  # so many ports are left above that
PATIENCE_S = 10.0  # a client who has no answer by then has failed
BEGIN = "begun\n"


@dataclass(frozen=True, slots=True)
class Request:
    """One request: `answer` is what came, empty where that was no good answer; then `failure` says why.

    `began_s` and `ended_s` are CLOCK_MONOTONIC.
    """

    number: int
    began_s: float
    ended_s: float
    answer: str
    failure: str


async def _ask(number: int, source: str, to: tuple[str, int]) -> Request:
    loop, began_s, came, failure = asyncio.get_running_loop(), time.monotonic(), b"", ""
    with socket.socket() as sock:
        sock.setblocking(False)
        try:
            sock.bind((source, FIRST_PORT + number))
            async with asyncio.timeout(PATIENCE_S):
                await loop.sock_connect(sock, to)
                await loop.sock_sendall(sock, b"GET /%d HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n" % number)
                while part := await loop.sock_recv(sock, 65536):
                    came += part
        except TimeoutError:
            # A reset ends it in every forwarder, and so in every log; a FIN might be the end of a client who still listens.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            failure = f"no answer in {PATIENCE_S:.0f} s"
        except OSError as error:
            failure = error.strerror or str(error)
    head, _, body = came.partition(b"\r\n\r\n")
    is_good = not failure and head.startswith(b"HTTP/1.1 200 ") and body.endswith(b"\n")
    if not is_good:
        failure = failure or (f"an answer that is none: {came[:40]!r}" if came else "closed without an answer")
    return Request(number, began_s, time.monotonic(), body.decode().strip() if is_good else "", failure)


async def _all(source: str, to: tuple[str, int], count: int, rate: float) -> list[Request]:
    began_s = time.monotonic()
    tasks = []
    for number in range(count):
        if (early_s := began_s + number / rate - time.monotonic()) > 0:
            await asyncio.sleep(early_s)
        tasks.append(asyncio.create_task(_ask(number, source, to)))
    return await asyncio.gather(*tasks)


def main(source: str, target: str, requests: str, rate: str) -> None:
    """Ask, and print a line for each request: its fields as a JSON list."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    host, _, port = target.rpartition(":")
    gc.disable()  # thousands of tasks: its pauses would be taken for the forwarder's
    sys.stdout.write(BEGIN)
    sys.stdout.flush()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        asked = runner.run(_all(source, (host, int(port)), int(requests), float(rate)))
    for each in asked:
        sys.stdout.write(json.dumps([each.number, each.began_s, each.ended_s, each.answer, each.failure]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
