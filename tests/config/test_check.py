"""The checks across keys: what clashes, what dangles, what loops, what leads elsewhere, and what only looks as if it did."""

import textwrap

import pytest

from relay.config.check import check_service
from relay.config.document import parse
from relay.config.model import Service
from relay.errors import Problem
from tests.config.rig import service_of_roles


def check(roles: str, lists: str = "") -> list[Problem]:
    """The problems of a service as `read` takes it."""
    return check_service(*service_of_roles(roles, lists))


def test_nothing_to_say() -> None:
    roles = """
        web:
          instances: [10.0.0.4, 10.0.0.5]
          endpoints:
            a: {type: input, public_port: 80, port: 8080, target: 127.0.0.1:8080, access: []}
            b: {type: input, public_port: 8080, port: 8081, target: "10.0.0.9:8080", unsafe_target: true}
        api:
          instances: ["2001:db8::1"]
          endpoints:
            a: {type: input, public_port: 81, port: 8080, target: unix:/x, access: [{permit: 10.0.0.0/9}, {deny: 10.0.0.0/8}]}
            c: {type: internal, port: 80, target: localhost:80, from: [web, api, empty]}
        empty:
          instances: []
    """
    assert check(roles) == []


def test_a_port_twice_in_a_role() -> None:
    roles = """
        web:
          instances: []
          endpoints:
            a: {type: input, public_port: 80, port: 8080, target: unix:/x}
            b: {type: internal, port: 8080, target: unix:/y}
            c: {type: input, public_port: 8080, target: unix:/z}
    """
    first, second = check(roles)
    assert (first.line, first.path) == (8, "roles.web.endpoints.b.port")
    assert first.what == "port 8080 is a port of `a` (line 7) already"
    assert (second.line, second.path) == (9, "roles.web.endpoints.c.public_port")


def test_a_public_port_twice() -> None:
    roles = """
        web:
          instances: []
          endpoints:
            a: {type: input, public_port: 80, target: unix:/x}
            b: {type: input, public_port: 80, target: unix:/y}
        api:
          instances: []
          endpoints:
            a: {type: input, public_port: 80, port: 81, target: unix:/z}
    """
    found = check(roles)
    assert [problem.path for problem in found] == [
        "roles.web.endpoints.b.public_port",
        "roles.api.endpoints.a.public_port",
    ]
    assert {problem.what for problem in found} == {"80 is a public port of `web/a` (line 7) already"}


def test_an_address_twice() -> None:
    roles = """
        web:
          instances: [10.0.0.4, 10.0.0.4]
        api:
          instances: ["2001:db8::1", 10.0.0.4, "2001:DB8:0::1"]
    """
    assert [(problem.path, problem.what) for problem in check(roles)] == [
        ("roles.web.instances[1]", "10.0.0.4 is the address of web_IN_0 already"),
        ("roles.api.instances[1]", "10.0.0.4 is the address of web_IN_0 already"),
        ("roles.api.instances[2]", "2001:db8::1 is the address of api_IN_0 already"),
    ]


def test_from_names_roles() -> None:
    roles = """
        web:
          instances: []
          endpoints:
            a: {type: internal, port: 80, target: unix:/x, from: [web, wbe, zebra]}
    """
    first, second = check(roles)
    assert (first.path, first.fix) == ("roles.web.endpoints.a.from[1]", "did you mean `web`?")
    assert (second.path, second.fix) == ("roles.web.endpoints.a.from[2]", "the roles are `web`")


def test_a_target_that_is_its_own_listener() -> None:
    roles = """
        web:
          instances: [10.0.0.4, 10.0.0.5]
          endpoints:
            a: {type: input, public_port: 80, port: 8080, target: 10.0.0.5:8080}
    """
    [problem] = check(roles)
    assert (problem.line, problem.path) == (7, "roles.web.endpoints.a.target")
    assert problem.what == "`10.0.0.5:8080` is this endpoint's own listener"


def test_localhost_is_an_own_listener_where_an_instance_is() -> None:
    for address in ("127.0.0.1", '"::1"'):
        [problem] = check(f"""
            web:
              instances: [{address}]
              endpoints:
                a: {{type: input, public_port: 80, target: localhost:80}}
        """)
        assert problem.path == "roles.web.endpoints.a.target"


def test_a_ring_of_listeners_is_one_problem() -> None:
    roles = """
        store:
          instances: [10.0.1.4]
          endpoints:
            into: {type: internal, port: 79, target: 10.0.1.4:80}
            c: {type: internal, port: 80, target: 10.0.0.4:80, unsafe_target: true}
        web:
          instances: [10.0.0.4]
          endpoints:
            a: {type: input, public_port: 80, target: 10.0.0.4:81}
            b: {type: input, public_port: 81, target: 10.0.1.4:80, unsafe_target: true}
    """
    [problem] = check(roles)
    assert problem.path == "roles.store.endpoints.c.target"
    assert problem.what == "`10.0.0.4:80` leads back here by way of `web/a`, `web/b`"


def test_a_chain_that_ends_is_no_ring() -> None:
    ports = range(2000, 5000)
    links = "".join(
        f"            e{port}: {{type: internal, port: {port}, target: 10.0.0.4:{port + 1}}}\n" for port in ports
    )
    head = "        web:\n          instances: [10.0.0.4]\n          endpoints:\n"
    assert check(head + links) == []
    back = f"            last: {{type: internal, port: {ports[-1] + 1}, target: 10.0.0.4:{ports[0]}}}\n"
    [problem] = check(head + links + back)
    assert problem.path == "roles.web.endpoints.e2000.target"


# --- ranges of ports --------------------------------------------------------------------------------------------------


def test_ranges_that_overlap_in_a_role() -> None:
    roles = """
        web:
          instances: []
          endpoints:
            a: {type: internal, port: 8995-8999, target: unix:/x}
            b: {type: internal, port: 8999-9003, target: unix:/y}
            c: {type: input, public_port: 8997, target: unix:/z}
            d: {type: internal, port: 9004, target: unix:/z}
        api:
          instances: []
          endpoints:
            a: {type: internal, port: 8995-8999, target: unix:/x}
    """
    assert [(problem.path, problem.what) for problem in check(roles)] == [
        ("roles.web.endpoints.b.port", "port 8999 is a port of `a` (line 7) already"),
        ("roles.web.endpoints.c.public_port", "port 8997 is a port of `a` (line 7) already"),
    ]


def test_the_widest_ranges_are_checked_in_no_time() -> None:
    """Every port of a role, on each of many instances, and all of them lead to the role itself."""
    ranges = [(first, min(first + 1023, 65535)) for first in range(1, 65536, 1024)]
    lines = [
        f"    e{first}: {{type: internal, port: {first}-{last}, target: '10.0.0.1:{last}'}}" for first, last in ranges
    ]
    addresses = ", ".join(f"10.0.{n // 250}.{n % 250 + 1}" for n in range(2000))
    roles = f"web:\n  instances: [{addresses}]\n  endpoints:\n" + "\n".join(lines)
    assert len(check(roles)) == len(ranges), "each one's last port is its own target"


def test_a_range_that_leads_into_itself() -> None:
    roles = """
        web:
          instances: [10.0.0.4]
          endpoints:
            a: {type: internal, port: 8995-8999, target: 10.0.0.4:8999-9003}
            b: {type: internal, port: 9000-9003, target: 127.0.0.1:9000-9003}
    """
    assert check(roles) == [], "8995 leads to 8999, that one to 9003, and there it ends"
    [problem] = check(roles.replace("127.0.0.1:9000-9003", "10.0.0.4:8995-8998"))
    assert problem.path == "roles.web.endpoints.a.target"
    assert problem.what == "`10.0.0.4:8999-9003` leads back here by way of `web/b`"
    [problem] = check(roles.replace("10.0.0.4:8999-9003", "10.0.0.4:8997"))
    assert problem.what == "`10.0.0.4:8997` is this endpoint's own listener"


def test_a_range_beside_the_one_that_leads_to_it_is_no_ring() -> None:
    roles = """
        web:
          instances: [10.0.0.4]
          endpoints:
            a: {type: internal, port: 8995-8999, target: 10.0.0.4:9000-9004}
            b: {type: internal, port: 9000-9004, target: 127.0.0.1:8995-8999}
    """
    assert check(roles) == []


# --- one public port for each instance --------------------------------------------------------------------------------


def test_public_ports_are_unique_whatever_they_are_for() -> None:
    roles = """
        web:
          instances: [10.0.0.4]
          endpoints:
            a: {type: input, public_port: 80, target: unix:/x}
            b: {type: input, instance_ports: 79-81, port: 1, target: unix:/x}
            c: {type: input, instance_ports: 81-82, public_port: 83, target: unix:/x}
            d: {type: input, instance_ports: 90-92, public_port: 91, target: unix:/x}
    """
    assert [(problem.path, problem.what) for problem in check(roles)] == [
        ("roles.web.endpoints.b.instance_ports", "80 is a public port of `web/a` (line 7) already"),
        ("roles.web.endpoints.c.instance_ports", "81 is a public port of `web/b` (line 8) already"),
        ("roles.web.endpoints.d.instance_ports", "91 is a public port of `web/d` (line 10) already"),
    ]


def test_every_instance_needs_a_port_of_its_own() -> None:
    roles = """
        web:
          instances: [10.0.0.4, 10.0.0.5, 10.0.0.6]
          endpoints:
            a: {type: input, instance_ports: 10105-10107, port: 1, target: unix:/x}
            b: {type: input, instance_ports: 10108-10109, port: 2, target: unix:/x}
    """
    [problem] = check(roles)
    assert (problem.path, problem.line) == ("roles.web.endpoints.b.instance_ports", 8)
    assert problem.what == "2 ports are too few for the 3 instances of `web`"
    assert problem.fix == "write one for each, such as `10108-10110`"


# --- access lists -----------------------------------------------------------------------------------------------------


def test_a_list_that_is_not_there() -> None:
    roles = """
        web:
          instances: []
          endpoints:
            a: {type: input, public_port: 80, target: unix:/x, access: offcie}
            b: {type: input, public_port: 81, target: unix:/x, access: office}
            c: {type: input, public_port: 82, target: unix:/x, access: zebra}
    """
    first, second = check(roles, "office: [{deny: 10.0.0.0/8}]")
    assert (first.path, first.fix) == ("roles.web.endpoints.a.access", "did you mean `office`?")
    assert first.what == "there is no access list `offcie`"
    assert (second.path, second.fix) == ("roles.web.endpoints.c.access", "the access lists are `office`")
    assert [problem.fix for problem in check(roles)] == ["write it below `access_lists` at the top of the file"] * 3


# --- deny: drop -------------------------------------------------------------------------------------------------------


def test_more_networks_than_a_filter_has_room_for() -> None:
    denied = ", ".join(f"{{deny: 10.{n // 256}.{n % 256}.1}}" for n in range(3000))
    roles = """
        web:
          instances: [10.0.0.4, "2001:db8::4"]
          endpoints:
            a: {type: input, public_port: 80, target: unix:/x, access: many, deny: drop}
            b: {type: input, public_port: 81, target: unix:/x, access: many}
            c: {type: input, public_port: 82, target: unix:/x, access: none, deny: drop}
            d: {type: internal, port: 83, target: unix:/x, deny: drop, from: [nobody]}
            e: {type: internal, port: 84, target: unix:/x, deny: drop}
    """
    problems = check(roles, f"many: [{denied}]")
    problem = problems[0]
    assert (problem.line, problem.path) == (7, "roles.web.endpoints.a.deny")
    assert "of these 3000 networks (IPv4)" in problem.what
    assert problem.fix == "write `deny: reset`, or fewer networks"
    assert [each.path for each in problems[1:]] == ["roles.web.endpoints.c.access", "roles.web.endpoints.d.from[0]"]


# --- targets elsewhere ------------------------------------------------------------------------------------------------


def test_a_target_on_another_machine() -> None:
    roles = """
        web:
          instances: [10.0.0.4, "2001:db8::4"]
          endpoints:
            loopback: {type: input, public_port: 1, target: 127.9.9.9:80}
            loopback-6: {type: input, public_port: 2, target: "[::1]:80"}
            localhost: {type: input, public_port: 3, target: localhost:80}
            path: {type: input, public_port: 4, target: unix:/x}
            itself: {type: input, public_port: 5, target: 10.0.0.4:80}
            itself-6: {type: input, public_port: 6, target: "[2001:db8::4]:80"}
            meant: {type: input, public_port: 7, target: 10.0.1.4:80, unsafe_target: true}
            elsewhere: {type: input, public_port: 8, target: 10.0.1.4:80}
            no-more: {type: internal, port: 9, target: "[2001:db8::5]:80-81", unsafe_target: false}
        store:
          instances: [10.0.1.4]
    """
    first, second = check(roles.replace("port: 9,", "port: 9-10,"))
    assert first.path == "roles.web.endpoints.elsewhere.target"
    assert first.what == "`10.0.1.4:80` is on another machine, where relay does not decide who may connect"
    assert first.fix == "write a service of this machine, or `unsafe_target: true` beside it"
    assert second.path == "roles.web.endpoints.no-more.target"


# --- where relays talk to each other ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "what"),
    [
        (80, "80 is a public port of `web/a` (line 8)"),
        (8080, "8080 is a port of `web/a` (line 8)"),
        (9002, "9002 is a port of `web/b` (line 9)"),
        (7003, "7003 is a public port of `web/c` (line 10)"),
        (3001, "3001 is the target of `web/c` (line 10)"),
        (3000, ""),
        (7400, ""),
    ],
)
def test_the_relays_own_port_is_nobody_elses(port: int, what: str) -> None:
    text = f"""
        version: 1
        service: shop
        relay_port: {port}
        roles:
          web:
            instances: [10.0.0.4]
            endpoints:
              a: {{type: input, public_port: 80, port: 8080, target: 127.0.0.1:3000}}
              b: {{type: internal, port: 9000-9004, target: unix:/y}}
              c: {{type: input, instance_ports: 7000-7004, port: 81, target: 10.0.0.4:3001}}
    """
    document = parse(textwrap.dedent(text).strip().encode(), "service.yaml")
    found = check_service(Service.model_validate(document.data), document)
    assert [each.what for each in found] == ([what] if what else [])
    assert {(each.line, each.path) for each in found} <= {(3, "relay_port")}


@pytest.mark.parametrize(("sources", "count"), [(1, 1025), (1, 1024), (0, 1025)])
def test_more_items_than_a_role_by_names_can_have(sources: int, count: int) -> None:
    items = [f"10.1.{n // 250}.{n % 250}" for n in range(count - sources)] + ["db.test"] * sources
    found = check(f"""
        db: {{bare: true, instances: [{", ".join(items)}], endpoints: {{pg: {{type: internal, port: 1}}}}}}
    """)
    expected = ["has 1025 items, and a role whose instances names or files tell has 1024 at most"]
    assert [each.what for each in found] == (expected if sources and count > 1024 else [])
