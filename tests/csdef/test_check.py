"""What the two files say of each other and of themselves. The corpus has the messages; here is what is not a mistake."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.csdef import configuration, definition
from relay.csdef.check import check_configuration, check_definition
from relay.csdef.configuration import Configuration, configuration_of
from relay.csdef.definition import Definition, definition_of
from relay.csdef.tree import parse_xml
from relay.errors import Problem
from tests.csdef import PATIENT


def defined(inside: str) -> Definition:
    text = f'<ServiceDefinition name="s">{inside}</ServiceDefinition>'.encode()
    problems: list[Problem] = []
    found = definition_of(parse_xml(text, "f.csdef", definition.ROOT, definition.NAMESPACE), "f.csdef", problems)
    assert problems == []
    return found


def configured(inside: str) -> Configuration:
    text = f'<ServiceConfiguration serviceName="s">{inside}</ServiceConfiguration>'.encode()
    problems: list[Problem] = []
    found = configuration_of(
        parse_xml(text, "f.cscfg", configuration.ROOT, configuration.NAMESPACE), "f.cscfg", problems
    )
    assert problems == []
    return found


def role(endpoints: str, name: str = "web") -> str:
    return f'<WorkerRole name="{name}"><Endpoints>{endpoints}</Endpoints></WorkerRole>'


@pytest.mark.parametrize(
    "inside",
    [
        pytest.param(
            role(
                '<InputEndpoint name="a" protocol="tcp" port="53"/><InputEndpoint name="b" protocol="udp" port="53"/>'
            ),
            id="TCP and UDP have ports of their own",
        ),
        pytest.param(
            role(
                '<InternalEndpoint name="a" protocol="udp" port="1"/><InternalEndpoint name="b" protocol="any" port="1"/>'
            ),
            id="and so have they inside",
        ),
        pytest.param(
            role('<InputEndpoint name="a" protocol="tcp" port="80"/>')
            + role('<InputEndpoint name="a" protocol="tcp" port="81"/>', "db"),
            id="one name in two roles",
        ),
        pytest.param(
            role('<InternalEndpoint name="a" protocol="tcp" port="80"/>')
            + role('<InternalEndpoint name="a" protocol="tcp" port="80"/>', "db"),
            id="one internal port in two roles",
        ),
        pytest.param(
            role(
                '<InputEndpoint name="a" protocol="tcp" port="80" localPort="8080"/>'
                '<InputEndpoint name="b" protocol="tcp" port="81" localPort="8080"/>'
                '<InternalEndpoint name="c" protocol="tcp" port="8080"/>'
            ),
            id="one local port of several endpoints",
        ),
        pytest.param(role(""), id="no endpoint"),
    ],
)
def test_no_mistakes(inside: str) -> None:
    assert check_definition(defined(inside)) == []


SPANS = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 6)).map(lambda each: (each[0], each[0] + each[1])), max_size=8
)


@PATIENT
@given(SPANS)
def test_internal_ports_overlap(spans: list[tuple[int, int]]) -> None:
    endpoints = [
        f'<InternalEndpoint name="e{number}" protocol="tcp"><FixedPortRange min="{low}" max="{high}"/></InternalEndpoint>'
        for number, (low, high) in enumerate(spans)
    ]
    _compare(spans, check_definition(defined(role("\n".join(endpoints)))))


@PATIENT
@given(SPANS)
def test_public_ports_overlap(spans: list[tuple[int, int]]) -> None:
    roles = []
    for number, (low, high) in enumerate(spans):
        span = f'<AllocatePublicPortFrom><FixedPortRange min="{low}" max="{high}"/></AllocatePublicPortFrom>'
        several = f'<InstanceInputEndpoint name="a" protocol="tcp" localPort="1">{span}</InstanceInputEndpoint>'
        single = f'<InputEndpoint name="a" protocol="tcp" port="{low}"/>'
        roles.append(role(single if low == high else several, f"role{number}"))
    _compare(spans, check_definition(defined("\n".join(roles or [role("")]))))


def _compare(spans: list[tuple[int, int]], problems: list[Problem]) -> None:
    """An endpoint that overlaps is in a problem, as the one that has it or the one it names; no other is."""
    overlapping = {
        line
        for (one, a), (other, b) in combinations(enumerate(spans, 1), 2)
        if max(a[0], b[0]) <= min(a[1], b[1])
        for line in (one, other)
    }
    named = {int(problem.what.partition("(line ")[2].partition(")")[0]) for problem in problems}
    assert {problem.line for problem in problems} | named == overlapping


@pytest.mark.parametrize(
    ("count", "span", "is_right"),
    [
        (3, "10-12", True),
        (4, "10-12", False),
        (1, "10-10", True),
        (0, "10-10", True),
        (1024, "1-9999", True),
        (1025, "1-9999", False),
    ],
)
def test_a_public_port_for_each_instance(count: int, span: str, is_right: bool) -> None:
    low, _, high = span.partition("-")
    source = defined(
        role(
            '<InstanceInputEndpoint name="a" protocol="tcp" localPort="1"><AllocatePublicPortFrom>'
            f'<FixedPortRange min="{low}" max="{high}"/></AllocatePublicPortFrom></InstanceInputEndpoint>'
        )
    )
    problems = check_configuration(configured(f'<Role name="web"><Instances count="{count}"/></Role>'), source)
    assert (problems == []) == is_right


def test_datagrams_need_no_port_for_each_instance() -> None:
    source = defined(
        role(
            '<InstanceInputEndpoint name="a" protocol="udp" localPort="1"><AllocatePublicPortFrom>'
            '<FixedPortRange min="1" max="1"/></AllocatePublicPortFrom></InstanceInputEndpoint>'
        )
    )
    assert check_configuration(configured('<Role name="web"><Instances count="9"/></Role>'), source) == []


def test_a_role_that_is_not_imported_may_be_configured() -> None:
    source = defined(role("") + '<VirtualMachineRole name="vm"/>')
    rule = '<Rule order="1" action="deny" remoteSubnet="10.0.0.0/8"/>'
    settings = configured(
        '<Role name="vm"><Instances count="2"/></Role><NetworkConfiguration>'
        f'<AccessControls><AccessControl name="a">{rule}</AccessControl></AccessControls>'
        '<EndpointAcls><EndpointAcl role="vm" endpoint="x" accessControl="a"/></EndpointAcls></NetworkConfiguration>'
    )
    assert check_configuration(settings, source) == []


def test_many_names_are_not_all_listed() -> None:
    source = defined("".join(role("", f"role{number}") for number in range(100)))
    [problem] = check_configuration(configured('<Role name="x"><Instances count="1"/></Role>'), source)
    assert "`role24`" in problem.fix
    assert "`role25`" not in problem.fix
