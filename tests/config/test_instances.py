"""A role's instances as the file says where they are: addresses, and in a bare role names, service records and files."""

from typing import Any

import pytest
from pydantic import ValidationError

from relay.config.instances import SOURCES_MAX, Listed
from relay.config.model import Role


def role(instances: Any, *, bare: bool = True) -> Role:
    return Role.model_validate({"instances": instances, "bare": bare})


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("10.0.0.4", Listed("address", "10.0.0.4")),
        ("2001:DB8::5", Listed("address", "2001:db8::5")),
        ("DB.Example.com.", Listed("name", "db.example.com")),
        ("db", Listed("name", "db")),
        ("cafe", Listed("name", "cafe")),
        ("db-1", Listed("name", "db-1")),
        ("xn--bcher-kva.example", Listed("name", "xn--bcher-kva.example")),
        ({"address": "10.0.0.4", "weight": 2, "backup": True}, Listed("address", "10.0.0.4", 2, True)),
        ({"address": "db.example.com", "weight": 0}, Listed("name", "db.example.com", 0)),
        ({"srv": "_postgresql._tcp.example.com"}, Listed("srv", "_postgresql._tcp.example.com")),
        ({"file": "targets.yaml", "backup": True}, Listed("file", "targets.yaml", 1, True)),
        ({"file": "/etc/targets.json"}, Listed("file", "/etc/targets.json")),
    ],
)
def test_an_item_is_read(written: Any, read: Listed) -> None:
    assert role([written]).items == (read,)


@pytest.mark.parametrize(
    "written", ["10.0.0", "1.2.3.4.5", "a..b", "-a.example", "a-.example", "a b", "", "a" * 64, "x.1"]
)
def test_what_is_neither(written: str) -> None:
    with pytest.raises(ValidationError):
        role([written])


@pytest.mark.parametrize("written", ["db.example.com", {"srv": "_a._tcp.example.com"}, {"file": "t.yaml"}])
def test_where_there_is_a_relay_only_an_address_will_do(written: Any) -> None:
    with pytest.raises(ValidationError, match="who may say where an instance is, decides who may connect"):
        role(["10.0.0.4", written], bare=False)


def test_how_many_there_may_be() -> None:
    assert (role(["10.0.0.4", "10.0.0.5"]).count, role(["10.0.0.4", "10.0.0.5"]).named) == (2, False)
    assert (role(["10.0.0.4", "db.example.com"]).count, role(["db.example.com"]).named) == (SOURCES_MAX, True)
    assert (role(3, bare=False).count, role(3, bare=False).items) == (3, ())


def test_as_a_person_writes_it() -> None:
    assert [str(each) for each in role(["10.0.0.4", "db", {"srv": "_a.b"}, {"file": "t"}]).items] == [
        "10.0.0.4",
        "db",
        "srv: _a.b",
        "file: t",
    ]
