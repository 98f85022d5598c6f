"""`relay weight`: shows the shares of an endpoint's targets, or changes one."""

import urllib.parse
from typing import TYPE_CHECKING

from relay.cli.target_tables import weight_of, weights_text
from relay.errors import OperatorError

if TYPE_CHECKING:
    from relay.cli.client import AdminClient


def weight(client: "AdminClient", endpoint: str | None, target: str | None, weight: str | None) -> int:
    """Show all weights, those of an endpoint, or change one. Raises OperatorError, also if a restart would forget it."""
    if target is not None and weight is None:
        raise OperatorError("say which: `relay weight ENDPOINT INSTANCE N`, or `off` for what the file says")
    if endpoint is None or target is None or weight is None:
        several = [each for each in client.get("/v1/status")["endpoints"] if each["target_set"]]
        named = [each for each in several if endpoint in (None, each["name"])]
        if endpoint is not None and not named:
            there = ", ".join(each["name"] for each in several) or "none"
            raise OperatorError(f"no endpoint `{endpoint}` with several targets here; there are: {there}")
        print(weights_text(named))
        return 0
    asked = {"endpoint": endpoint, "target": target, "weight": weight}
    answer = client.post(f"/v1/weight?{urllib.parse.urlencode(asked)}", takes_time=True)
    who = f"{answer['instance']} ({answer['target']})" if answer["instance"] else answer["target"]
    print(f"{answer['endpoint']}: {who} has the weight {weight_of(answer)}")
    if answer["trouble"]:
        raise OperatorError(f"it is in force, and a restart of relay would forget it: {answer['trouble']}")
    return 0
