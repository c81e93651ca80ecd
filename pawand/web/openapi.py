"""`/openapi.json`: the HTTP contract for programs, from the types of `wire.py` and one table of operations.

What a route may answer is written as codes of errors, from which the statuses follow (`base.STATUSES`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from pawand import __version__, wire
from pawand.web.base import STATUSES

Json = dict[str, Any]

_SCHEMAS = "#/components/schemas/"
_ANYWHERE = ("too_large", "unauthorized", "too_many_failures", "host_not_allowed", "internal", "unavailable")
_BODY = ("bad_request", "unsupported_media_type")
_SESSION = ("bad_request", "not_found", "storage")
_QUEUE = ("conflict", "busy", "storage")
_RETRY = ("busy", "too_many_failures", "unavailable")


class Operation(Struct, frozen=True, kw_only=True):
    """`answer` is a type of `wire`, a list of one, or a media type; None is no body."""

    id: str
    summary: str
    answer: Any
    status: int = 200
    also: tuple[tuple[int, type[Struct]], ...] = ()
    """What else a status may come with, besides its errors."""
    body: type[Struct] | None = None
    optional: bool = False
    """Whether the body may be left out."""
    parameters: tuple[str, ...] = ()
    """Besides those of the path; keys of PARAMETERS."""
    codes: tuple[str, ...] = ()
    """Of errors, besides those that every route may answer with."""
    public: bool = False
    makes_session: bool = False


OPERATIONS: dict[str, Operation] = {
    "GET /health": Operation(
        id="health", summary="How the daemon is", answer=wire.HealthDetail, also=((200, wire.Health),), public=True
    ),
    "GET /ready": Operation(
        id="ready",
        summary="Whether a message that comes now is answered",
        answer=wire.Ready,
        also=((503, wire.Ready),),
    ),
    "GET /metrics": Operation(id="metrics", summary="Figures for Prometheus", answer="text/plain"),
    "GET /openapi.json": Operation(id="openapi", summary="This document", answer="application/json"),
    "GET /agents": Operation(id="agents", summary="This agent and its peers", answer=wire.Agents, public=True),
    "GET /models": Operation(
        id="models", summary="The models", answer=wire.Models, parameters=("live",), codes=("bad_request",)
    ),
    "POST /chat": Operation(
        id="chat",
        summary="Send a message and wait for the answer",
        answer=wire.ChatAnswer,
        body=wire.ChatRequest,
        parameters=("Idempotency-Key", "Pawan-Hops"),
        codes=(*_BODY, *_QUEUE, *wire.TURN_CODES),
        makes_session=True,
    ),
    "POST /chat/stream": Operation(
        id="chatStream",
        summary="Send a message and read the answer as events",
        answer="text/event-stream",
        body=wire.ChatRequest,
        parameters=("Idempotency-Key", "Pawan-Hops"),
        codes=(*_BODY, *_QUEUE, *wire.TURN_CODES),
    ),
    "GET /sessions": Operation(
        id="listSessions",
        summary="The conversations, the newest first",
        answer=list[wire.SessionSummary],
        parameters=("limit", "offset", "q"),
        codes=("bad_request", "storage"),
    ),
    "POST /sessions": Operation(
        id="createSession",
        summary="Make an empty conversation",
        answer=wire.SessionCreated,
        body=wire.CreateSessionRequest,
        optional=True,
        codes=(*_BODY, "conflict", "storage"),
        makes_session=True,
    ),
    "GET /sessions/{id}": Operation(
        id="getSession", summary="A conversation with its messages", answer=wire.SessionDetail, codes=_SESSION
    ),
    "DELETE /sessions/{id}": Operation(
        id="deleteSession", summary="Delete a conversation", answer=None, status=204, codes=_SESSION
    ),
    "POST /sessions/{id}/messages": Operation(
        id="submit",
        summary="Send a message without waiting for the answer",
        answer=wire.Submitted,
        status=202,
        body=wire.SubmitRequest,
        parameters=("Idempotency-Key", "Pawan-Hops"),
        codes=(*_BODY, *_SESSION, *_QUEUE),
    ),
    "GET /sessions/{id}/events": Operation(
        id="events",
        summary="What happens in a conversation, as events without an end",
        answer="text/event-stream",
        parameters=("Last-Event-ID", "after"),
        codes=_SESSION,
    ),
    "POST /sessions/{id}/fork": Operation(
        id="forkSession",
        summary="Go on from any message in a copy",
        answer=wire.SessionCreated,
        body=wire.ForkRequest,
        optional=True,
        codes=(*_BODY, *_SESSION),
        makes_session=True,
    ),
    "POST /sessions/{id}/cancel": Operation(
        id="cancel",
        summary="End the turn that runs",
        answer=wire.Cancelled,
        parameters=("all",),
        codes=(*_SESSION, "unsupported_media_type"),
    ),
    "GET /sessions/{id}/permissions": Operation(
        id="listPermissions",
        summary="The tool calls that wait for a decision",
        answer=list[wire.PermissionRequest],
        codes=_SESSION,
    ),
    "POST /sessions/{id}/permissions/{request_id}": Operation(
        id="decide",
        summary="Allow or deny a tool call",
        answer=wire.PermissionAnswer,
        body=wire.PermissionAnswer,
        codes=(*_BODY, *_SESSION),
    ),
}
"""Every verb of every route of `app.ROUTES`, HEAD (as GET, without the body) and OPTIONS aside."""

_COUNT = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
PARAMETERS: dict[str, tuple[str, Json, str]] = {
    "id": ("path", {"type": "string", "pattern": wire.ID_PATTERN}, "The conversation."),
    "request_id": ("path", {"type": "string", "minLength": 1}, "`id` of the `permission_request`."),
    "limit": ("query", _COUNT, "How many at most."),
    "offset": ("query", _COUNT, "How many to leave out."),
    "q": ("query", {"type": "string"}, "Only those with this text in `title` or `id`."),
    "live": ("query", {"enum": ["1"]}, "Ask the provider too which models it has."),
    "all": ("query", {"enum": ["1"]}, "End the turns that wait behind it too."),
    "after": ("query", {"type": "string"}, "The last event id that the client has seen."),
    "Last-Event-ID": ("header", {"type": "string"}, "The same; it counts more than `after`."),
    "Idempotency-Key": (
        "header",
        {"type": "string", "minLength": 1, "maxLength": 255},
        "The same request with the same key meets its first turn.",
    ),
    "Pawan-Hops": (
        "header",
        {"type": "integer", "minimum": 0, "maximum": 9999},
        "How many agents have passed the message on.",
    ),
}


@functools.cache  # the same as long as the process lives
def document() -> bytes:
    """OpenAPI 3.1, as JSON."""
    paths: dict[str, Json] = {}
    for route, operation in OPERATIONS.items():
        verb, path = route.split()
        paths.setdefault(path, {})[verb.lower()] = _operation(path, operation)
    _, schemas = msgspec.json.schema_components(_types(), ref_template=f"{_SCHEMAS}{{name}}")
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "pawand",
                "version": __version__,
                "description": "The Pawan coding agent on HTTP. HEAD is answered as GET, without the body.",
                "license": {"name": "MIT", "identifier": "MIT"},
            },
            "servers": [{"url": "/"}, {"url": "/api"}],
            "security": [{}, {"token": []}],
            "paths": paths,
            "components": {
                "schemas": schemas,
                "parameters": {name: _parameter(name) for name in PARAMETERS},
                "securitySchemes": {
                    "token": {
                        "type": "http",
                        "scheme": "bearer",
                        "description": "For callers from other machines, through a proxy, or with `local_auth`.",
                    }
                },
            },
        }
    )


def _types() -> list[Any]:
    """What decodes requests and encodes answers and events."""
    kinds = [kind for kind in vars(wire).values() if isinstance(kind, type) and issubclass(kind, Struct)]
    return [kind for kind in kinds if kind not in (Struct, wire.Event)]


def _operation(path: str, operation: Operation) -> Json:
    names = [*re.findall(r"{(\w+)}", path), *operation.parameters]
    made: Json = {
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in names],
        "responses": _responses(operation),
    }
    if operation.body is not None:
        content = {"application/json": {"schema": _ref(operation.body)}}
        made["requestBody"] = {"required": not operation.optional, "content": content}
    return made


def _parameter(name: str) -> Json:
    place, schema, description = PARAMETERS[name]
    return {"name": name, "in": place, "required": place == "path", "schema": schema, "description": description}


def _responses(operation: Operation) -> Json:
    codes = {*_ANYWHERE, *operation.codes, *(() if operation.public else ("origin_not_allowed",))}
    statuses = sorted({STATUSES.get(code, 500) for code in codes})
    made = {str(operation.status): _answer(operation)}
    made |= {str(status): _error([c for c in sorted(codes) if STATUSES.get(c, 500) == status]) for status in statuses}
    for status, kind in operation.also:
        schema = made[str(status)]["content"]["application/json"]
        schema["schema"] = {"anyOf": [_ref(kind), schema["schema"]]}
    return made


def _answer(operation: Operation) -> Json:
    made: Json = {"description": operation.summary}
    if isinstance(operation.answer, str):
        made["content"] = {operation.answer: _media(operation.answer)}
    elif operation.answer is not None:
        [schema], _ = msgspec.json.schema_components([operation.answer], ref_template=f"{_SCHEMAS}{{name}}")
        made["content"] = {"application/json": {"schema": schema}}
    if operation.makes_session:
        made["links"] = {
            other.id: {"operationId": other.id, "parameters": {"id": "$response.body#/session_id"}}
            for route, other in OPERATIONS.items()
            if "{id}" in route and "{request_id}" not in route
        }
    return made


def _media(kind: str) -> Json:
    if kind == "application/json":
        return {"schema": {"type": "object"}}
    return {"schema": _event_schema() if kind == "text/event-stream" else {"type": "string"}}


def _event_schema() -> Json:
    """Of each event, which is what `schema` means for a stream (OpenAPI 3.2 says `itemSchema`)."""
    kinds = []
    for event in wire.Event.__subclasses__():
        data = {"type": "string", "contentMediaType": "application/json", "contentSchema": _ref(event)}
        kinds.append({"properties": {"event": {"const": event.event}, "data": data}})
    return {
        "description": "An event of the stream.",
        "type": "object",
        "properties": {"id": {"type": "string"}},
        "required": ["id", "event", "data"],
        "oneOf": kinds,
    }


def _error(codes: Iterable[str]) -> Json:
    codes = list(codes)
    made: Json = {
        "description": ", ".join(f"`{code}`" for code in codes),
        "content": {
            "application/json": {"schema": {**_ref(wire.Error), "properties": {"code": {"enum": codes}}}},
        },
    }
    if set(codes) <= set(_RETRY):
        made["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds."}}
    if codes == ["unauthorized"]:
        made["headers"] = {"WWW-Authenticate": {"schema": {"const": "Bearer"}}}
    return made


def _ref(kind: type[Struct]) -> Json:
    return {"$ref": f"{_SCHEMAS}{kind.__name__}"}
