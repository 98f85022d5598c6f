"""From a file to its model or its problems: the corpus line by line, and that no data gives anything else."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.document import Document, parse
from relay.config.load import check_files, kind_of, load_service, load_settings, parse_service, parse_settings
from relay.config.settings import Settings
from relay.errors import ConfigError, Problem
from tests.harness import examples

CORPUS = Path(__file__).parents[1] / "corpus"
VALID = sorted((CORPUS / "valid").glob("*.yaml"))
INVALID = sorted((CORPUS / "invalid").glob("*.yaml"))


def test_the_corpus_is_there() -> None:
    assert len(VALID) >= 10
    assert len(INVALID) >= 50
    assert {file.stem for file in INVALID} == {file.stem for file in (CORPUS / "invalid").glob("*.expected")}


@pytest.mark.parametrize("file", VALID, ids=lambda file: file.stem)
def test_valid(file: Path) -> None:
    assert check_files([str(file)]) == []


@pytest.mark.parametrize("file", INVALID, ids=lambda file: file.stem)
def test_invalid(file: Path) -> None:
    found = check_files([str(file)])
    assert any(problem.severity == "error" for problem in found)
    lines = [str(replace(problem, file=file.name)) for problem in found]
    assert lines == (CORPUS / "invalid" / f"{file.stem}.expected").read_text().splitlines()


@pytest.mark.parametrize("file", INVALID, ids=lambda file: file.stem)
def test_messages_are_an_operators_words(file: Path) -> None:
    for problem in check_files([str(file)]):
        assert problem.what
        assert problem.fix
        assert str(problem).isprintable()
        for jargon in ("Input should", "pydantic", "Extra inputs", "Value error", "dict", "tuple", "[key]", "NoneType"):
            assert jargon not in str(problem).replace("five-tuple", ""), "but for a distribution's name"


def write(folder: Path, name: str, text: str) -> str:
    file = folder / name
    file.write_text(text)
    return str(file)


SERVICE = """\
version: 1
service: shop
roles:
  web:
    instances: [10.0.0.4]
    endpoints:
      http-in:
        type: input
        public_port: 80
        target: 127.0.0.1:3000
        access:
          - deny: 203.0.113.9/24

          - permit: 203.0.0.0/8
"""


def test_a_service_with_warnings(tmp_path: Path) -> None:
    path = write(tmp_path, "service.yaml", SERVICE)
    loaded = load_service(path)
    assert loaded.value.service == "shop"
    assert loaded.document.path == path
    assert [problem.severity for problem in loaded.warnings] == ["warning"]
    assert check_files([path]) == list(loaded.warnings)


def test_rules_know_their_lines(tmp_path: Path) -> None:
    loaded = load_service(write(tmp_path, "service.yaml", SERVICE))
    endpoint = loaded.value.roles["web"].endpoints["http-in"]
    assert [rule.line for rule in loaded.value.rules_of(endpoint)] == [12, 14]


def test_rules_of_a_list_know_their_lines_too(tmp_path: Path) -> None:
    text = SERVICE.partition("        access:")[0] + "        access: office\naccess_lists:\n  office:\n"
    loaded = load_service(write(tmp_path, "service.yaml", text + "    - deny: 10.0.0.0/8\n\n    - deny: 11.0.0.0/8\n"))
    assert [rule.line for rule in loaded.value.access_lists["office"]] == [14, 16]


def test_moving_a_rule_changes_nothing(tmp_path: Path) -> None:
    before = load_service(write(tmp_path, "a.yaml", SERVICE))
    after = load_service(write(tmp_path, "b.yaml", "# one line more\n" + SERVICE))
    assert before.value == after.value


def test_settings(tmp_path: Path) -> None:
    loaded = load_settings(write(tmp_path, "instance.yaml", "id: web_IN_1\nmetrics: false\n"), required=True)
    assert (loaded.value.id, loaded.value.metrics, loaded.warnings) == ("web_IN_1", None, ())


def test_settings_may_be_missing_or_empty(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.yaml")
    assert load_settings(missing, required=False).value == Settings()
    with pytest.raises(ConfigError, match="no such file"):
        load_settings(missing, required=True)
    assert load_settings(write(tmp_path, "instance.yaml", "# all defaults\n"), required=True).value == Settings()


def test_settings_that_are_there_must_be_right(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        load_settings(str(tmp_path), required=False)
    link = tmp_path / "link.yaml"
    link.symlink_to(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        load_settings(str(link), required=False)
    with pytest.raises(ConfigError, match="did you mean `workers`"):
        load_settings(write(tmp_path, "instance.yaml", "worker: 2\n"), required=False)


@pytest.mark.parametrize(
    ("text", "name", "kind"),
    [
        ("version: 1\nroles: {}\n", "instance.yaml", "service"),
        ("verzion: 1\nrolles: {}\n", "x.yaml", "service"),
        ("edge: {}\n", "x.yaml", "service"),
        ("workers: 2\n", "service.yaml", "settings"),
        ("wokers: 2\ndrian: 2s\n", "x.yaml", "settings"),
        ("role: web\n", "x.yaml", "settings"),
        ("", "service.yaml", "service"),
        ("", "instance.yaml", "settings"),
        ("", "/etc/relay/instance-web.yaml", "settings"),
        ("zebra: 1\n", "x.yaml", "service"),
    ],
)
def test_which_file_it_is(text: str, name: str, kind: str) -> None:
    assert kind_of(parse(text.encode(), name)) == kind


def test_several_files_are_checked_in_one_run(tmp_path: Path) -> None:
    paths = [write(tmp_path, "b.yaml", SERVICE), write(tmp_path, "a.yaml", "drian: 3s\n"), str(tmp_path / "none.yaml")]
    found = check_files(paths)
    assert [Path(problem.file).name for problem in found] == ["a.yaml", "b.yaml", "none.yaml"]
    assert found == sorted(found)
    assert check_files([]) == []


COUNTED = (
    "version: 1\nservice: shop\nedge: {instances: [198.51.100.10]}\n"
    "roles: {web: {instances: 3}, store: {instances: [10.0.1.4]}}\n"
)
ETCD = "registry: {etcd: ['http://10.0.9.1:2379']}\n"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (f"role: web\n{ETCD}", None),
        (f"id: web_IN_1\n{ETCD}", None),
        ("id: edge_IN_0\n", None),
        ("", None),
        (f"role: wbe\n{ETCD}", "1:7: role: `wbe` is no role of service shop; did you mean `web`?"),
        ("id: wbe_IN_0\n", "1:5: id: `wbe` is no role of service shop; did you mean `web`?"),
        (
            "role: web\n",
            "1:7: role: role `web` has a count of instances, and no registry says where they are; write `registry`",
        ),
        (
            f"role: store\n{ETCD}",
            "1:7: role: role `store` lists its addresses, so there is no number to take; remove it",
        ),
    ],
)
def test_settings_are_held_against_the_service_beside_them(tmp_path: Path, settings: str, said: str | None) -> None:
    paths = [write(tmp_path, "service.yaml", COUNTED), write(tmp_path, "instance.yaml", settings)]
    found = [str(problem) for problem in check_files(paths)]
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(f"{paths[1]}:{said}")


DATA: dict[str, Any] = {
    "version": 1,
    "service": "shop",
    "access_lists": {"office": [{"deny": "198.51.100.0/24"}]},
    "roles": {
        "web": {
            "instances": ["10.0.0.4", "10.0.0.5"],
            "endpoints": {
                "in": {
                    "type": "input",
                    "protocol": "http",
                    "public_port": 80,
                    "port": 8080,
                    "target": "127.0.0.1:3000",
                    "access": [{"deny": "203.0.113.0/24"}, {"permit": "203.0.0.0/8"}],
                    "limits": {"connections": 10, "per_source": 2, "rate": "5/s"},
                    "timeouts": {"connect": "5s", "first_byte": "10s", "idle": "off"},
                    "send_proxy": "v1",
                },
                "own": {"type": "internal", "port": 81, "target": "10.0.0.4:8080", "from": ["web"]},
                "many": {
                    "type": "input",
                    "instance_ports": "90-99",
                    "port": "82-83",
                    "target": "127.0.0.1:1-2",
                    "unsafe_target": False,
                    "access": "office",
                    "enforce": "strict",
                    "deny": "drop",
                },
            },
        },
        "store": {"instances": ["10.0.1.4"]},
    },
}


def problems(data: dict[str, Any]) -> list[Problem]:
    try:
        return list(parse_service(Document("f.yaml", data, {}, {})).warnings)
    except ConfigError as error:
        return error.problems


def settings_problems(data: dict[str, Any]) -> list[Problem]:
    try:
        return list(parse_settings(Document("f.yaml", data, {}, {})).warnings)
    except ConfigError as error:
        return error.problems


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for step, item in items for place in places(item, (*path, step)))]


JUNK: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
KEYS = st.one_of(
    st.sampled_from(
        [
            "type",
            "port",
            "listen_ports",
            "access",
            "[key]",
            "roles",
            "deny",
            "from",
            "",
            "probe",
            "uses",
            "access_lists",
        ]
    ),
    st.text(max_size=8),
)


@examples(200)
@given(data=st.dictionaries(KEYS, JUNK, min_size=1, max_size=5))
def test_any_data_gives_problems(data: dict[str, Any]) -> None:
    for found in (problems(data), settings_problems(data)):
        assert all(str(problem).isprintable() and problem.what and problem.fix for problem in found)
        assert found


@examples(200)
@given(data=st.data())
def test_any_spoilt_service_gives_problems(data: st.DataObject) -> None:
    spoilt = copy.deepcopy(DATA)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([place for place in places(spoilt) if place]))
        holder: Any = spoilt
        for step in path[:-1]:
            holder = holder[step]
        if isinstance(holder, dict) and data.draw(st.booleans()):
            holder[data.draw(KEYS)] = data.draw(JUNK)
        else:
            holder[path[-1]] = data.draw(JUNK)
    for problem in problems(spoilt):
        assert str(problem).isprintable()
        assert problem.what
        assert problem.fix


JUNKS: tuple[Any, ...] = (None, True, -1, "?", [[]], {"?": 1})


def test_every_single_spoilt_value_is_found_where_it_is() -> None:
    spots = [path for path in places(DATA) if path]
    assert len(spots) > 30
    assert problems(DATA) == []
    for path in spots:
        for junk in JUNKS:
            spoilt = copy.deepcopy(DATA)
            holder: Any = spoilt
            for step in path[:-1]:
                holder = holder[step]
            holder[path[-1]] = junk
            found = problems(spoilt)
            if (path[-1], junk) == ("unsafe_target", True):
                assert found == [], "which is no junk here"
                continue
            assert found, (path, junk)
            # Another list in the place of `office` leaves the endpoint that names it without one.
            there = (named(path), "roles.web.endpoints.many.access") if path == ("access_lists",) else named(path)
            errors = [problem.path for problem in found if problem.severity == "error"]
            assert [place for place in errors if not place.startswith(there)] == [], (path, junk)


def named(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
