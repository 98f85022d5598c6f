"""Where the elements belong that open or close a port: by their names in lower case, what to write.

In another place, inside of what is not read, they are problems and not comments: read.py. `endpoint` is for every name
that has the word in it and is none of the others.
"""

from typing import Final

__all__ = ["ENDPOINT_KINDS", "OF_A_CONFIGURATION", "OF_A_DEFINITION"]

ENDPOINT_KINDS: Final = ("InputEndpoint", "InternalEndpoint", "InstanceInputEndpoint")
"""The elements that are endpoints."""

_IN_ENDPOINTS = "write it inside `<Endpoints>` of a role"
_IN_AN_ENDPOINT = "write it inside an endpoint"
_IN_A_ROLE = "write it inside a `<WebRole …>` or a `<WorkerRole …>`"
_IN_THE_DEFINITION = "write it right below `<ServiceDefinition …>`"
_IN_THE_NETWORK = "write it inside `<NetworkConfiguration>`"
_IN_THE_CONFIGURATION = "write it right below `<ServiceConfiguration …>`"

OF_A_DEFINITION: Final = {
    "endpoint": f"write {' or '.join(f'`{kind}`' for kind in ENDPOINT_KINDS)} inside `<Endpoints>` of a role",
    **{kind.lower(): _IN_ENDPOINTS for kind in ENDPOINT_KINDS},
    "endpoints": _IN_A_ROLE,
    "inputendpoints": _IN_A_ROLE,
    "fixedport": _IN_AN_ENDPOINT,
    "fixedportrange": _IN_AN_ENDPOINT,
    "allocatepublicportfrom": _IN_AN_ENDPOINT,
    "webrole": _IN_THE_DEFINITION,
    "workerrole": _IN_THE_DEFINITION,
    "networktrafficrules": _IN_THE_DEFINITION,
    "onlyallowtrafficto": "write it inside `<NetworkTrafficRules>`",
    "loadbalancerprobes": _IN_THE_DEFINITION,
    "loadbalancerprobe": "write it inside `<LoadBalancerProbes>`",
}
"""Of a .csdef."""

OF_A_CONFIGURATION: Final = {
    "role": _IN_THE_CONFIGURATION,
    "instances": "write it inside a `<Role …>`",
    "networkconfiguration": _IN_THE_CONFIGURATION,
    "accesscontrols": _IN_THE_NETWORK,
    "accesscontrol": "write it inside `<AccessControls>`",
    "rule": "write it inside an `<AccessControl …>`",
    "endpointacls": _IN_THE_NETWORK,
    "endpointacl": "write it inside `<EndpointAcls>`",
    "endpoint": "write `<EndpointAcl …/>` inside `<EndpointAcls>`",
}
"""Of a .cscfg."""
