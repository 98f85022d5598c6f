"""What the admin API answers when it has done something for an endpoint, as types: see answers.py."""

from typing import Annotated

from typing_extensions import TypedDict

from relay.control.described import Within


class Hold(TypedDict):
    """For how long new connections of an endpoint wait, and how many do now."""

    endpoint: str
    hold_for_s: float
    held: Annotated[int, Within(0)]
