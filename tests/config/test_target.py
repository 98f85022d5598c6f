"""One local service behind an endpoint, or several with their shares."""

from typing import Any

import pytest
from pydantic import ValidationError

from relay.config.compile import compile_snapshot
from relay.config.endpoint import Endpoint
from relay.config.model import Service
from relay.config.settings import Settings
from relay.config.values import Target


def endpoint(target: Any, **keys: Any) -> Endpoint:
    return Endpoint.model_validate({"type": "internal", "port": 1, "target": target, **keys})


@pytest.mark.parametrize("written", ["127.0.0.1:3000", ["127.0.0.1:3000"], [{"address": "127.0.0.1:3000"}]])
def test_one_is_one_however_it_is_written(written: Any) -> None:
    assert endpoint(written).targets == (Target("tcp", "127.0.0.1", 3000),)


def test_several_with_their_shares() -> None:
    written = ["127.0.0.1:1", {"address": "[::1]:2", "weight": 0}, {"address": "unix:/run/a.sock", "backup": True}]
    assert endpoint(written).targets == (
        Target("tcp", "127.0.0.1", 1),
        Target("tcp", "::1", 2, weight=0),
        Target("unix", path="/run/a.sock", backup=True),
    )


@pytest.mark.parametrize(
    "written", [[], {}, None, ["127.0.0.1:1", "127.0.0.1:1"], ["127.0.0.1:1", 7], [["127.0.0.1:1"]]]
)
def test_what_is_none(written: Any) -> None:
    with pytest.raises(ValidationError):
        endpoint(written)


def rows(target: Any, **keys: Any) -> Any:
    own = {"type": "internal", "port": 1, "target": target, **keys}
    plain = {
        "version": 1, "service": "s", "roles": {"web": {"instances": ["10.0.0.4"], "endpoints": {"in": own}}},
    }  # fmt: skip
    service = Service.model_validate(plain)
    [row] = compile_snapshot(service, Settings(), "web_IN_0", generation=1, file="").endpoints
    return row


def test_several_are_spread_over_and_each_has_a_row() -> None:
    row = rows(["127.0.0.1:1", {"address": "unix:/run/a b.sock", "weight": 2}])
    assert (row.distribution, row.direct, row.is_own, row.is_edge) == ("least-connections", True, True, False)
    assert [(each.text, each.slot, each.weight) for each in row.targets] == [
        ("127.0.0.1:1", 0, 1),
        ("unix:/run/a b.sock", 1, 2),
    ]
    assert rows(["127.0.0.1:1", "127.0.0.1:2"], target_distribution="round-robin").distribution == "round-robin"


@pytest.mark.parametrize("target", ["127.0.0.1:1", "localhost:1", ["127.0.0.1:1"]])
def test_one_is_as_it_always_was(target: Any) -> None:
    row = rows(target, slow_start="30s")
    assert (row.distribution, row.direct, row.is_own, row.slow_start_s) == (None, False, False, None)
    assert {each.slot for each in row.targets} == {-1}


def test_only_what_is_probed_is_judged() -> None:
    several = ["127.0.0.1:1", "127.0.0.1:2"]
    assert not rows(several).is_judged
    assert not rows(several, probe=False).is_judged
    assert rows(several, probe={}).is_judged
