"""The ledger: shared memory that outlives every process, and the only place where a count or a flow's facts stand.

One memfd, made by the keeper and inherited by everybody:

    header | health of targets | for each worker: words | endpoints' counters | targets | flow records | tables of sources

Every row has exactly one writer, the worker it belongs to (of the health, control), so no lock and no atomic operation is
needed; whoever wants a total adds up the workers. Words are 8 bytes, native and aligned: CPython stores one with a single
`memcpy` of 8 bytes, which compilers turn into one store, so a reader never sees half of one.

What a crash can lose: a SIGKILL cuts a process between two instructions, so what it stored is exactly a prefix of
what it meant to store, in program order. A flow record therefore carries its state in its first word, stored last
when a flow begins and cleared first when it ends: a record with a state is complete, whenever the kill came.
"""

import mmap
import os
import sys
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Final

from relay import calls
from relay.errors import RelayBug
from relay.ledger import layout, record, source_tables
from relay.ledger.copying import CopyBuffer
from relay.ledger.layout import (
    CAUSES,
    CAUSES_MAX,
    CONNECT_BOUNDS_S,
    DURATION_BOUNDS_S,
    FIRST_WORKER,
    MAGIC,
    RECORD_BYTES,
    SLOT_WORDS,
    SLOTS,
    SOURCE_WORDS,
    TARGET_WORDS,
    TARGETS,
    VERSION,
    WORD_BYTES,
    WORKER_WORDS,
    DaemonWord,
    TargetCount,
    Word,
)
from relay.ledger.record import FlowRecord

# Each of these is a 4-byte integer's place in a record (record.py), counted from the state at 0.
_INT: Final = 4
_RECORD_INTS: Final = RECORD_BYTES // _INT
_SLOT: Final = 1
_CLIENT: Final = 2
_TARGET: Final = 3
_PIPES: Final = 4
_FLAGS: Final = 14
_TARGET_SLOT: Final = 15
# And each of these a word's.
_RECORD_WORDS: Final = RECORD_BYTES // WORD_BYTES
_STARTED: Final = 4
_BYTES: Final = 5
_LOW_BYTE: Final = 0 if sys.byteorder == "little" else _INT - 1
_ENDED: Final = {cause: n << layout.Flag.CAUSE_SHIFT for n, cause in enumerate(CAUSES)}
_LOW_FLAGS: Final = (1 << layout.Flag.CAUSE_SHIFT) - 1

NO_PIPE: Final = (-1, -1)


def owner_of(record: int, direction: int) -> int:
    """How SCRATCH_OWNER names a flow's direction. Never 0, which is nobody."""
    return record * 2 + direction + 1


class Ledger:
    """The whole of the shared memory, for reading totals; `worker(n)` gives the part that worker n writes."""

    def __init__(self, fd: int, memory: mmap.mmap) -> None:
        self.fd = fd
        self._memory = memory
        self.words = memoryview(memory).cast("Q")
        if self.words[DaemonWord.MAGIC] != MAGIC or self.words[DaemonWord.VERSION] != VERSION:
            raise RelayBug(f"ledger has layout {self.words[DaemonWord.VERSION]}, this program has {VERSION}")
        self.workers = self.words[DaemonWord.WORKERS]
        self.flows_per_worker = self.words[DaemonWord.FLOWS_PER_WORKER]
        # Once: a later program may have its parts elsewhere in a grown ledger (convert.py) while this one still works.
        self._first_worker = self.words[DaemonWord.WORKERS_AT]

    @classmethod
    def create(cls, workers: int, flows_per_worker: int, now_ns: int) -> "Ledger":
        """A new ledger of zeros for so many workers; `now_ns` is CLOCK_REALTIME. Pages cost memory once written."""
        fd = os.memfd_create("relay-ledger", os.MFD_CLOEXEC)
        part_bytes = worker_bytes(flows_per_worker)
        size = FIRST_WORKER * WORD_BYTES + workers * part_bytes
        os.ftruncate(fd, size)
        memory = mmap.mmap(fd, size)
        words = memoryview(memory).cast("Q")
        words[DaemonWord.VERSION] = VERSION
        words[DaemonWord.WORKERS] = workers
        words[DaemonWord.FLOWS_PER_WORKER] = flows_per_worker
        words[DaemonWord.STARTED_NS] = now_ns
        words[DaemonWord.WORKERS_AT] = FIRST_WORKER
        for n in range(workers):
            words[FIRST_WORKER + n * part_bytes // WORD_BYTES + Word.LAYOUT] = VERSION
        source_tables.append(fd)
        words[DaemonWord.MAGIC] = MAGIC  # last: a header with the magic is whole
        words.release()
        return cls.attach(fd)

    @classmethod
    def attach(cls, fd: int) -> "Ledger":
        """The ledger in a memory file that another program made. Raises RelayBug for another layout: see convert.py."""
        return cls(fd, mmap.mmap(fd, os.fstat(fd).st_size))

    def worker(self, index: int) -> "WorkerLedger":
        """The part that worker `index` (from 0) writes."""
        if not 0 <= index < self.workers:
            raise RelayBug(f"no worker {index} in a ledger of {self.workers}")
        return WorkerLedger(self._memory, self.words, index, self.flows_per_worker, self._first_worker)

    def total(self, slot: int, count: int) -> int:
        """The sum over all workers of one counter of the endpoint in `slot`."""
        return sum(self.words[self.worker(n).counts_at(slot) + count] for n in range(self.workers))

    def target_total(self, slot: int, count: int) -> int:
        """The sum over all workers of one counter of a target."""
        return sum(self.words[at + count] for at in self.worker(0).target_counts_at(slot))

    def active(self, slot: int) -> int:
        """Flows of the endpoint that are open now: every one that was accepted and has not been closed."""
        return self.total(slot, layout.Count.ACTIVE)

    def flows(self, state: int | None = None) -> Iterator[FlowRecord]:
        """Every open flow of every worker; of those that stand at this state alone."""
        for n in range(self.workers):
            yield from self.worker(n).flows(state)


class WorkerLedger:
    """What one worker writes: its words, its counters, its flow records."""

    def __init__(self, memory: mmap.mmap, words: memoryview, index: int, flows: int, first: int) -> None:
        stride = worker_bytes(flows) // WORD_BYTES
        base = first + index * stride
        self._all_bases = tuple(first + n * stride for n in range(words[DaemonWord.WORKERS]))
        self.index = index
        self.words = words
        self.numbers = memoryview(memory).cast("q")  # the same for who counts: nothing comes to 2^63
        self._words = self.numbers
        self.claims: dict[int, int] = {}  # how often a target's row got another holder here, by slot
        self.capacity_flows = flows
        self.memory = memory
        self._base = base
        self._high = base + Word.FLOWS_HIGH
        self._ending = base + Word.ENDING
        self._counts = base + WORKER_WORDS
        self.all_sources_at = source_tables.tables_at(words)
        self._targets_from_base = WORKER_WORDS + SLOTS * SLOT_WORDS + SOURCE_WORDS
        self._records = (base + self._targets_from_base + TARGETS * TARGET_WORDS) * WORD_BYTES
        self.records_at = self._records // WORD_BYTES  # index into `words` of its first flow record
        records = memoryview(memory)[self._records : self._records + flows * RECORD_BYTES]
        self._bytes, self._ints = records, records.cast("i")  # of this worker's records alone
        self.copying = CopyBuffer(memory, base)

    def __getitem__(self, word: int) -> int:
        return int(self._words[self._base + word])

    def __setitem__(self, word: int, value: int) -> None:
        self._words[self._base + word] = value

    def counts_at(self, slot: int) -> int:
        """Index into `words` of the first counter of an endpoint: `words[at + layout.Count.SENT] += n`."""
        return self._counts + slot * SLOT_WORDS

    def claim(self, slot: int, name: str) -> int:
        """Index into `words` of the first counter of the endpoint `name`, at nought if another had it before."""
        at, holder = self.counts_at(slot), _holder(name)
        if self.words[at + layout.Count.HOLDER] != holder:
            self.clear(slot)
            self.words[at + layout.Count.HOLDER] = holder
        return at

    def claim_target(self, slot: int, name: str) -> int:
        """The same of the target `name`: `words[at + TargetCount.ACTIVE]`."""
        at, holder = self.target_counts_at(slot)[self.index], _holder(name)
        if self.words[at + TargetCount.HOLDER] != holder:
            for word in range(at, at + TARGET_WORDS):
                self.words[word] = 0
            self.words[at + TargetCount.HOLDER] = holder
            self.claims[slot] = self.claims.get(slot, 0) + 1
        return at

    def recount_target(self, slot: int) -> None:
        """Forget who is connected to a target: a predecessor's connections are about to be counted anew."""
        self.words[self.target_counts_at(slot)[self.index] + TargetCount.ACTIVE] = 0

    def target_counts_at(self, slot: int) -> tuple[int, ...]:
        """The same of a target, in every worker."""
        return tuple(base + self._targets_from_base + slot * TARGET_WORDS for base in self._all_bases)

    def all_counts_at(self, slot: int) -> tuple[int, ...]:
        """The same in every worker, for a total."""
        return tuple(base + WORKER_WORDS + slot * SLOT_WORDS for base in self._all_bases)

    def clear(self, slot: int) -> None:
        """Zero the counters of a slot that no endpoint holds any more, so that its next holder starts at nought."""
        at = self.counts_at(slot)
        for word in range(at, at + SLOT_WORDS):
            self.words[word] = 0

    def reconcile(self, slot: int, live: int, ended: list[str]) -> None:
        """Make accepted = closed + live again, after a crash between two of these stores.

        `live` flows of the endpoint go on; `ended` are the causes of the others, those first whose end is the least likely
        to have been counted. One worker does one thing at a time, so at most one flow is recorded and not yet accepted,
        or at its end and not yet counted as closed, and never both.
        """
        at = self.counts_at(slot)
        closed = at + layout.Count.CLOSED
        # The flows that go on are counted in again.
        self.words[at + layout.Count.ACTIVE] = self.words[at + layout.Count.HELD] = 0
        for cause in (*ended, None):
            # All that there is room for: a program to come may have counted causes that this one does not know.
            missing = self.words[at + layout.Count.ACCEPTED] - sum(self.words[closed : closed + CAUSES_MAX]) - live
            if missing <= 0 or cause is None:
                self.words[at + layout.Count.ACCEPTED] -= missing
                return
            self.words[closed + CAUSES.index(cause)] += 1

    def observe_connect(self, at: int, value_s: float) -> None:
        """Add one value to the endpoint's `relay_connect_duration_seconds`."""
        self._words[at + layout.Count.CONNECT_BUCKETS + _bucket(CONNECT_BOUNDS_S, value_s)] += 1
        self._words[at + layout.Count.CONNECT_SUM_NS] += int(value_s * 1e9)

    def observe_duration(self, at: int, value_s: float) -> None:
        """Add one value to the endpoint's `relay_connection_duration_seconds`."""
        self._words[at + layout.Count.DURATION_BUCKETS + _bucket(DURATION_BOUNDS_S, value_s)] += 1
        self._words[at + layout.Count.DURATION_SUM_NS] += int(value_s * 1e9)

    def word_index(self, word: int, worker: int | None = None) -> int:
        """Index into `words` of one of this worker's words, or of another's, for a store or a look that must cost nothing."""
        return (self._base if worker is None else self._all_bases[worker]) + word

    def begin(
        self,
        index: int,
        state: int,
        slot: int,
        client_fd: int,
        target_fd: int,
        started_ns: int,
        peer: str,
        target_slot: int = -1,
    ) -> None:
        """Record a new flow. `target_fd` is -1 while there is no target; `peer` is `address:port`."""
        if index >= self._words[self._high]:
            self._words[self._high] = index + 1
        ints, at = self._ints, index * _RECORD_INTS
        ints[at + _SLOT], ints[at + _CLIENT], ints[at + _TARGET] = slot, client_fd, target_fd
        for n in range(_PIPES, _PIPES + 4):
            ints[at + n] = -1
        ints[at + _FLAGS], ints[at + _TARGET_SLOT] = 0, target_slot
        words, word = self._words, self.records_at + index * _RECORD_WORDS
        words[word + _STARTED] = started_ns
        words[word + _BYTES] = words[word + _BYTES + 1] = 0
        text_at = self.copying.memory_at + self._records + index * RECORD_BYTES + record.CLIENT_AT
        calls.put_text(text_at, peer, record.CLIENT_BYTES)
        ints[at] = state  # last: see the module's text

    def advance(self, index: int, state: int, target_fd: int) -> None:
        """The flow has a target socket (-1: none now), and stands at `state`."""
        at = index * _RECORD_INTS
        self._ints[at + _TARGET] = target_fd
        self._ints[at] = state

    def moved(self, index: int, received_bytes: int, sent_bytes: int) -> None:
        """The flow's bytes so far, both ways."""
        at = self.records_at + index * _RECORD_WORDS + _BYTES
        self._words[at] = received_bytes
        self._words[at + 1] = sent_bytes

    def hold(self, index: int, direction: int, pipe: tuple[int, int]) -> None:
        """The flow holds a pipe ((-1, -1): none) in this direction, 0 to the target and 1 to the client."""
        at = index * _RECORD_INTS + _PIPES + direction * 2
        self._ints[at], self._ints[at + 1] = pipe

    def flag(self, index: int, flags: int) -> None:
        """Add flags to the flow's record."""
        self._ints[index * _RECORD_INTS + _FLAGS] |= flags

    def identify(self, index: int, who: bytes, flags: int) -> None:
        """The flow's client is another one, as the edge says; `who`: see record.py, `by_text` and `by_ends`.

        Before the header that says so is taken from the socket.
        """
        at = index * RECORD_BYTES + record.CLIENT_AT
        self._bytes[at : at + record.CLIENT_BYTES] = who
        self.flag(index, flags)

    def pass_on(self, index: int, slot: int) -> None:
        """The flow is the endpoint's in this slot from here on; to be counted at both."""
        self._words[self._ending] = index + 1
        self._ints[index * _RECORD_INTS + _SLOT] = slot

    def aim(self, index: int, target_slot: int) -> None:
        """The flow goes to this target."""
        self._ints[index * _RECORD_INTS + _TARGET_SLOT] = target_slot

    def ending(self, index: int, cause: str) -> None:
        """The flow is over for this cause, and its descriptors are about to be closed; `end` follows."""
        at = index * _RECORD_INTS
        self._words[self._ending] = index + 1
        self._ints[at + _FLAGS] = self._ints[at + _FLAGS] & _LOW_FLAGS | _ENDED[cause]
        self._ints[at] = layout.State.END

    def end(self, indices: Iterable[int]) -> None:
        """These flows are over and nothing of them is left."""
        for index in indices:
            self._ints[index * _RECORD_INTS] = 0

    def flows(self, state: int | None = None) -> Iterator[FlowRecord]:
        """Every open flow of this worker; of those that stand at this state alone.

        Reading beside the writer is safe: a torn record shows old byte counts.
        """
        memory, first, high = self.memory, self._records, self[Word.FLOWS_HIGH]
        # The first byte of a record is its state. After a busy day most are free, and a new worker must not look at each.
        states = memory[first + _LOW_BYTE : first + high * RECORD_BYTES : RECORD_BYTES]
        for index in [index for index, at in enumerate(states) if (at if state is None else at == state)]:
            if (found := record.read(memory, first + index * RECORD_BYTES, self.index, index)) is not None:
                yield found  # else it was freed meanwhile


def _bucket(bounds_s: tuple[float, ...], value_s: float) -> int:
    """The number of the first bound that the value does not exceed. No bisection: most connections are short."""
    n = 0
    while n < len(bounds_s) and value_s > bounds_s[n]:
        n += 1
    return n


def _holder(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def worker_bytes(flows: int) -> int:
    """How large one worker's part is: whole pages."""
    words = WORKER_WORDS + SLOTS * SLOT_WORDS + SOURCE_WORDS + TARGETS * TARGET_WORDS
    raw = words * WORD_BYTES + flows * RECORD_BYTES
    return -(-raw // mmap.PAGESIZE) * mmap.PAGESIZE
