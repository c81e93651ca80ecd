"""The HTTP client of the command: blocking, standard library only, so that `pawand status` starts in no time."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pawand import paths
from pawand.errors import PawandError

CONNECT_SECS = 5.0
ANSWER_SECS = 30.0


class NotRunningError(PawandError):
    """Nobody answers at the daemon's address."""

    code = "not_running"


class RefusedError(PawandError):
    """The daemon answered with an error; `code` and `status` are its own."""

    def __init__(self, message: str, code: str, status: int) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class Client:
    """Requests to one daemon. `token` is sent where there is one."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._token = token

    def get(self, path: str) -> Any:
        return self._call("GET", path)

    def delete(self, path: str) -> None:
        self._call("DELETE", path)

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """POST and yield (event, id, data) of each server-sent event as it comes."""
        with self._open("POST", path, body, timeout=None) as response:
            event = id = ""
            data: list[str] = []
            for raw in response:
                line = raw.decode("utf-8").rstrip("\r\n")
                if not line and data:
                    yield event, id, json.loads("\n".join(data))
                    event, data = "", []
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if name == "event":
                    event = value
                elif name == "id":
                    id = value
                elif name == "data":
                    data.append(value)

    def _call(self, method: str, path: str) -> Any:
        with self._open(method, path, None, ANSWER_SECS) as response:
            body = response.read()
            return json.loads(body) if body else None

    @contextmanager
    def _open(
        self, method: str, path: str, body: dict[str, Any] | None, timeout: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        headers = {"Accept": "application/json, text/event-stream"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = None if body is None else json.dumps(body).encode()
        with closing(kind(parts.hostname or "", parts.port, timeout=CONNECT_SECS)) as connection:
            try:
                connection.connect()
                if connection.sock is not None:
                    connection.sock.settimeout(timeout)
                connection.request(method, parts.path + path, data, headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise NotRunningError(
                    f"pawand does not answer at {self.url} ({error or type(error).__name__})"
                ) from error
            if response.status >= 400:
                raise _refused(response)
            try:
                yield response
            except (OSError, http.client.HTTPException) as error:
                raise NotRunningError(f"the connection to {self.url} broke: {error or type(error).__name__}") from error


def _refused(response: http.client.HTTPResponse) -> RefusedError:
    body = response.read()
    try:
        answer = json.loads(body)
        return RefusedError(str(answer["error"]), str(answer["code"]), response.status)
    except (ValueError, KeyError, TypeError):
        return RefusedError(
            f"answered {response.status} {response.reason}: is this pawand?", "unknown", response.status
        )


def read_state_file(state: Path) -> dict[str, Any] | None:
    """Who says that it runs here; None where nobody does, or its process is gone."""
    try:
        found = json.loads(paths.state_file(state).read_bytes())
        os.kill(int(found["pid"]), 0)
    except PermissionError:
        return dict(found)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return dict(found)
