"""`/openapi.json`: it says what the routes are, what the code answers, and what the documents show."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from msgspec import Struct
from referencing.jsonschema import DRAFT202012

from pawand import __version__, errors, wire
from pawand.sessions.model import is_id
from pawand.web import app, base, openapi
from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.web.conftest import Fetch, until

ROOT = Path(__file__).parents[2]
DOCUMENT: dict[str, Any] = json.loads(openapi.document())


def routes() -> set[str]:
    """`GET /sessions/{id}` and so on."""
    found = set()
    for pattern, handler in app.ROUTES:
        path = pattern.replace("([^/]*)", "{id}", 1).replace("([^/]*)", "{request_id}")
        found |= {f"{verb} {path}" for verb in handler.verbs}
    return found


def operation(route: str) -> Any:
    verb, path = route.split()
    return DOCUMENT["paths"][path][verb.lower()]


def fits(value: Any, schema: dict[str, Any]) -> None:
    """Raises ValidationError."""
    whole = {"components": DOCUMENT["components"], **schema}
    jsonschema.Draft202012Validator(whole, format_checker=jsonschema.FormatChecker()).validate(value)


def answer_fits(route: str, status: int, value: Any) -> None:
    fits(value, operation(route)["responses"][str(status)]["content"]["application/json"]["schema"])


def named(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


# --- the document and the code --------------------------------------------------------------------


def test_every_route_and_verb_is_there_and_no_more() -> None:
    made = {f"{verb.upper()} {path}" for path, verbs in DOCUMENT["paths"].items() for verb in verbs}
    assert made == set(openapi.OPERATIONS) == routes()


def test_the_table_says_who_may_call_without_a_token() -> None:
    public = {route for route, entry in openapi.OPERATIONS.items() if entry.public}
    handlers = dict(app.ROUTES)
    assert public == {route for route in routes() if getattr(handlers.get(route.split()[1]), "public", False)}


def error_codes() -> Iterator[str]:
    def below(kind: type[errors.PawandError]) -> Iterator[type[errors.PawandError]]:
        yield kind
        for inner in kind.__subclasses__():
            yield from below(inner)

    yield from base.STATUSES
    yield errors.PawandError.code
    yield from (kind.code for kind in below(errors.TurnError))


def test_every_error_code_has_its_place_under_its_status() -> None:
    found: dict[str, set[str]] = {}
    for route in routes():
        for status, response in operation(route)["responses"].items():
            schema = response.get("content", {}).get("application/json", {}).get("schema", {})
            for part in [schema, *schema.get("anyOf", [])]:
                for code in part.get("properties", {}).get("code", {}).get("enum", []):
                    found.setdefault(code, set()).add(status)
    # Another verb is in no operation, which is what 405 says of it.
    assert set(found) == set(error_codes()) - {"method_not_allowed"}
    assert found == {code: {str(base.STATUSES.get(code, 500))} for code in found}


def test_turn_codes_are_those_of_the_errors() -> None:
    kinds = {kind.code for kind in errors.TurnError.__subclasses__()}
    assert set(wire.TURN_CODES) == kinds | {errors.PawandError.code}


def test_every_type_of_the_contract_is_a_schema() -> None:
    kinds = {kind.__name__ for kind in vars(wire).values() if isinstance(kind, type) and issubclass(kind, Struct)}
    assert set(DOCUMENT["components"]["schemas"]) == kinds - {"Struct", "Event"}


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_the_document_is_whole() -> None:
    resource = DRAFT202012.create_resource(DOCUMENT)
    used = set(references(DOCUMENT))
    for reference in used:
        found: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
    assert resource
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    ids = [operation(route)["operationId"] for route in routes()]
    assert len(set(ids)) == len(ids)
    assert {f"#/components/parameters/{name}" for name in openapi.PARAMETERS} <= used
    for route in routes():
        for response in operation(route)["responses"].values():
            assert response["description"]
            assert all(link["operationId"] in ids for link in response.get("links", {}).values())
    assert DOCUMENT["openapi"].startswith("3.1")
    assert DOCUMENT["info"]["version"] == __version__


@pytest.mark.parametrize("id", ["a", "a" * 128, "0-_", "a" * 129, "", "-a", "a/b", "é", "a\n", "."])
def test_ids_are_those_that_the_daemon_takes(id: str) -> None:
    schema = DOCUMENT["components"]["schemas"]["ChatRequest"]
    try:
        fits({"message": "m", "session_id": id}, schema)
        taken = True
    except jsonschema.ValidationError:
        taken = False
    assert taken == is_id(id) or id == "a\n"  # Python's `$` also stands before a line end, that of JSON Schema does not


# --- the document and the daemon ------------------------------------------------------------------


@pytest.mark.gen_test
async def test_it_is_served_as_it_is(fetch: Fetch) -> None:
    for path in ("/openapi.json", "/api/openapi.json"):
        answer = await fetch(path)
        assert (answer.code, json.loads(answer.body)) == (200, DOCUMENT)
        assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert (await fetch("/openapi.json", headers={"Via": "1.1 x"})).code == 401


@pytest.mark.gen_test
@pytest.mark.settings(permissions={"write_file": "prompt"})
async def test_a_whole_conversation_fits(fetch: Fetch, upstream: OpenAIServer, workspace: Path) -> None:
    """A call that waits for approval included, which no stranger's program comes by."""
    upstream.script = [
        fake.calls(("write_file", {"path": "a.txt", "content": "a"}), say="I will."),
        fake.text("Done."),
    ]

    async def call(route: str, path: str, status: int = 200, body: Any = None) -> Any:
        options = {} if body is None else {"body": json.dumps(body).encode()}
        answer = await fetch(path, method=route.split()[0], **options)
        assert answer.code == status, answer.body
        found = json.loads(answer.body)
        answer_fits(route, status, found)
        return found

    await call("POST /sessions", "/sessions", body={"session_id": "s", "title": "A file"})
    seen: list[bytes] = []
    follower = asyncio.ensure_future(fetch("/sessions/s/events", streaming_callback=seen.append))
    await until(lambda: seen, "the stream")
    await call("POST /sessions/{id}/messages", "/sessions/s/messages", 202, {"message": "Write it."})
    await until(lambda: b"event: permission_request" in b"".join(seen), "the request")
    [waiting] = await call("GET /sessions/{id}/permissions", "/sessions/s/permissions")
    decision = {"decision": "allow"}
    route = "POST /sessions/{id}/permissions/{request_id}"
    assert await call(route, f"/sessions/s/permissions/{waiting['id']}", body=decision) == decision
    await call(route, f"/sessions/s/permissions/{waiting['id']}", 404, decision)
    await until(lambda: b"event: done" in b"".join(seen), "the end")
    await call("GET /sessions", "/sessions?limit=5&q=file")
    await call("GET /sessions/{id}", "/sessions/s")
    await call("POST /sessions/{id}/cancel", "/sessions/s/cancel", body={})
    for path in ("/health", "/ready", "/agents", "/models"):
        await call(f"GET {path}", path)
    await call("GET /models", "/models?live=1")
    short = json.loads((await fetch("/health", headers={"Via": "1.1 x"})).body)
    answer_fits("GET /health", 200, short)
    assert (await fetch("/sessions/s", method="DELETE")).code == 204
    await follower
    names = events_fit("GET /sessions/{id}/events", b"".join(seen).decode())
    assert names == [
        "start",
        "token",
        "permission_request",
        "permission_resolved",
        "tool_start",
        "tool_complete",
        "token",
        "done",
    ]


def events_fit(route: str, text: str) -> list[str]:
    """Checks each event of a stream, its data too, and returns their names."""
    schema = operation(route)["responses"]["200"]["content"]["text/event-stream"]["schema"]
    data_of = {
        kind["properties"]["event"]["const"]: kind["properties"]["data"]["contentSchema"] for kind in schema["oneOf"]
    }
    frames = harness.parse_frames(text)
    for id, name, data in frames:
        fits({"id": id, "event": name, "data": json.dumps(data)}, schema)
        fits(data, data_of[name])
    return [name for _, name, _ in frames]


@pytest.mark.gen_test
async def test_the_stream_of_a_chat_fits(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("Hello")]
    answer = await fetch("/chat/stream", body=b'{"message": "m"}')
    assert events_fit("POST /chat/stream", answer.body.decode()) == ["start", "token", "done"]


def test_every_event_may_come_in_every_stream() -> None:
    for route in ("POST /chat/stream", "GET /sessions/{id}/events"):
        schema = operation(route)["responses"]["200"]["content"]["text/event-stream"]["schema"]
        names = [kind["properties"]["event"]["const"] for kind in schema["oneOf"]]
        assert names == [event.event for event in wire.Event.__subclasses__()]
        with pytest.raises(jsonschema.ValidationError):
            fits({"id": "e-1", "event": "made up", "data": "{}"}, schema)


# --- the document and the documentation -----------------------------------------------------------

API = (ROOT / "docs/api.md").read_text()
README = (ROOT / "README.md").read_text()


def samples() -> Iterator[tuple[str, Any]]:
    """(route, answer) of each sample answer of docs/api.md that stands in a section of a route."""
    for heading, text in re.findall(r"^### ((?:GET|POST) /\S+)$(.*?)(?=^#{1,3} |\Z)", API, re.MULTILINE | re.DOTALL):
        for sample in re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            yield heading, json.loads(sample)


@pytest.mark.parametrize(
    ("route", "sample"), list(samples()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_answers_that_the_documentation_shows_fit(route: str, sample: Any) -> None:
    """Some leave out what only pawand adds: what is there must be right, and the field must be known."""
    found = {response for response in operation(route)["responses"] if response.startswith("2")}
    [status] = found
    schema = operation(route)["responses"][status]["content"]["application/json"]["schema"]
    name = schema.get("$ref", "").rpartition("/")[2]
    if name == "ChatAnswer":
        full = DOCUMENT["components"]["schemas"][name]
        assert set(sample) <= set(full["properties"])
        schema = {**full, "required": []}
    fits(sample, schema)


def test_there_are_samples() -> None:
    assert len(list(samples())) >= 8


def test_the_error_that_the_documentation_shows_fits() -> None:
    [sample] = re.findall(r"^## Errors\n\n```json\n(.*?)^```", API, re.MULTILINE | re.DOTALL)
    answer_fits("POST /chat", 400, json.loads(sample))


def requests() -> Iterator[tuple[str, Any]]:
    """(route, body) of each curl in the README that sends one."""
    for block in re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            found = re.search(r"curl .*localhost:3300(/\S*?)[\"'?\s].*-d '(\{.*\})'", line + " ")
            if found:
                path = re.sub(r"^/sessions/[^/]+", "/sessions/{id}", found[1])
                yield f"POST {path}", json.loads(found[2])


def test_the_requests_of_the_readme_fit() -> None:
    found = list(requests())
    assert len(found) >= 6
    for route, body in found:
        fits(body, operation(route)["requestBody"]["content"]["application/json"]["schema"])


def test_the_stream_of_the_readme_fits() -> None:
    [stream] = re.findall(r"^```text\n(retry: 2000\n.*?)^```", README, re.MULTILINE | re.DOTALL)
    whole = stream.replace(",…}", ',"turn_id":"c094…","finish_reason":"stop","usage":{},"model":"m"}')
    assert events_fit("POST /chat/stream", whole) == ["start", "token", "tool_start", "tool_complete", "done"]
