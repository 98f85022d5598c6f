"""What a parser of this package says of the bytes seen so far: its own value, `INCOMPLETE`, or a `Reject`.

Every parser keeps three promises, so that it can be asked again each time more bytes have come:

* for a valid input, each proper prefix of its significant bytes is `INCOMPLETE`;
* bytes after the significant ones never change the answer;
* a `Reject` stays the same `Reject`, whatever follows.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Incomplete(Enum):
    """The type of `INCOMPLETE`, its only member: nothing is wrong so far, and more bytes are needed."""

    INCOMPLETE = "incomplete"


INCOMPLETE: Final = Incomplete.INCOMPLETE


@dataclass(frozen=True, slots=True)
class Reject:
    """The bytes cannot become a valid input. `reason` is a clause for the log, without a full stop."""

    reason: str
