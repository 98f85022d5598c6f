"""The models: defaults, what hangs together inside one endpoint, and the JSON Schemas that describe the text."""

from ipaddress import ip_address, ip_network
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from pydantic import ValidationError

from relay.config.endpoint import Endpoint
from relay.config.fields import PerSource, Rule
from relay.config.model import Role, Service
from relay.config.schema import service_schema, settings_schema
from relay.config.settings import Settings
from relay.config.values import HostPort, Ports, Target

INPUT = {"type": "input", "public_port": 80, "target": "127.0.0.1:3000"}
INTERNAL = {"type": "internal", "port": 5432, "target": "unix:/run/pg"}


def endpoint(**keys: Any) -> Endpoint:
    return Endpoint.model_validate(keys)


def places(**keys: Any) -> set[str]:
    with pytest.raises(ValidationError) as caught:
        endpoint(**keys)
    return {".".join(map(str, error["loc"])) for error in caught.value.errors()}


def test_the_defaults_of_an_endpoint() -> None:
    made = endpoint(**INPUT)
    assert (made.protocol, made.public_port, made.listen_ports) == ("tcp", 80, Ports(80, 80))
    assert made.targets == (Target("tcp", "127.0.0.1", 3000),)
    assert (made.access, made.from_roles, made.send_proxy) == ((), None, None)
    assert (made.limits.connections, made.limits.per_source, made.limits.rate_per_s) == (None, None, None)
    assert (made.timeouts.connect_s, made.timeouts.first_byte_s, made.timeouts.idle_s) == (5.0, 10.0, 240.0)
    assert (made.timeouts.keepalive_s, made.timeouts.dead_s) == (15.0, 30.0)


def test_every_key_of_an_endpoint() -> None:
    made = endpoint(
        **INPUT,
        port=8080,
        protocol="http",
        access=[{"deny": "203.0.113.9/24"}, {"permit": "2001:db8::/32"}],
        limits={"connections": 10, "per_source": 2, "rate": "30/m"},
        timeouts={"connect": "200ms", "first_byte": "1s", "idle": "off"},
        send_proxy="v2",
    )
    assert made.listen_ports == Ports(8080, 8080)
    assert made.access == (
        Rule("deny", ip_network("203.0.113.0/24")),
        Rule("permit", ip_network("2001:db8::/32")),
    )
    assert made.access[0].text == "203.0.113.9/24"
    assert (made.limits.connections, made.limits.rate_per_s) == (10, 0.5)
    assert made.limits.per_source == PerSource(limit=2, ipv4=32, ipv6=128), (
        "each address, where nothing else is written"
    )
    assert (made.timeouts.connect_s, made.timeouts.first_byte_s, made.timeouts.idle_s) == (0.2, 1.0, None)
    assert endpoint(**INTERNAL, **{"from": ["web"]}).from_roles == ("web",)


def test_a_limit_for_networks() -> None:
    made = endpoint(**INPUT, limits={"per_source": {"limit": 200, "ipv4": 24, "ipv6": 64}})
    assert made.limits.per_source == PerSource(limit=200, ipv4=24, ipv6=64)
    assert endpoint(**INPUT, limits={"per_source": {"limit": 7}}).limits.per_source == PerSource(limit=7)


def test_a_range_of_ports() -> None:
    made = endpoint(**INTERNAL | {"port": "8995-8999", "target": "[::1]:5-9"})
    assert (made.listen_ports, len(made.listen_ports)) == (Ports(8995, 8999), 5)
    [several] = made.targets
    assert [made.target_port(port, several) for port in made.listen_ports.numbers] == [5, 6, 7, 8, 9]
    assert str(several) == "[::1]:5-9"
    one = endpoint(**INTERNAL | {"port": "8995-8999", "target": "[::1]:5"})
    assert {one.target_port(port, one.targets[0]) for port in one.listen_ports.numbers} == {5}


def test_a_public_port_for_each_instance() -> None:
    made = endpoint(type="input", instance_ports="10105-10109", port=10100, target="unix:/x")
    assert (made.public_port, made.instance_ports) == (None, Ports(10105, 10109))
    both = endpoint(**INPUT, instance_ports=81)
    assert (both.public_port, both.instance_ports, both.listen_ports) == (80, Ports(81, 81), Ports(80, 80))


def test_an_access_list_by_name() -> None:
    service = Service.model_validate(
        {
            "version": 1,
            "service": "s",
            "access_lists": {"office": [{"deny": "10.0.0.0/8"}]},
            "roles": {"web": {"instances": [], "endpoints": {"a": INPUT | {"access": "office"}, "b": INPUT}}},
        }
    )
    named, own = service.roles["web"].endpoints.values()
    assert named.access == "office"
    assert service.rules_of(named) == service.access_lists["office"] == (Rule("deny", ip_network("10.0.0.0/8")),)
    assert service.rules_of(own) == ()


def test_rules_are_equal_when_they_decide_alike() -> None:
    network = ip_network("10.0.0.0/8")
    assert Rule("deny", network, "10.0.0.0/8", 3) == Rule("deny", network, "10.1.0.0/8", 7)
    assert Rule("deny", network) != Rule("permit", network)


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        (INPUT | {"public_port": None}, "public_port"),
        (INTERNAL | {"port": None}, "port"),
        ({"type": "internal", "target": "unix:/x"}, "listen_ports"),
        (INTERNAL | {"public_port": 80}, "public_port"),
        (INTERNAL | {"access": []}, "access"),
        (INPUT | {"from": ["web"]}, "from"),
        (INTERNAL | {"from": []}, "from"),
        (INPUT | {"protocol": "udp"}, "protocol"),
        (INPUT | {"protocol": "any"}, "protocol"),
        (INPUT | {"public_port": "80"}, "public_port"),
        (INPUT | {"port": True}, "port"),
        (INTERNAL | {"probe": True}, "probe"),
        (INTERNAL | {"distribution": "source-ip"}, "distribution"),
        (INPUT | {"probe": {"path": "/"}}, "probe.path"),
        (INPUT | {"probe": {"protocol": "http"}}, "probe.path"),
        (INPUT | {"probe": {"protocol": "https", "path": "/"}}, "probe.protocol"),
        (INPUT | {"probe": {"interval": 5}}, "probe.interval"),
        (INPUT | {"distribution": "random"}, "distribution"),
        (INPUT | {"transparent": "yes"}, "transparent"),
        (INPUT | {"listen_ports": 80}, "listen_ports"),
        (INTERNAL | {"instance_ports": "1-2"}, "instance_ports"),
        (INPUT | {"public_port": None, "instance_ports": "1-2"}, "listen_ports"),
        (INPUT | {"public_port": "80-81"}, "public_port"),
        (INPUT | {"target": "127.0.0.1:1-2"}, "target"),
        (INPUT | {"port": "1-3", "target": "127.0.0.1:1-2"}, "target"),
        (INPUT | {"access": "not a name"}, "access"),
        (INPUT | {"unsafe_target": "yes"}, "unsafe_target"),
        (INPUT | {"access": [{"deny": "10.0.0.0/8", "permit": "10.0.0.0/8"}]}, "access.0"),
        (INPUT | {"access": [{"deny": "10.0.0.0/8", "line": 3}]}, "access.0.line"),
    ],
)
def test_what_does_not_hang_together(keys: dict[str, Any], place: str) -> None:
    assert place in places(**keys)


def test_models_are_frozen() -> None:
    made = endpoint(**INPUT)
    with pytest.raises(ValidationError, match="frozen"):
        made.listen_ports = Ports(81, 81)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Rule("deny", ip_network("10.0.0.0/8")).line = 1  # type: ignore[misc]


def test_the_defaults_of_the_settings() -> None:
    made = Settings.model_validate({})
    assert (made.id, made.address, made.workers, made.drain_s) == (None, None, "auto", 30.0)
    assert made.metrics is not None
    assert made.metrics.listen == HostPort("127.0.0.1", 9464)
    assert made.admin.socket == "/run/relay/admin.sock"
    assert (made.log.format, made.log.level) == ("auto", "info")


def test_every_key_of_the_settings() -> None:
    made = Settings.model_validate(
        {
            "id": "web_IN_3",
            "address": "::",
            "unsafe_listen": True,
            "workers": 2,
            "metrics": {"listen": "[::1]:1"},
            "admin": {"socket": "/x"},
            "log": {"format": "text", "level": "debug"},
            "drain": "2m",
        }
    )
    assert (made.id, made.address, made.workers, made.drain_s) == ("web_IN_3", ip_address("::"), 2, 120.0)
    assert made.metrics is not None
    assert made.metrics.listen == HostPort("::1", 1)
    assert (made.admin.socket, made.log.format, made.log.level) == ("/x", "text", "debug")


def test_a_wildcard_is_listened_on_only_on_purpose() -> None:
    for address in ("0.0.0.0", "::"):
        with pytest.raises(ValidationError, match="every network of this machine"):
            Settings.model_validate({"address": address})
        with pytest.raises(ValidationError, match="every network of this machine"):
            Settings.model_validate({"address": address, "unsafe_listen": False})
        assert Settings.model_validate({"address": address, "unsafe_listen": True}).unsafe_listen
    assert not Settings.model_validate({"address": "10.0.0.4"}).unsafe_listen


def test_metrics_can_be_off() -> None:
    assert Settings.model_validate({"metrics": False}).metrics is None
    for wrong in (True, None, 9464, "off"):
        with pytest.raises(ValidationError, match="no place for metrics"):
            Settings.model_validate({"metrics": wrong})


@pytest.mark.parametrize("schema", [service_schema(), settings_schema()], ids=["service", "settings"])
def test_the_schemas_are_for_draft_07_editors(schema: dict[str, Any]) -> None:
    jsonschema.Draft7Validator.check_schema(schema)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert schema["$id"].startswith("urn:relay:")
    parts = list(walk(schema))
    assert len(parts) > 20
    for part in parts:
        assert not {"prefixItems", "$defs", "unevaluatedProperties", "patternProperties"} & part.keys()
        if part.get("type") == "object":
            assert part["additionalProperties"] is not True


@pytest.mark.parametrize("schema", [service_schema(), settings_schema()], ids=["service", "settings"])
def test_every_key_is_described(schema: dict[str, Any]) -> None:
    keys = [item for part in walk(schema) for item in part.get("properties", {}).items()]
    declared = [
        (name, key)
        for name, key in keys
        if isinstance(key, dict) and not key.keys() & {"const", "additionalProperties"}
    ]
    assert len(declared) >= 8
    assert [name for name, key in declared if not key.get("description") and "$ref" not in key] == []


def walk(part: Any) -> Any:
    if isinstance(part, dict):
        yield part
        for value in part.values():
            yield from walk(value)
    elif isinstance(part, list):
        for value in part:
            yield from walk(value)


@pytest.mark.parametrize(
    ("keys", "fits"),
    [
        (INPUT, True),
        (INTERNAL, True),
        (INTERNAL | {"from": ["web"]}, True),
        (INPUT | {"timeouts": {"idle": "off", "connect": "5s"}}, True),
        (INPUT | {"access": [{"deny": "10.0.0.0/8"}]}, True),
        ({"type": "input", "target": "127.0.0.1:1"}, False),
        ({"type": "internal", "target": "127.0.0.1:1"}, False),
        (INTERNAL | {"access": []}, False),
        (INTERNAL | {"public_port": 1}, False),
        (INPUT | {"from": ["web"]}, False),
        (INPUT | {"timeouts": {"keepalive": "off", "dead": "off"}}, True),
        (INPUT | {"timeouts": {"keepalive": "1m", "dead": "61s"}}, True),
        (INPUT | {"timeouts": {"keepalive": "1h", "dead": "off"}}, True),
        (INPUT | {"timeouts": {"keepalive": "off", "dead": "1s"}}, True),
        (INPUT | {"timeouts": {"keepalive": 15}}, False),
        (INPUT | {"timeouts": {"dead": "never"}}, False),
        (INPUT | {"timeouts": {"connect": "off"}}, False),
        (INPUT | {"timeouts": {"connect": 5}}, False),
        (INPUT | {"access": [{"deny": "10.0.0.0/8", "permit": "10.0.0.0/8"}]}, False),
        (INPUT | {"access": [{}]}, False),
        (INPUT | {"target": "db.internal:5432"}, False),
        (INPUT | {"limits": {"rate": 500}}, False),
        (INPUT | {"probe": {}}, True),
        (INPUT | {"probe": {"protocol": "http", "path": "/healthz", "interval": "1s", "timeout": "2s"}}, True),
        (INPUT | {"probe": {"protocol": "udp"}}, False),
        (INPUT | {"probe": {"interval": 15}}, False),
        (INPUT | {"probe": {"protocol": "http", "path": "no slash\n"}}, False),
        (INTERNAL | {"probe": {}}, True),
        (INTERNAL | {"probe": False}, True),
        (INTERNAL | {"probe": True}, False),
        (INPUT | {"distribution": "least-connections", "transparent": True}, True),
        (INPUT | {"distribution": "random"}, False),
        (INTERNAL | {"distribution": "five-tuple"}, False),
        (INPUT | {"access": "office"}, True),
        (INPUT | {"access": "10.0.0.0/8"}, False),
        (INPUT | {"port": "8995-8999", "unsafe_target": True}, True),
        (INPUT | {"port": "8995"}, False),
        (INTERNAL | {"port": "8995-8999", "target": "127.0.0.1:8995-8999"}, True),
        (INTERNAL | {"instance_ports": "1-2"}, False),
        (INPUT | {"instance_ports": "1-2"}, True),
        ({"type": "input", "instance_ports": "1-2", "port": 3, "target": "127.0.0.1:1"}, True),
        ({"type": "input", "instance_ports": "1-2", "target": "127.0.0.1:1"}, False),
        ({"type": "input", "port": 3, "target": "127.0.0.1:1"}, False),
        (INPUT | {"unsafe_target": "yes"}, False),
    ],
)
def test_the_schema_and_the_model_agree(keys: dict[str, Any], fits: bool) -> None:
    service = {"version": 1, "service": "s", "roles": {"web": {"instances": [], "endpoints": {"e": keys}}}}
    assert jsonschema.Draft7Validator(service_schema()).is_valid(service) is fits
    if fits:
        Service.model_validate(service)
    else:
        with pytest.raises(ValidationError):
            Service.model_validate(service)


def bare(*items: Any) -> Role:
    return Role.model_validate({"bare": True, "instances": list(items)})


@pytest.mark.parametrize("name", ["db", "cafe", "Dead.Beef", "db.", "a1", "10.0.0.com", "4a"])
def test_a_name_may_look_like_a_number_in_hex(name: str) -> None:
    (item,) = bare(name).items
    assert (item.kind, item.text) == ("name", name.lower().removesuffix("."))


@pytest.mark.parametrize("text", ["10.0.0.4a", "10.0.0.400", "10.0.0", "10.0.0.4/32", "[::1]", "fe80::g", "12", ""])
def test_what_is_meant_as_an_address_is_no_name(text: str) -> None:
    with pytest.raises(ValidationError):
        bare(text)
