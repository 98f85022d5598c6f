"""From the two files of a cloud service to the text of service.yaml, or to every problem of both."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from relay.config.document import SIZE_MAX_BYTES
from relay.config.reading import read_content
from relay.csdef import configuration, definition
from relay.csdef.bare import BareMapping
from relay.csdef.check import check_configuration, check_definition
from relay.csdef.mapping import Mapping
from relay.csdef.read import Note
from relay.csdef.tree import Element, parse_xml
from relay.csdef.yamltext import render
from relay.errors import ConfigError, Problem

__all__ = ["Imported", "import_files"]

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class Imported:
    """A service.yaml, and by their places the notes that are comments in it."""

    text: str
    notes: tuple[Note, ...]


def import_files(definition_path: str, configuration_path: str | None = None, *, bare: bool = False) -> Imported:
    """The service of a .csdef and, if there is one, its .cscfg; with `bare`, of machines that get no relay.

    Raises ConfigError with every problem of both files.
    """
    problems: list[Problem] = []
    defined = _parsed(definition_path, definition.ROOT, definition.NAMESPACE, definition.definition_of, problems)
    configured = None
    if configuration_path is not None:
        configured = _parsed(
            configuration_path,
            configuration.ROOT,
            configuration.NAMESPACE,
            configuration.configuration_of,
            problems,
        )
    if defined is not None:
        problems += check_definition(defined)
    if defined is not None and configured is not None:
        problems += check_configuration(configured, defined)
    if defined is None or problems:
        raise ConfigError(problems)
    mapping = (BareMapping if bare else Mapping)(defined, configured)
    text = render(mapping.service())
    if len(text.encode("utf-8")) > SIZE_MAX_BYTES:
        what = f"becomes a service.yaml of more than {SIZE_MAX_BYTES // 1024**2} MiB, which relay does not read"
        raise ConfigError([Problem(defined.file, *defined.at, "", what, "check that this is the right file")])
    return Imported(text, tuple(sorted(mapping.notes)))


def _parsed(
    path: str,
    root: str,
    namespace: str,
    reader: Callable[[Element, str, list[Problem]], Parsed],
    problems: list[Problem],
) -> Parsed | None:
    """What `reader` makes of a file; None where it is no XML. Every problem goes to `problems`."""
    try:
        document = parse_xml(read_content(path, piped=True), path, root, namespace)
    except ConfigError as error:
        problems += error.problems
        return None
    return reader(document, path, problems)
