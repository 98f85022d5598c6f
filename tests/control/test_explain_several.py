"""`relay explain` where there are several targets with weights, and where there is no relay on the machines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.cli.tables import explain_text, matrix_text, route_text
from relay.config.load import load_service
from relay.config.snapshot import EndpointRow, ProbeRow, TargetRow
from relay.control.explain import explain_file, matrix, route
from relay.errors import OperatorError
from relay.ledger.layout import Health, health_at
from relay.targets import why
from relay.targets.health import packed
from relay.targets.pool import Pool
from tests.config.rig import endpoint_row
from tests.ledger.rig import new_ledger

BARE = """
version: 1
service: shop
EDGE
roles:
  web: {instances: [10.0.1.4]}
  old:
    bare: true
    instances: [10.0.0.4, db.example.com]
    endpoints:
      http: {type: input, public_port: 80, port: 8080, access: [{deny: 203.0.113.0/24}], limits: {per_source: 7}}
      pg: {type: internal, port: 5433, from: [web]}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "service.yaml"
    path.write_text(BARE.replace("EDGE", "edge: {instances: [198.51.100.10]}"))
    return str(path)


def test_of_a_bare_role_the_edge_answers(file: str) -> None:
    answer = explain_file(file, "old/http", "203.0.113.9", None)
    assert (answer["verdict"], answer["listen"], answer["bare"]) == ("deny", "198.51.100.10:80", True)
    assert "(at the edge: whoever reaches these machines by another way is asked by nobody)" in explain_text(answer)
    assert explain_file(file, "old/http", "8.8.8.8", None)["per_source"] == {"limit": 7, "network": "8.8.8.8/32"}


def test_ports_for_single_instances_are_the_edges_too(tmp_path: Path) -> None:
    path = tmp_path / "service.yaml"
    text = BARE.replace("EDGE", "edge: {instances: [198.51.100.10]}").replace(", db.example.com", "")
    path.write_text(text.replace("public_port: 80, port: 8080", "instance_ports: 81-82, port: 8080"))
    for to in ("old/http", "old/http@instance"):
        answer = explain_file(str(path), to, "203.0.113.9", None)
        assert (answer["verdict"], answer["listen"]) == ("deny", "198.51.100.10:81")


def test_where_nobody_asks_nobody_is_refused(file: str, tmp_path: Path) -> None:
    answer = explain_file(file, "old/pg", "203.0.113.9", None)
    assert (answer["verdict"], answer["listen"], answer["why"]) == (
        "permit",
        "port 5433",
        "there is no relay on the machines of a bare role, and nobody is refused",
    )
    assert len(explain_text(answer).splitlines()) == 1, "it has no limits either"
    alone = tmp_path / "alone.yaml"
    alone.write_text(BARE.replace("EDGE\n", ""))
    assert explain_file(str(alone), "old/http", "203.0.113.9", None)["verdict"] == "permit"
    with pytest.raises(OperatorError, match=r"no endpoint `old/x`; role `old` has old/http, old/pg"):
        explain_file(file, "old/x", "203.0.113.9", None)


def test_the_matrix_says_what_is_not_enforced(file: str) -> None:
    rows = matrix(load_service(file).value)
    assert [(row["endpoint"], row["outside"], row["roles"]) for row in rows] == [
        ("old/http", "all but 1 network, by the edge", {"web": "not enforced", "old": "not enforced"}),
        ("old/pg", "not enforced", {"web": "not enforced", "old": "not enforced"}),
    ]
    assert "not enforced" in matrix_text(rows)


def spread(distribution: Any, weights: Sequence[int], backups: Sequence[bool], **keys: Any) -> EndpointRow:
    targets = tuple(
        TargetRow(f"10.0.0.{n}:80", port=80, slot=n, instance=f"web_IN_{n}", weight=weight, backup=backup)
        for n, (weight, backup) in enumerate(zip(weights, backups, strict=True))
    )
    return endpoint_row(distribution=distribution, targets=targets, **keys)


TARGETS = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.sampled_from([0, 1, 2])), min_size=1, max_size=6)


@given(TARGETS, st.integers(1, 65535), st.sampled_from(["five-tuple", "source-ip"]), st.booleans(), st.booleans())
def test_it_says_what_the_pool_does(
    targets: list[tuple[int, bool, int]], port: int, distribution: str, direct: bool, probed: bool
) -> None:
    weights, backups, healths = zip(*targets, strict=True)
    probe = ProbeRow("/", 1, 1) if probed else None
    row = spread(distribution, weights, backups, direct=direct, probe=probe, listen_port=80)
    with new_ledger() as ledger:
        pool = Pool(row, ledger.worker(0))
        for n, health in enumerate(healths):
            ledger.words[health_at(n)] = packed(health, why.RESET if health == Health.DOWN else 0, 1)
        place = pool.choose(bytes((203, 0, 113, 9)), port, 80, 0, 10**12)
        answer = route(row, ledger, f"203.0.113.9:{port}")
        assert answer["target"] == (None if place is None else row.targets[place].text)
        assert len(answer["order"]) == len(targets), "those without a weight are told of too"
        assert route_text(answer)


def test_turns_are_nobodys_in_particular() -> None:
    with (
        new_ledger() as ledger,
        pytest.raises(OperatorError, match="goes by `round-robin`: a connection gets the next"),
    ):
        route(spread("round-robin", [1, 1], [False, False]), ledger, "203.0.113.9:5")
