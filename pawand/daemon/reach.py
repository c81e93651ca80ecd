"""Whether a provider can be reached, and takes the key: a question that costs nothing."""

from __future__ import annotations

import json
import urllib.request
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, Literal
from urllib.error import HTTPError

from pawand.providers.catalog import Choice

TIMEOUT_SECS = 5.0
MAX_BYTES = 4 * 1024 * 1024
State = Literal["ok", "note", "fault"]
Finding = tuple[State, str, str]
"""How it is, what was found, and what to do."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the configured address alone."""

    def redirect_request(self, *_: Any) -> None:
        return None


def ask(choice: Choice) -> Finding:
    """Ask for the list of models. Blocks."""
    request = urllib.request.Request(f"{choice.url}/models")  # noqa: S310 - http or https, by the settings
    if choice.key:
        request.add_unredirected_header("Authorization", f"Bearer {choice.key}")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_SECS) as response:
            models = response.read(MAX_BYTES)
    except HTTPError as error:
        error.close()
        return _refused(choice, error.code)
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        reason = getattr(reason, "strerror", None) or reason
        return (
            "fault",
            f"{choice.label} cannot be reached at {choice.url}: {reason}",
            "is the address right, the server up, the network there?",
        )
    if choice.model.removesuffix(":latest") not in _listed(models):
        return (
            "note",
            f"{choice.label} answers at {choice.url}, but does not list the model {choice.model}",
            "check `model`, unless chats work",
        )
    return "ok", f"{choice.label} answers at {choice.url}, model {choice.model}", ""


def _refused(choice: Choice, status: int) -> Finding:
    what = f"{choice.label} answers {status} at {choice.url}/models"
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return ("fault", f"{what}: the key is refused", "set another key, and restart pawand")
    if status == HTTPStatus.NOT_FOUND:
        return (
            "note",
            f"{what}: it has no list of models, or the address is wrong",
            "check `base_url`, unless chats work: most often /v1 is missing",
        )
    return ("fault", what, "the provider is in trouble, or `base_url` is the address of something else")


def _listed(body: bytes) -> list[str]:
    try:
        return [str(entry["id"]).removesuffix(":latest") for entry in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
