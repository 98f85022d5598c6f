"""Tiny services for `relay emulate` to put behind endpoints: each answers with its own name."""

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

_Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_REQUEST_MAX_BYTES = 64 * 1024  # a demo reads no more of a request than that


Where = Path | tuple[str, int]
"""A Unix socket's path, or an address and a port."""


async def serve_http(where: Where, name: str, tls: ssl.SSLContext | None = None) -> asyncio.Server:
    """Answer every HTTP request there with one line that says `name`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                body = f"hello from {name}\n".encode()
                head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        writer.close()

    return await _serve(answer, where, tls)


async def serve_echo(where: Where, name: str) -> asyncio.Server:
    """Send every line that comes in there back, behind `name`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                writer.write(f"{name}: ".encode() + line)
                await writer.drain()
        writer.close()

    return await _serve(answer, where)


async def _serve(answer: _Answer, where: Where, tls: ssl.SSLContext | None = None) -> asyncio.Server:
    if isinstance(where, Path):
        return await asyncio.start_unix_server(answer, where, limit=_REQUEST_MAX_BYTES, ssl=tls)
    return await asyncio.start_server(answer, *where, limit=_REQUEST_MAX_BYTES, ssl=tls)


def self_signed(directory: Path) -> ssl.SSLContext | None:
    """A server context with a certificate made for the occasion; None where the openssl command is missing."""
    openssl = shutil.which("openssl")
    if openssl is None:
        return None
    key, certificate = directory / "demo.key", directory / "demo.crt"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"),
            *("-subj", "/CN=relay demo", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context
