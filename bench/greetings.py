"""What a client of the bench says first, where the endpoint looks at it."""

import ssl
import struct

EDGES = tuple(f"127.0.0.{n}" for n in range(2, 10))
"""The addresses that connections of `proxy` come from: the first of the generator's. Only they are let in."""

_PROXY_V2_TCP4 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c"  # section 2.2 of the specification
_CLIENT, _SERVER = bytes((203, 0, 113, 7)), bytes((198, 51, 100, 10))


def client_hello() -> bytes:
    """The first flight of a TLS client as OpenSSL sends it, some 500 bytes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2", "http/1.1"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        context.wrap_bio(incoming, outgoing, server_hostname="www.example.com").do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake needs two sides")


def request() -> bytes:
    """An HTTP request without a body."""
    return b"GET / HTTP/1.1\r\nHost: www.example.com\r\nAccept: */*\r\n\r\n"


def proxied_byte() -> bytes:
    """A PROXY header of version 2 as HAProxy's `send-proxy-v2` writes it, and the client's first byte."""
    return _PROXY_V2_TCP4 + _CLIENT + _SERVER + struct.pack("!HH", 50000, 80) + b"\0"


GREETINGS = {"https": client_hello, "http": request, "proxy": proxied_byte}
"""By what the endpoint has to do. The others get one byte."""
