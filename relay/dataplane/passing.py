"""Where relays talk to each other (`relay_port`): a connection names the endpoint that it is for, and is that one's.

From then on all holds for it that holds for who came to that endpoint's own port. Whom it brings is decided as there: an
edge may speak for every client, of the endpoints that are behind it; any other machine of the service for itself alone.
"""

import errno
from typing import Final

from relay.dataplane.flow import Flow
from relay.dataplane.gate import Gate
from relay.dataplane.telling import tell
from relay.envelope import asking
from relay.targets import why

_TYPES: Final = ("input", "internal")
_NAME_MAX_CHARS: Final = 100  # of a name that is logged
_NOT_HERE: Final = why.of_error(errno.ECONNREFUSED)  # as at a port where nobody listens: another instance may have it


def endpoint_of(flow: Flow, tlvs: bytes, source: str, peer: str) -> Gate | None:
    """The gate of the endpoint that a header with these TLVs names; None: the flow has been refused.

    `peer` is the client's address `source` with its port. A question is answered to whom the endpoint admits, and only by
    this relay itself: a dial is for connections, which are under the limits. Behind an edge it is the edge's, as it is at
    the endpoint's own port.
    """
    name, context = asking.endpoint_in(tlvs), flow.context
    gate = context.gates.get(name)
    if gate is None or gate.declared.type not in _TYPES or gate.declared.port_count > 1:
        _refuse(flow, "protocol", _NOT_HERE, f"no endpoint `{name[:_NAME_MAX_CHARS]}` is here")
    elif not gate.may_bring(flow.source, source):
        _refuse(flow, "roster", why.DENIED, f"brings {peer} to {name}")
    elif not flow.probe or gate.declared.edges:
        return gate
    elif not (gate.permits(source) or gate.audits):
        _refuse(flow, "roster", why.DENIED, f"asks about {name}")
    elif flow.asks != asking.RELAY:
        _refuse(flow, "protocol", why.DENIED, f"asks for more of {name} than a door may")
    else:
        return gate
    return None


def _refuse(flow: Flow, reason: str, told: int, detail: str) -> None:
    flow.context.deny(flow.gate, flow.peer_text, reason, detail)
    tell(flow, told)
    flow.cut("protocol" if reason == "protocol" else "denied")
