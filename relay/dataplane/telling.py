"""What an edge is told that asks by a probe: how the application is, and why it is down. Then the connection is over."""

import contextlib
from socket import MSG_DONTWAIT, MSG_TRUNC
from typing import Final

from relay import calls
from relay.dataplane.flow import Flow
from relay.envelope import asking
from relay.targets import why

_LEFT_MAX_BYTES: Final = 64 * 1024  # what an edge asks of the application in a probe is much shorter


def tell_taken(flow: Flow) -> bool:
    """Tell the edge that the target has taken the connection, before all others. Once the ledger says so.

    False: the edge is not there any more, has perhaps sent the client's bytes to another instance, and the target gets none.
    """
    try:
        return bool(flow.client.send(asking.WELL if flow.probe else asking.TOOK))
    except OSError:
        return False


def tell(flow: Flow, fault: int, reason: str = "") -> None:
    """Answer the edge: `fault` (targets/why.py; 0: the application may be up), in words as well. Only where it asks.

    The flow is to be `cut` after that. It has to end with a FIN: a reset can take what was sent before it.
    """
    if flow.asks == asking.NOTHING:
        return
    answer = asking.refusal(fault, reason or why.text_of(fault)) if fault else asking.WELL
    with contextlib.suppress(OSError):  # the edge has left
        flow.client.send(answer)
        # What came and is not read makes close(2) send a reset: RFC 2525, 2.17.
        flow.client.recv(_LEFT_MAX_BYTES, MSG_DONTWAIT | MSG_TRUNC)
    calls.finish_on_close(flow.client.fileno())
