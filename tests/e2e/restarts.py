"""An application that is stopped and started, and clients who ask it all the time, each request a connection of its own."""

import contextlib
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.harness import HANG_S, eventually

_REQUEST: Final = re.compile(rb"GET /(\S*) HTTP/1.1\r\n.*?\r\n\r\n", re.DOTALL)
_PACE_S: Final = 0.01  # between two requests of one client


class Application:
    """An HTTP server at a port of its own. A context manager; `stop` and `start` as often as one likes in between."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.address = (host, port)
        self.target = f"{host}:{port}"
        self.answered: Counter[str] = Counter()  # requests by name, but for probes
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None

    def __enter__(self) -> "Application":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(self.address)
        listener.listen(1024)
        self._listener = listener
        self._thread = threading.Thread(target=self._accept, args=(listener,), name="application")
        self._thread.start()

    def stop(self) -> None:
        """Close the port. Who has been accepted is answered; who waits in the backlog is reset."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.shutdown(socket.SHUT_RDWR)
            self._thread.join()
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    def _answer(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            peer.settimeout(HANG_S)
            data = b""
            while not (asked := _REQUEST.match(data)):
                if not (more := peer.recv(65536)):
                    return
                data += more
            name = asked[1].decode()
            if name != "healthz":
                with self._lock:
                    self.answered[name] += 1
            peer.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(name)}\r\n\r\n{name}".encode())


@dataclass
class Load:
    """Requests to `address`. `failed` says what became of those that were not answered."""

    address: tuple[str, int]
    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def running(self, clients: int = 4) -> Iterator["Load"]:
        """So many clients meanwhile. Some requests are answered before, and some after what is done meanwhile."""
        threads = [threading.Thread(target=self._ask_on, args=(n,), name=f"client {n}") for n in range(clients)]
        for thread in threads:
            thread.start()
        try:
            self.go_on()
            yield self
            self.go_on()
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def go_on(self) -> None:
        """Wait until some more were answered, or one has failed."""
        enough = len(self.done) + 20
        eventually(lambda: len(self.done) >= enough or self.failed, "requests are answered")

    def _ask_on(self, client: int) -> None:
        number = 0
        while not self._stop.is_set():
            name = f"{client}-{number}"
            number += 1
            try:
                answer = ask(self.address, name)
            except OSError as error:
                self.failed.append(f"{name}: {error!r}")
            else:
                (self.done if answer.endswith(f"\r\n\r\n{name}") else self.failed).append(name)
            time.sleep(_PACE_S)  # the pace of the load


def ask(address: tuple[str, int], name: str) -> str:
    """The whole answer to one request. Raises OSError."""
    with socket.create_connection(address, HANG_S) as sock:
        sock.sendall(f"GET /{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = b""
        while more := sock.recv(65536):
            answer += more
        return answer.decode()
