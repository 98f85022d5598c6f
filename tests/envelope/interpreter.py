"""A classic BPF machine, as linux/filter.h and Documentation/networking/filter.rst describe it: the oracle of bpf.py.

It runs what the kernel would run, and checks what the kernel checks before it takes a program.
"""

import struct
from functools import cache
from ipaddress import IPv4Address, IPv6Address

NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF


@cache
def instructions(program: bytes) -> list[tuple[int, int, int, int]]:
    """The program's (code, jt, jf, k), after the checks of bpf_check_classic."""
    assert len(program) % 8 == 0
    found = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    assert 0 < len(found) <= 4096
    assert found[-1][0] == 0x06, "the last one returns"
    for at, (code, jt, jf, k) in enumerate(found):
        assert code in (0x20, 0x30, 0x54, 0x74, 0x05, 0x15, 0x35, 0x06), hex(code)
        if code == 0x05:
            assert at + 1 + k < len(found)
        elif code in (0x15, 0x35):
            assert at + 1 + max(jt, jf) < len(found)
        else:
            assert (jt, jf) == (0, 0)
    return found


def run(program: list[tuple[int, int, int, int]], header: bytes, segment: bytes = b"") -> tuple[int, int]:
    """How many bytes of a packet with this IP header and what follows it are kept (0: dropped), and in how many steps."""
    accumulator, at, steps = 0, 0, 0
    while True:
        code, jt, jf, k = program[at]
        at += 1
        steps += 1
        match code:
            case 0x20 | 0x30:
                size = 4 if code == 0x20 else 1
                part = (header[k - NETWORK_HEADER :] if k >= NETWORK_HEADER else segment[k:])[:size]
                if len(part) < size:
                    return 0, steps  # as the kernel: a load past the end drops the packet
                accumulator = int.from_bytes(part, "big")
            case 0x54:
                accumulator &= k
            case 0x74:
                accumulator >>= k
            case 0x05:
                at += k
            case 0x15:
                at += jt if accumulator == k else jf
            case 0x35:
                at += jt if accumulator >= k else jf
            case 0x06:
                return k, steps


def header(source: IPv4Address | IPv6Address) -> bytes:
    """An IP header (RFC 791, RFC 8200) with this source; its other fields are filled so that none looks like another."""
    if isinstance(source, IPv4Address):
        return bytes([0x45, *range(1, 12)]) + source.packed + bytes([0xAA] * 4)
    return bytes([0x60, *range(1, 8)]) + source.packed + bytes([0xAA] * 16)


def keeps(program: bytes, source: IPv4Address | IPv6Address) -> bool:
    """Whether a packet from there is kept. An empty program is none, and keeps all."""
    if not program:
        return True
    kept, _ = run(instructions(program), header(source))
    assert kept in (0, 0xFFFFFFFF)
    return kept != 0
