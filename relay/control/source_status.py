"""What is told of a source of instances, as a type: a part of the answers in answers.py."""

from typing import Annotated, Literal

from typing_extensions import TypedDict

from relay.control.described import Within

_Count = Annotated[int, Within(0)]


class SourceStatus(TypedDict):
    """A name, service record or file that says where a bare role's instances are.

    `targets`: those that stand. `age_s`: since its last good answer; null: never. `doubted`: the last is not believed yet.
    `failures`: of this control. `left_out`: addresses of the role that have no place, for there are too many.
    """

    role: str
    source: str
    kind: Literal["name", "srv", "file"]
    targets: _Count
    age_s: float | None
    ttl_s: float | None
    doubted: bool
    trouble: str
    failures: _Count
    left_out: _Count
