"""Spans of time on the command line, as the files have them: `90s`, `10m`."""

from relay.config.values import duration
from relay.errors import OperatorError, WrongValue


def seconds(option: str, text: str) -> float:
    """What the option says, in seconds. Raises OperatorError, which names the option."""
    try:
        return duration(text)
    except WrongValue as error:
        raise OperatorError(f"{option}: {error}") from None


def whole_seconds(option: str, text: str) -> int:
    """The same for the admin API, which takes whole seconds: at least one."""
    return max(1, round(seconds(option, text)))
