"""Variables from a snapshot, and as text: a shell and systemd's own parser read them back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.compile import compile_snapshot
from relay.config.document import parse
from relay.config.load import parse_settings
from relay.config.settings import Settings
from relay.control.environment import shell_text, systemd_text, variables
from relay.errors import ClashError
from tests.config.rig import service
from tests.harness import examples

TEXT = """\
version: 1
service: shop
roles:
  web:
    instances: [10.0.0.4, "2001:db8::5"]
    endpoints:
      http-in.v2: {type: input, public_port: 80, port: 8080, target: localhost:3000}
      many: {type: internal, port: 8995-8999, target: "127.0.0.1:7000"}
    uses:
      db: {endpoint: store/pg, listen: "127.0.0.1:5432"}
  store:
    instances: [10.0.1.4]
    endpoints:
      pg: {type: internal, port: 5432, target: "unix:/run/it's a \\"path\\" of $HOME"}
"""
SYSTEMD_PARSER = "/usr/lib/systemd/user-environment-generators/30-systemd-environment-d-generator"


def of(instance: str, text: str = TEXT, settings: str = "") -> dict[str, str]:
    shop = service(text)
    own = parse_settings(parse(settings.encode(), "instance.yaml")).value if settings else Settings()
    return variables(shop, compile_snapshot(shop, own, instance, generation=1, file="service.yaml"))


def test_an_instance() -> None:
    assert of("web_IN_0") == {
        "RELAY_SERVICE_NAME": "shop",
        "RELAY_INSTANCE": "web_IN_0",
        "RELAY_ROLE": "web",
        "RELAY_ORDINAL": "0",
        "RELAY_ADDRESS": "10.0.0.4",
        "RELAY_ENDPOINT_HTTP_IN_V2": "10.0.0.4:8080",
        "RELAY_ENDPOINT_HTTP_IN_V2_HOST": "10.0.0.4",
        "RELAY_ENDPOINT_HTTP_IN_V2_PORT": "8080",
        "RELAY_ENDPOINT_HTTP_IN_V2_TARGET": "localhost:3000",
        "RELAY_ENDPOINT_MANY": "10.0.0.4:8995",
        "RELAY_ENDPOINT_MANY_HOST": "10.0.0.4",
        "RELAY_ENDPOINT_MANY_PORT": "8995",
        "RELAY_ENDPOINT_MANY_TARGET": "127.0.0.1:7000",
        "RELAY_DOOR_DB": "127.0.0.1:5432",
        "RELAY_DOOR_DB_HOST": "127.0.0.1",
        "RELAY_DOOR_DB_PORT": "5432",
    }


def test_an_address_with_colons_and_one_that_is_every_address() -> None:
    found = of("web_IN_1")
    assert (found["RELAY_ENDPOINT_MANY"], found["RELAY_ENDPOINT_MANY_HOST"]) == ("[2001:db8::5]:8995", "2001:db8::5")
    everywhere = of("web_IN_0", settings="address: 0.0.0.0\nunsafe_listen: true\n")
    assert everywhere["RELAY_ENDPOINT_MANY"] == "10.0.0.4:8995"


def test_an_edge_has_its_public_ports_and_no_target_of_its_own() -> None:
    edge = "service: shop\nedge: {instances: [198.51.100.10]}"
    found = of("edge_IN_0", TEXT.replace("service: shop", edge).replace("2001:db8::5", "10.0.0.5"))
    assert {name: value for name, value in found.items() if name.startswith("RELAY_ENDPOINT")} == {
        "RELAY_ENDPOINT_WEB_HTTP_IN_V2": "198.51.100.10:80",
        "RELAY_ENDPOINT_WEB_HTTP_IN_V2_HOST": "198.51.100.10",
        "RELAY_ENDPOINT_WEB_HTTP_IN_V2_PORT": "80",
    }


@pytest.mark.parametrize(
    ("one", "other", "variable"),
    [
        ("a-b", "a.b", "RELAY_ENDPOINT_A_B"),
        ("A", "a", "RELAY_ENDPOINT_A"),
        ("a", "a-port", "RELAY_ENDPOINT_A_PORT"),  # the port of the one, and the address of the other
        ("a-host", "a", "RELAY_ENDPOINT_A_HOST"),
    ],
)
def test_two_names_that_become_one(one: str, other: str, variable: str) -> None:
    keys = '{type: internal, port: %d, target: "127.0.0.1:1"}'
    text = (
        "version: 1\nservice: shop\nroles:\n  web:\n    instances: [10.0.0.4]\n    endpoints:\n"
        f"      {one}: {keys % 1001}\n      {other}: {keys % 1002}\n"
    )
    with pytest.raises(ClashError) as caught:
        of("web_IN_0", text)
    both = f"endpoint `{one}` and endpoint `{other}` would both be {variable}; rename one of the two"
    assert str(caught.value).startswith(both)


# --- as text ------------------------------------------------------------------------------------------------------------

DUMP = [
    sys.executable,
    "-c",
    "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if k[:2] == 'X_'}))",
]
HARD = [
    "",
    " ",
    "a b",
    "it's",
    '"',
    "'\"'",
    "$HOME",
    "$(id)",
    "`id`",
    "\\",
    "\\\\n",
    "a\\",
    "#no",
    "a # b",
    ";",
    "=",
    "ü",
    "!x",
]


def test_a_shell_reads_it_back() -> None:
    wanted = {f"X_{n}": value for n, value in enumerate(HARD)}
    script = 'eval "$TEXT"; shift 0; exec "$@"'
    run = subprocess.run(
        ["sh", "-eu", "-c", script, "sh", *DUMP], env={"TEXT": shell_text(wanted)}, capture_output=True, check=True
    )
    assert json.loads(run.stdout) == wanted


@pytest.mark.skipif(not os.access(SYSTEMD_PARSER, os.X_OK), reason="systemd's parser of such files is not installed")
def test_systemd_reads_it_back(tmp_path: Path) -> None:
    """environment.d(5) has the same syntax, read by the same function.

    Beyond it, `$NAME` stands for a variable there, and an empty value takes one away.
    """
    wanted = {f"X_{n}": value for n, value in enumerate(HARD) if value and "$" not in value}
    assert len(wanted) > 10
    file = tmp_path / "environment.d" / "relay.conf"
    file.parent.mkdir()
    file.write_text(systemd_text(wanted))
    run = subprocess.run(
        [SYSTEMD_PARSER],
        env={"XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
        capture_output=True,
        check=True,
    )
    text = f"set -a\n{run.stdout.decode()}"  # what it prints is for a shell
    read = subprocess.run(["bash", "-c", f'{text}\nexec "$@"', "bash", *DUMP], env={}, capture_output=True, check=True)
    assert json.loads(read.stdout) == wanted


def test_what_systemd_would_take_away_has_a_backslash() -> None:
    assert systemd_text({"A": "b c\\d\"e`f$g'h"}) == 'A="b c\\\\d\\"e\\`f\\$g\'h"\n'


@examples(100)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20))
def test_systemd_text_is_read_back_by_the_rules_of_its_manual(value: str) -> None:
    r"""systemd.exec(5): in double quotes `\` before one of `"\`$` stands for that one, and everything else for itself."""
    text = systemd_text({"A": value})
    assert text[:3] == 'A="'
    assert text[-2:] == '"\n'
    inside, read = iter(text[3:-2]), ""
    for char in inside:
        assert char not in '"`$'
        read += next(inside) if char == "\\" else char
    assert read == value


def test_where_relays_talk_to_each_other_is_no_programs_business() -> None:
    assert of("web_IN_0", TEXT.replace("service: shop", "service: shop\nrelay_port: 7400")) == of("web_IN_0")
