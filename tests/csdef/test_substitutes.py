"""Names and addresses: always such as the model takes, always different, and as near to the source as can be."""

import re
from collections import Counter
from ipaddress import ip_address, ip_network
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config import values
from relay.csdef.substitutes import endpoint_names, further_name, placeholders, role_names, service_name
from tests.csdef import PATIENT

ANY = st.lists(st.text(min_size=1) | st.from_regex(r"[A-Za-z0-9._-]{1,70}", fullmatch=True))


@PATIENT
@given(ANY)
def test_role_names(names: list[str]) -> None:
    found = role_names(names)
    assert set(found) == set(names)
    assert len(set(found.values())) == len(found)
    for name, ours in found.items():
        assert values.role_name(ours) == ours
        if re.fullmatch(values.ROLE_NAME_PATTERN, name):
            assert ours == name


@PATIENT
@given(ANY, ANY)
def test_role_names_that_are_taken(names: list[str], taken: list[str]) -> None:
    not_these = frozenset({*taken, *names[::2]})
    found = role_names(names, not_these)
    assert set(found) == set(names)
    assert len(set(found.values())) == len(found)
    assert not not_these & set(found.values())
    for name, ours in found.items():
        assert values.role_name(ours) == ours
        if re.fullmatch(values.ROLE_NAME_PATTERN, name) and name not in not_these:
            assert ours == name


def test_further_names() -> None:
    taken, numbers = {"web", "web-3", "x" * 63}, Counter[str]()
    found = [further_name(name, taken, numbers) for name in ("web", "web", "store", "web", "x" * 63)]
    assert found == ["web-2", "web-4", "store", "web-5", "x" * 61 + "-2"]
    assert taken == {"web", "web-3", "x" * 63, *found}


@PATIENT
@given(ANY)
def test_endpoint_names(names: list[str]) -> None:
    found = endpoint_names(names)
    assert len(set(found.values())) == len(found) == len(set(names))
    for name, ours in found.items():
        assert values.endpoint_name(ours) == ours
        if re.fullmatch(values.ENDPOINT_NAME_PATTERN, name):
            assert ours == name


@PATIENT
@given(st.text())
def test_service_names(name: str) -> None:
    ours = service_name(name)
    assert values.service_name(ours) == ours
    if re.fullmatch(values.SERVICE_NAME_PATTERN, name.lower()):
        assert ours in (name.lower(), re.sub("-+", "-", name.lower()))


@pytest.mark.parametrize(
    ("name", "ours"),
    [("Shop", "shop"), ("My.Shop_2", "my-shop-2"), ("  ", "service"), ("Größe", "gr-e"), ("x" * 62 + ".y", "x" * 62)],
)
def test_service_names_by_example(name: str, ours: str) -> None:
    assert service_name(name) == ours


def test_many_names_that_become_one() -> None:
    found = list(role_names(["a" * 70 + str(number) for number in range(2000)]).values())
    assert found[0] == "a" * 63
    assert found[1999] == "a" * 58 + "-2000"


def test_placeholders() -> None:
    first = list(islice(placeholders(), 256))
    assert (first[0], first[253], first[254], first[255]) == ("192.0.2.1", "192.0.2.254", "198.18.0.1", "198.18.0.2")
    every = list(placeholders())
    assert len(set(every)) == len(every) == 254 + 2**17 - 2
    assert ip_address(every[-1]) in ip_network("198.18.0.0/15")
    assert values.address(every[0])
