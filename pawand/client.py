"""The HTTP client of the command: blocking, standard library only, so that `pawand status` starts in no time."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pawand import paths, procfs
from pawand.errors import ConfigError, PawandError

CONNECT_SECS = 5.0
MAX_UPTIME_SECS = 10**10
ANSWER_SECS = 10.0
STREAM_SECS = 60.0  # the daemon sends a comment every 15 s
# What is computed with here must be what it should be, whoever answers; the rest is only shown.
_KINDS: dict[str, Callable[[Any], bool]] = {
    "uptime_secs": lambda value: type(value) in (int, float) and 0 <= value < MAX_UPTIME_SECS,
    "updated_at": lambda value: _is_time(value),
    "timestamp": lambda value: _is_time(value),
    "id": lambda value: isinstance(value, str),
    "content": lambda value: isinstance(value, str),
    "title": lambda value: isinstance(value, str),
    "role": lambda value: isinstance(value, str),
    "messages": lambda value: isinstance(value, list),
    "reasons": lambda value: isinstance(value, list),
    "groups": lambda value: value is None or isinstance(value, list),
    "tool_calls": lambda value: _are_objects(value, {"id", "name", "arguments"}),
    "tool_result": lambda value: isinstance(value, dict) and isinstance(value.get("tool_call_id"), str),
}
_STATE_KEYS = {"pid", "start_ticks", "url", "version", "token_file", "workspace", "options", "drain_secs", "systemd"}


class NotRunningError(PawandError):
    """Nobody answers at the daemon's address."""

    code = "not_running"


class UnansweringError(NotRunningError):
    """The daemon of this state folder runs, and does not answer."""

    code = "unanswering"


class StateError(PawandError):
    """The state folder may not be looked into."""

    code = "state"


class RefusedError(PawandError):
    """The daemon answered with an error; `code` is its own."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Client:
    """Requests to one daemon. `token` is sent where there is one, `headers` with every request; `known` is the state
    file of one that runs here."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        known: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        answer_secs: float = ANSWER_SECS,
    ) -> None:
        """Raises ConfigError for what is no address."""
        self.url = url.rstrip("/")
        self._token = token
        self._known = known
        self._headers = headers or {}
        self._answer_secs = answer_secs
        try:
            parts = urlsplit(self.url)
            port = parts.port
            (parts.hostname or "").encode("idna")
            parts.path.encode("ascii")
        except ValueError as error:
            raise ConfigError(f"{url!r} is no address: write it like http://localhost:3300") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() for c in url):
            raise ConfigError(f"{url!r} is no address: write it like http://localhost:3300")
        self._host, self._port, self._path = parts.hostname, port, parts.path
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection

    def get(self, path: str, *keys: str) -> dict[str, Any]:
        """The JSON object at `path`, which has at least `keys`."""
        return self._object(self._call("GET", path), keys)

    def get_list(self, path: str, *keys: str) -> list[dict[str, Any]]:
        """The JSON list at `path`, of objects that have at least `keys`."""
        return self.rows(self._call("GET", path), *keys)

    def rows(self, value: Any, *keys: str) -> list[dict[str, Any]]:
        """`value`, if it is a list of objects that have at least `keys`."""
        if not _are_objects(value, set(keys)):
            raise strange(self.url)
        rows: list[dict[str, Any]] = value
        return rows

    def post(self, path: str, body: dict[str, Any], *keys: str) -> dict[str, Any]:
        """The JSON object that answers, which has at least `keys`."""
        return self._object(self._call("POST", path, body), keys)

    def delete(self, path: str) -> None:
        self._call("DELETE", path)

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """POST and yield (event, id, data) of each server-sent event as it comes."""
        with self._open("POST", path, body, STREAM_SECS) as response:
            if response.headers.get_content_type() != "text/event-stream":
                raise strange(self.url)
            event = id = ""
            data: list[str] = []
            for raw in response:
                line = raw.decode("utf-8", "replace").rstrip("\r\n")
                if not line and data:
                    yield event, id, self._event_data("\n".join(data))
                    event, data = "", []
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if name == "event":
                    event = value
                elif name == "id":
                    id = value
                elif name == "data":
                    data.append(value)

    def _object(self, found: Any, keys: Sequence[str]) -> dict[str, Any]:
        if not _is_object(found, set(keys)):
            raise strange(self.url)
        answer: dict[str, Any] = found
        return answer

    def _event_data(self, text: str) -> dict[str, Any]:
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise strange(self.url) from error
        if not isinstance(data, dict):
            raise strange(self.url)
        return data

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        with self._open(method, path, body, self._answer_secs) as response:
            if response.status == HTTPStatus.NO_CONTENT:
                return None
            answer = response.read()
        try:
            return json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise strange(self.url) from error

    @contextmanager
    def _open(
        self, method: str, path: str, body: dict[str, Any] | None, timeout: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        headers = {"Accept": "application/json, text/event-stream", **self._headers}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        with closing(self._kind(self._host, self._port, timeout=CONNECT_SECS)) as connection:
            if self._known is not None and procfs.is_halted(self._known["pid"]):
                raise silent(self._known)
            try:
                connection.connect()
                if connection.sock is not None:
                    connection.sock.settimeout(timeout)
                connection.request(method, self._path + path, data, headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                if self._known is not None:
                    raise silent(self._known, str(error)) from error
                raise NotRunningError(
                    f"pawand does not answer at {self.url} ({error or type(error).__name__}); `pawand serve` starts it"
                ) from error
            if response.status >= 400:
                raise _refused(self.url, response)
            try:
                yield response
            except (OSError, http.client.HTTPException) as error:
                raise NotRunningError(f"the connection to {self.url} broke: {error or type(error).__name__}") from error


def _is_object(value: Any, keys: set[str]) -> bool:
    """Whether it is one with at least `keys`, and with values of the right kind."""
    return (
        isinstance(value, dict)
        and value.keys() >= keys
        and all(_KINDS[key](value[key]) for key in value.keys() & _KINDS.keys())
    )


def _are_objects(value: Any, keys: set[str]) -> bool:
    return isinstance(value, list) and all(_is_object(row, keys) for row in value)


def _is_time(value: Any) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


def _refused(url: str, response: http.client.HTTPResponse) -> RefusedError:
    try:
        answer = json.loads(response.read())
        return RefusedError(str(answer["error"]), str(answer["code"]))
    except (ValueError, KeyError, TypeError, RecursionError, OSError, http.client.HTTPException):
        return strange(url)


def strange(url: str) -> RefusedError:
    """For an answer that no pawand gives."""
    return RefusedError(f"what answers at {url} is not pawand: is this the right address?", "not_pawand")


def silent(known: Mapping[str, Any], reason: str = "") -> UnansweringError:
    """Why the daemon that runs here does not answer, and what to do."""
    pid = known["pid"]
    if known.get("stopping"):
        return UnansweringError(f"pawand (pid {pid}) is stopping; `pawand stop --now` ends it at once")
    if procfs.is_halted(pid):
        return UnansweringError(
            f"pawand (pid {pid}) runs but does not answer, because it was halted (SIGSTOP): "
            f"`kill -CONT {pid}` lets it go on, `pawand stop --now` ends it"
        )
    why = f" ({reason})" if reason else ""
    return UnansweringError(
        f"pawand (pid {pid}) runs but does not answer at {known['url']}{why}: `pawand logs` may say why, "
        "`pawand stop --now` ends it, and loses nothing that was seen"
    )


def url_of(host: str, port: int) -> str:
    """Where to reach a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not an address to bind
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def read_state_file(state: Path) -> dict[str, Any] | None:
    """Who says that it runs here; None where nobody does, or its process is gone (another may have its pid).

    Raises StateError where that may not be looked at.
    """
    try:
        found = dict(json.loads(paths.state_file(state).read_bytes()))
        same = found.keys() >= _STATE_KEYS and procfs.start_ticks(int(found["pid"])) == found["start_ticks"]
    except PermissionError as error:
        raise StateError(
            f"the state folder {state} may not be read: it is another user's. Run this as that user, or set "
            "PAWAND_STATE_DIR"
        ) from error
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if same else None
