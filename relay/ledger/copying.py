"""Copying one message from socket to socket through the ledger, so that whoever dies in the middle of it loses no byte.

recv(2) returns its count in a register, which dies with the process. recvmmsg(2) and sendmmsg(2) store theirs in memory
(`msg_len`), and that memory is the ledger: the kernel itself writes down what came, and what went. The bytes stand there too.

The order of these stores is all that there is to it:

    received = 0              nothing is pending
    sent = 0
    owner = the lane
    recvmmsg(source)          the kernel stores `received`: pending is buffer[0:received]
    sendmmsg(sink)            the kernel stores `sent`: pending is buffer[sent:received]
    write(the lane's pipe)    what the sink did not take, into a pipe that was empty
    received = 0

So a successor knows what is pending, also when it dies itself while it brings that home: what stands in the owner's pipe
by then was written there by one that died before it could store the nought. The pages are locked (mlock(2)): a store of the
kernel's that has to wait for a page is given up when its process is killed.
"""

import ctypes
import errno
import mmap
import os
import stat
import struct
from typing import Final

from relay import calls
from relay.ledger.layout import COPY_AT_WORDS, COPY_BYTES, WORD_BYTES, WORKER_WORDS, Word

# linux/socket.h. struct msghdr: name, its length, parts, how many, control, its length, flags; struct mmsghdr has the
# length of the message behind it; struct iovec: where, how many bytes.
_MSGHDR: Final = "@PIPLPLi0L"
_MMSGHDR: Final = struct.Struct(_MSGHDR + "I0L")
_IOVEC: Final = struct.Struct("@PL")
_LENGTH_AT: Final = struct.calcsize(_MSGHDR)
_INT: Final = struct.calcsize("I")
_SIZE: Final = struct.calcsize("L")  # of a size_t
_ROOM_AT: Final = _MMSGHDR.size + struct.calcsize("P")  # where a header's struct iovec says how many bytes


class CopyBuffer:
    """Where a worker's message stands while it goes from one socket to the other, and what the kernel says of it."""

    def __init__(self, memory: mmap.mmap, part_at: int) -> None:
        """`part_at` is the index of the worker's first word in the ledger's memory. Nothing is changed before `prepare`."""
        first = part_at * WORD_BYTES
        receive, send = first + Word.COPY_RECEIVE * WORD_BYTES, first + Word.COPY_SEND * WORD_BYTES
        self.memory_at = base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._memory, self._part_at = memory, part_at
        self._headers = receive, send
        self._words = memoryview(memory).cast("q")
        self._owner = part_at + Word.COPY_OWNER
        self._lengths = memoryview(memory).cast("I")
        self._received, self._sent = (receive + _LENGTH_AT) // _INT, (send + _LENGTH_AT) // _INT
        self._sizes = memoryview(memory).cast("L")
        self._room, self._going = (receive + _ROOM_AT) // _SIZE, (send + _ROOM_AT) // _SIZE
        self._receive_at, self._send_at = base + receive, base + send
        self._bytes_at = base + first + COPY_AT_WORDS * WORD_BYTES
        self._locked = (base + first, WORKER_WORDS * WORD_BYTES), (self._bytes_at, COPY_BYTES)

    def prepare(self) -> bool:
        """Be ready for messages of this process, once nothing is pending; False where the kernel locks no memory for it."""
        for at, count in self._locked:
            if not calls.lock_memory(at, count):
                return False
        self._lengths[self._received] = 0
        for at in self._headers:  # addresses of this process: those of the one before mean nothing here
            _MMSGHDR.pack_into(self._memory, at, 0, 0, self.memory_at + at + _MMSGHDR.size, 1, 0, 0, 0, 0)
            _IOVEC.pack_into(self._memory, at + _MMSGHDR.size, self._bytes_at, COPY_BYTES)
        return True

    def limit(self, most_bytes: int) -> int:
        """Take in no more than that, and no more than there is room for, from now on; how much that is."""
        self._sizes[self._room] = room = min(most_bytes, COPY_BYTES)
        return room

    def take_in(self, source_fd: int, owner: int) -> int:
        """Read what has come, for this lane: how many bytes; 0 at the end of the stream, or `-errno`."""
        self._lengths[self._received] = 0
        self._lengths[self._sent] = 0
        self._words[self._owner] = owner
        done = calls.receive_message(source_fd, self._receive_at)
        return self._lengths[self._received] if done > 0 else done

    def pass_on(self, sink_fd: int) -> int:
        """Send what was taken in: how many bytes the sink took, or `-errno`."""
        self._sizes[self._going] = self._lengths[self._received]
        done = calls.send_message(sink_fd, self._send_at)
        return self._lengths[self._sent] if done > 0 else done

    def set_aside(self, pipe_fd: int, there_bytes: int = 0) -> None:
        """Write what the sink did not take into the owner's pipe, where so much of it stands already. Raises OSError."""
        gone = self._lengths[self._sent] + there_bytes
        left = self._lengths[self._received] - gone
        if left > 0:
            done = calls.write_at(pipe_fd, self._bytes_at + gone, left)
            if done != left:  # there is room for all of it; but memory for a pipe's pages may be short
                raise OSError(-done if done < 0 else errno.ENOMEM, "a pipe took too little of a message")
        self.forget()

    def forget(self) -> None:
        """Nothing is pending, or it is nobody's any more."""
        self._lengths[self._received] = 0

    def bring_home(self) -> None:
        """Put what a dead worker had read and not sent into its scratch pipe, as if the sink had taken no more of it.

        That pipe is empty between two turns. What is in it was put there by one that died while it did this. For whoever
        has the dead worker's descriptors: a new worker, and a holder that gives them to a program which may not know of this.
        """
        words, at = self._words, self._part_at
        if self._lengths[self._received] > self._lengths[self._sent]:
            r, w = words[at + Word.SCRATCH_R], words[at + Word.SCRATCH_W]
            if is_pipe(r, w):  # else the whole table died with its holder, and the flow with it
                words[at + Word.SCRATCH_OWNER] = words[self._owner]  # before the bytes come
                self.set_aside(w, calls.readable_bytes(r))
        self.forget()


def is_pipe(r: int, w: int) -> bool:
    """Whether these are the two ends of one pipe."""
    try:
        one, other = os.fstat(r), os.fstat(w)
    except OSError:
        return False
    return stat.S_ISFIFO(one.st_mode) and (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
