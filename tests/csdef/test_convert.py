"""The import as a whole: the corpus, a round trip through the model for random services, and bytes of any kind."""

from dataclasses import replace
from pathlib import Path

import pytest

from relay.config.check import endpoints
from relay.config.load import check_files, load_service
from relay.csdef.convert import Imported, import_files
from relay.errors import ConfigError
from tests.csdef.services import CORPUS, SCHEMA, write

RIGHT = sorted(file.with_suffix("") for file in CORPUS.glob("*.yaml"))
WRONG = sorted(file.with_suffix("") for file in CORPUS.glob("*.expected"))


def imported(stem: Path, *, bare: bool = False) -> Imported:
    configuration = stem.with_suffix(".cscfg")
    files = (str(stem.with_suffix(".csdef")), str(configuration) if configuration.exists() else None)
    return import_files(*files, bare=bare)


def bare_file(stem: Path) -> Path:
    """What must come of it where the machines get no relay."""
    return CORPUS / "bare" / f"{stem.name}.yaml"


# --- the corpus -----------------------------------------------------------------------------------------------------------


def test_the_corpus_is_there() -> None:
    assert len(RIGHT) >= 12
    assert {bare_file(stem) for stem in RIGHT} == set((CORPUS / "bare").iterdir())
    assert len(WRONG) >= 33
    assert sorted([*RIGHT, *WRONG]) == sorted(file.with_suffix("") for file in CORPUS.glob("*.csdef"))
    assert {file.with_suffix("") for file in CORPUS.glob("*.cscfg")} <= {*RIGHT, *WRONG}


@pytest.mark.parametrize("stem", RIGHT, ids=lambda stem: stem.name)
def test_right(stem: Path) -> None:
    found = imported(stem)
    assert found.text
    assert found.text == stem.with_suffix(".yaml").read_text(encoding="utf-8")
    assert found == imported(stem)


@pytest.mark.parametrize("stem", RIGHT, ids=lambda stem: stem.name)
def test_what_is_imported_passes_the_check(stem: Path) -> None:
    file = str(stem.with_suffix(".yaml"))
    assert [problem for problem in check_files([file]) if problem.severity == "error"] == []
    SCHEMA.validate(load_service(file).document.data)


@pytest.mark.parametrize("stem", RIGHT, ids=lambda stem: stem.name)
def test_right_where_the_machines_get_no_relay(stem: Path) -> None:
    found = imported(stem, bare=True)
    assert found.text == bare_file(stem).read_text(encoding="utf-8")
    assert found == imported(stem, bare=True)


@pytest.mark.parametrize("stem", RIGHT, ids=lambda stem: stem.name)
def test_of_machines_without_relay_only_what_nobody_enforces_is_warned_of(stem: Path) -> None:
    with_relay = {problem.what for problem in check_files([str(stem.with_suffix(".yaml"))])}
    file = str(bare_file(stem))
    for problem in check_files([file]):
        assert problem.severity == "warning", problem
        enforced = problem.what.startswith(("nobody enforces it: ", "the edge alone enforces it: "))
        assert enforced or problem.what in with_relay
    loaded = load_service(file)
    SCHEMA.validate(loaded.document.data)
    assert all(role.bare for role in loaded.value.roles.values())


@pytest.mark.parametrize("stem", RIGHT, ids=lambda stem: stem.name)
def test_an_edge_needs_only_its_comment_sign_removed(stem: Path, tmp_path: Path) -> None:
    text = stem.with_suffix(".yaml").read_text(encoding="utf-8")
    file = tmp_path / "service.yaml"
    file.write_text(text.replace("\n# edge: ", "\nedge: "), encoding="utf-8")
    assert [problem for problem in check_files([str(file)]) if problem.severity == "error"] == []
    service = load_service(str(file)).value
    has_public = any(each.type == "input" for _, _, each, _ in endpoints(service))
    assert (service.edge is not None) == has_public


@pytest.mark.parametrize("bare", [False, True], ids=["", "bare"])
@pytest.mark.parametrize("stem", RIGHT, ids=lambda stem: stem.name)
def test_every_note_is_a_comment(stem: Path, bare: bool) -> None:
    found = imported(stem, bare=bare)
    comments = " ".join(line.partition("# ")[2].strip() for line in found.text.splitlines() if "# " in line)
    for note in found.notes:
        assert note.comment in comments
        assert str(note).isprintable()


@pytest.mark.parametrize("bare", [False, True], ids=["", "bare"])
@pytest.mark.parametrize("stem", WRONG, ids=lambda stem: stem.name)
def test_wrong(stem: Path, bare: bool) -> None:
    with pytest.raises(ConfigError) as caught:
        imported(stem, bare=bare)
    found = [str(replace(problem, file=Path(problem.file).name)) for problem in caught.value.problems]
    found = [line.replace(f"{CORPUS}/", "") for line in found]
    assert found
    assert found == stem.with_suffix(".expected").read_text(encoding="utf-8").splitlines()
    for problem in caught.value.problems:
        assert problem.what
        assert problem.fix
        assert str(problem).isprintable()


def test_secrets_stay_where_they_are() -> None:
    assert "secret" in (CORPUS / "left-out.cscfg").read_text()
    assert "secret" in (CORPUS / "left-out.csdef").read_text()
    found = imported(CORPUS / "left-out")
    assert "secret" not in found.text + "".join(map(str, found.notes))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        import_files(str(tmp_path / "a.csdef"), str(tmp_path / "a.cscfg"))
    assert [problem.what for problem in caught.value.problems] == ["cannot be read: no such file"] * 2


def test_a_service_that_is_too_large_for_relay(folder: Path) -> None:
    """Soft hyphens, which are longer as escapes: what is imported must be what relay reads."""
    rule = f'<Rule order="1" action="deny" remoteSubnet="10.0.0.0/8" description="{chr(0xAD) * 1_100_000}"/>'
    lists = f'<AccessControls><AccessControl name="a">{rule}</AccessControl></AccessControls>'
    network = f"<NetworkConfiguration>{lists}</NetworkConfiguration>"
    files = write(
        folder,
        b'<ServiceDefinition name="s"><WorkerRole name="w"/></ServiceDefinition>',
        f'<ServiceConfiguration serviceName="s">{network}</ServiceConfiguration>'.encode(),
    )
    with pytest.raises(ConfigError, match=r"becomes a service\.yaml of more than 4 MiB"):
        import_files(*files)


# --- a round trip through the model ---------------------------------------------------------------------------------------


# --- bytes of any kind ----------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: no such file"):
        import_files(str(tmp_path / "none.csdef"))
