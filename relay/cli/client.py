"""The command line's side of the admin API: HTTP over a Unix socket, with the standard library alone."""

import errno
import http.client
import json
import socket
import struct
import time
from typing import Any, Final

from relay.config.values import HostPort
from relay.errors import AdminError, AgainError, RefusedError, os_reason

# For each step: connecting, sending, and each part of the answer. Control answers within a second when it has much to do.
_ANSWER_S: Final = 15.0
RESTARTED_S: Final = 20.0  # processes/watch.py's CONTROL_HUNG_S, and a start on a busy machine
# Reloads and upgrades wait for each other. One that is under way may read two files that hang (10 s each) and wait for a
# worker (2 s), or try a new version out (30 s); then the one that was asked for does, and 50,000 rules take seconds more.
_WORK_S: Final = 90.0
_REPLACED_S: Final = 15.0  # it takes less than a second
_ASK_AGAIN_S: Final = 0.05


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, within_s: float) -> None:
        super().__init__("localhost", timeout=within_s)
        self._path = path
        self._within_s = within_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # A backlog that is full is waited for by a socket that blocks, and by no other (unix(7)); so long at the most.
        whole_s = int(self._within_s)
        within = struct.pack("ll", whole_s, int((self._within_s - whole_s) * 1e6))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, within)
        try:
            self.sock.connect(self._path)
        except BlockingIOError:
            raise TimeoutError(errno.ETIMEDOUT, "its backlog is full") from None
        self.sock.settimeout(self._within_s)


class AdminClient:
    """Asks the daemon that serves `path`; at `listen` instead, where it is given and `path` is not for this user."""

    def __init__(self, path: str, listen: HostPort | None = None) -> None:
        self._path = path
        self._listen = listen

    @classmethod
    def find(cls, path: str | None, settings: str | None, *, discovery: bool = False) -> "AdminClient":
        """The daemon at `path`, or where the settings file says. Raises ConfigError for settings that cannot be read.

        For `discovery` alone: any user may ask, where the settings declare a loopback port.
        """
        if path is not None:
            return cls(path)
        from relay.config.load import find_settings  # here: whoever says where the socket is need not wait for it

        admin = find_settings(settings).value.admin
        return cls(admin.socket, admin.listen if discovery else None)

    def get(self, resource: str) -> Any:
        """The JSON value at `resource`. Raises AdminError."""
        return self._ask("GET", resource, _ANSWER_S)

    def post(self, resource: str, *, takes_time: bool = False) -> Any:
        """Do what `resource` says; the JSON answer. Raises AdminError. `takes_time`: a reload or an upgrade."""
        return self._ask("POST", resource, _WORK_S if takes_time else _ANSWER_S)

    def post_again(self, resource: str) -> Any:
        """The same of what takes time, asked again while an upgrade replaces control: it may be done twice.

        Raises AdminError.
        """
        deadline_s = time.monotonic() + _REPLACED_S
        while True:
            try:
                return self.post(resource, takes_time=True)
            except AgainError:
                if time.monotonic() >= deadline_s:
                    raise
            time.sleep(_ASK_AGAIN_S)

    def _ask(self, method: str, resource: str, within_s: float) -> Any:
        try:
            return self._exchange(_UnixConnection(self._path, within_s), self._path, method, resource)
        except PermissionError as error:
            if self._listen is None:
                raise self._unreachable(self._path, error) from error
        # Never first: while relay is down, any program here can listen at that port, and nobody else at the socket's path.
        where = http.client.HTTPConnection(self._listen.host, self._listen.port, timeout=within_s)
        try:
            return self._exchange(where, str(self._listen), method, resource)
        except PermissionError as error:
            raise self._unreachable(str(self._listen), error) from error

    def _exchange(self, connection: http.client.HTTPConnection, where: str, method: str, resource: str) -> Any:
        """One request. Raises AdminError, and PermissionError as it is."""
        try:
            connection.request(method, resource)
            response = connection.getresponse()
            body = json.loads(response.read())
        except PermissionError:
            raise
        except TimeoutError:
            what = f"the daemon at {where} has not answered within {connection.timeout:g} s"
            raise AdminError(
                f"{what}: its control process hangs, or has too much to do. Connections go on being forwarded; a control "
                f"that hangs is restarted by the daemon within {RESTARTED_S:g} s, so try again. `journalctl -u relay` has "
                "more"
            ) from None
        except ConnectionResetError as error:
            raise AgainError(
                f"the daemon at {where} ended the connection: its control was just replaced; ask again"
            ) from error
        except OSError as error:
            raise self._unreachable(where, error) from error
        except (http.client.HTTPException, ValueError) as error:
            raise AdminError(f"{where} does not speak relay's admin API: {error}") from error
        finally:
            connection.close()
        if response.status not in (http.client.OK, http.client.ACCEPTED):
            if isinstance(body, dict) and body.get("problems"):
                raise RefusedError("\n".join(map(str, body["problems"])))
            kind = AgainError if response.status == http.client.SERVICE_UNAVAILABLE else AdminError
            raise kind(str(body.get("error", body) if isinstance(body, dict) else body))
        return body

    @staticmethod
    def _unreachable(where: str, error: OSError) -> AdminError:
        fix = "is relay running? name its socket with --socket, or its settings with --settings"
        return AdminError(f"cannot reach {where}: {os_reason(error)}; {fix}")
