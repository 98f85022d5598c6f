"""The keys of a probe: what each is read as, what goes with what, and that the schema says the same."""

from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from pydantic import ValidationError

from relay.config.model import Service
from relay.config.probe import Probe
from relay.config.schema import service_schema

HTTP = {"protocol": "http", "path": "/healthz"}


def test_the_defaults() -> None:
    made = Probe()
    assert (made.protocol, made.port, made.path, made.send, made.expect, made.tls) == ("tcp", *[None] * 5)
    assert (made.interval_s, made.timeout_s, made.rise, made.fall, made.on_down) == (2.0, 5.0, 1, 1, "keep")


def test_every_key() -> None:
    made = Probe.model_validate(
        HTTP | {"port": 8008, "expect": [200, 204], "tls": "verify", "rise": 3, "fall": 2, "on_down": "cut"}
    )
    assert (made.path, made.port, made.expect, made.tls) == ("/healthz", 8008, (200, 204), "verify")
    assert (made.rise, made.fall, made.on_down) == (3, 2, "cut")
    made = Probe.model_validate({"send": "PING\r\n", "expect": "+PONG", "tls": True})
    assert (made.send, made.expect, made.tls) == ("PING\r\n", "+PONG", True)


@pytest.mark.parametrize(
    ("keys", "by_own_machine"), [({}, False), ({"tls": True}, False), ({"tls": "verify"}, True), ({"port": 1}, True)]
)
def test_who_can_ask(keys: dict[str, Any], by_own_machine: bool) -> None:
    assert Probe.model_validate(keys).of_own_machine is by_own_machine


@pytest.mark.parametrize(
    ("keys", "fits"),
    [
        ({"send": "PING\r\n"}, True),
        ({"send": "\x00\xff", "expect": "\xd2"}, True),
        ({"expect": "220 "}, True),
        ({"protocol": "tcp", "expect": "x" * 1024}, True),
        (HTTP | {"expect": [200]}, True),
        (HTTP | {"expect": [200, 503, 599]}, True),
        ({"tls": True}, True),
        (HTTP | {"tls": False}, True),
        (HTTP | {"tls": "verify", "port": 65535}, True),
        ({"rise": 100, "fall": 100, "on_down": "keep"}, True),
        ({"path": "/"}, False),
        ({"protocol": "http"}, False),
        (HTTP | {"send": "x"}, False),
        (HTTP | {"expect": "200"}, False),
        (HTTP | {"expect": 200}, False),
        (HTTP | {"expect": []}, False),
        (HTTP | {"expect": [199]}, False),
        (HTTP | {"expect": [600]}, False),
        (HTTP | {"expect": [True]}, False),
        ({"expect": [200]}, False),
        ({"protocol": "tcp", "expect": 220}, False),
        ({"expect": ""}, False),
        ({"send": "x" * 1025}, False),
        ({"send": "\u0100"}, False),
        ({"send": True}, False),
        ({"tls": "true"}, False),
        ({"tls": 1}, False),
        ({"rise": 0}, False),
        ({"fall": 101}, False),
        ({"fall": "2"}, False),
        ({"on_down": "close"}, False),
        ({"port": 65536}, False),
        ({"port": "8000-8001"}, False),
    ],
)
def test_the_schema_and_the_model_agree(keys: dict[str, Any], fits: bool) -> None:
    endpoint = {"type": "internal", "port": 1, "target": "127.0.0.1:1", "probe": keys}
    service = {"version": 1, "service": "s", "roles": {"web": {"instances": [], "endpoints": {"e": endpoint}}}}
    assert jsonschema.Draft7Validator(service_schema()).is_valid(service) is fits
    if fits:
        Service.model_validate(service)
    else:
        with pytest.raises(ValidationError):
            Service.model_validate(service)
