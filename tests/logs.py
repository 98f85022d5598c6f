"""What stands in a log's channel."""

import socket


def waiting(source: socket.socket) -> list[str]:
    """Every line that waits in the channel."""
    source.setblocking(False)
    lines: list[str] = []
    while True:
        try:
            lines += source.recv(1 << 20).decode().splitlines()
        except BlockingIOError:
            return lines
