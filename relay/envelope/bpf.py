"""An envelope as a program that the kernel runs on each packet to a listening socket: classic BPF. Pure.

Sources: Documentation/networking/filter.rst, linux/filter.h, socket(7) SO_ATTACH_FILTER.

The rules become the disjoint intervals of addresses that they decide for, and these a balanced tree of comparisons, so a
packet costs a dozen instructions and not one for each rule. An IPv6 address is compared word by word: where two
intervals meet inside a word's value, a tree for the next word hangs below it.
"""

import heapq
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Literal

PROGRAM_MAX_BYTES: Final = 4096 * 8  # linux/bpf_common.h, BPF_MAXINSNS: the kernel takes no more instructions
_JUMP_MAX: Final = 255  # a conditional jump has 8 bits for each of its ways; BPF_JA has 32

_LOAD_BYTE: Final = 0x30  # BPF_LD | BPF_B | BPF_ABS
_LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_SHIFT_RIGHT: Final = 0x74  # BPF_ALU | BPF_RSH | BPF_K
_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_NOT_BELOW: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K: how many bytes of the packet to keep
_ALL: Final = 0xFFFFFFFF
_NONE: Final = 0
_NETWORK_HEADER: Final = -0x100000 & 0xFFFFFFFF  # SKF_NET_OFF: offsets from here on count from the IP header

_SOURCE_OFFSET: Final = {4: 12, 6: 8}  # of the source address in the IP header (RFC 791 3.1, RFC 8200 3)
_WORDS: Final = {4: 1, 6: 4}
# `decide` holds these to the IPv4 rules, which this family's program does not have. The kernel drops them from the wire.
_MAPPED: Final = IPv6Network("::ffff:0:0/96")

_TCP_FLAGS: Final = 13  # from the TCP header on, with which what a filter is given begins (RFC 9293 3.1)
_SYN: Final = 0x02
_ACK: Final = 0x10

Network = IPv4Network | IPv6Network
_Start = tuple[int, bool]
"""From this address on, up to the next start, the envelope permits or it does not."""
_Cut = tuple[int, "bool | list[_Start]"]
"""From this value of a word on: the verdict, or what the words after it must be asked."""


def compile_filter(rules: Sequence[tuple[bool, Network]], permit_unmatched: bool, version: Literal[4, 6]) -> bytes:
    """The program (struct sock_filter, native) that drops the packets of denied sources of one IP version, and no others.

    `rules` are (permit, network) in the order of writing, of either version; the first that matches decides. Packets
    that are not of this version are kept. Empty: nobody is denied. The kernel refuses one of more than
    `PROGRAM_MAX_BYTES`: that is the caller's to look at.
    """
    starts = _starts(rules, permit_unmatched, version)
    if all(permit for _, permit in starts):
        return b""
    program = _Program(_NETWORK_HEADER + _SOURCE_OFFSET[version])
    tree = program.word(starts, _WORDS[version], 0)
    program.branch(_IF_EQUAL, version, tree, program.verdict(permit=True))
    program.add(_SHIFT_RIGHT, 4)
    program.add(_LOAD_BYTE, _NETWORK_HEADER)
    return program.assembled()


def newcomers_filter() -> bytes:
    """The program that drops what begins a connection, and nothing else: who has been answered already is let in."""
    instructions = (
        (_LOAD_BYTE, 0, 0, _TCP_FLAGS),
        (_AND, 0, 0, _SYN | _ACK),
        (_IF_EQUAL, 0, 1, _SYN),
        (_RETURN, 0, 0, _NONE),
        (_RETURN, 0, 0, _ALL),
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def _starts(rules: Sequence[tuple[bool, Network]], permit_unmatched: bool, version: Literal[4, 6]) -> list[_Start]:
    """The intervals that the rules come to. The first starts at 0, and no two neighbours have one verdict."""
    numbered = [(True, _MAPPED), *rules] if version == 6 else rules
    networks = sorted(
        (int(network.network_address), int(network.broadcast_address) + 1, number)
        for number, (_, network) in enumerate(numbered)
        if network.version == version
    )
    points = sorted({0, *(first for first, _, _ in networks), *(end for _, end, _ in networks)})
    starts: list[_Start] = []
    open_rules: list[tuple[int, int]] = []  # (number, end) of those that hold the point, and of some that end before it
    at = 0
    for point in points:
        while at < len(networks) and networks[at][0] == point:
            heapq.heappush(open_rules, (networks[at][2], networks[at][1]))
            at += 1
        while open_rules and open_rules[0][1] <= point:
            heapq.heappop(open_rules)
        permit = numbered[open_rules[0][0]][0] if open_rules else permit_unmatched
        if point < 1 << (32 * _WORDS[version]) and (not starts or starts[-1][1] != permit):
            starts.append((point, permit))
    return starts


def _cuts(starts: list[_Start], shift: int) -> list[_Cut]:
    """What one word decides, `shift` bits above the lowest: intervals of its values, and values inside which they meet."""
    cuts: list[_Cut] = []
    before = starts[0][1]
    at = 0
    while at < len(starts):
        value = starts[at][0] >> shift
        inside = at
        while at < len(starts) and starts[at][0] >> shift == value:
            at += 1
        group = [(start & ((1 << shift) - 1), permit) for start, permit in starts[inside:at]]
        if group[0][0]:
            group.insert(0, (0, before))
        before = group[-1][1]
        if len(group) == 1:
            cuts.append((value, before))
        else:
            cuts.append((value, group))
            if at == len(starts) or starts[at][0] >> shift > value + 1:
                cuts.append((value + 1, before))
    return [cut for cut in cuts if cut[0] < 1 << 32]


@dataclass(slots=True)
class _Program:
    """Instructions, the last one first: what is jumped to stands before the jump is written, so its way is known.

    A position counts from the program's end. Words of an address are loaded from `source` on.
    """

    source: int
    _code: list[tuple[int, int, int, int]] = field(default_factory=list)
    _verdicts: dict[bool, int] = field(default_factory=dict)

    def add(self, operation: int, operand: int, jump: tuple[int, int] = (0, 0)) -> int:
        """Put an instruction before the rest; its position."""
        self._code.append((operation, *jump, operand))
        return len(self._code) - 1

    def verdict(self, *, permit: bool) -> int:
        """The position of a verdict that a jump written next can reach."""
        at = self._verdicts.get(permit)
        if at is None or self._way(at) > _JUMP_MAX:
            at = self._verdicts[permit] = self.add(_RETURN, _ALL if permit else _NONE)
        return at

    def word(self, starts: list[_Start], words: int, index: int) -> int:
        """The position of code that asks word `index` of the address, and, where that must be, those after it."""
        cuts = _cuts(starts, 32 * (words - 1 - index))
        tree = self._search(cuts, words, index)
        return self.add(_LOAD_WORD, self.source + 4 * index) if len(cuts) > 1 else tree

    def _search(self, cuts: list[_Cut], words: int, index: int) -> int:
        if len(cuts) == 1:
            found = cuts[0][1]
            return self.verdict(permit=found) if isinstance(found, bool) else self.word(found, words, index + 1)
        middle = len(cuts) // 2
        above = self._search(cuts[middle:], words, index)
        below = self._search(cuts[:middle], words, index)
        return self.branch(_IF_NOT_BELOW, cuts[middle][0], above, below)

    def branch(self, test: int, operand: int, if_true: int, if_false: int) -> int:
        """A test and its two ways; one that is too long gets a jump of its own behind the test."""
        while max(self._way(if_true), self._way(if_false)) > _JUMP_MAX:
            if self._way(if_true) > _JUMP_MAX:
                if_true = self.add(_JUMP, self._way(if_true))
            else:
                if_false = self.add(_JUMP, self._way(if_false))
        return self.add(test, operand, (self._way(if_true), self._way(if_false)))

    def _way(self, position: int) -> int:
        """Instructions between the next one that is written and `position`."""
        return len(self._code) - 1 - position

    def assembled(self) -> bytes:
        """All of it, in the order that it runs."""
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in reversed(self._code))
