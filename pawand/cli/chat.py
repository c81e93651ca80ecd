"""`pawand chat`."""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.parse import quote

import click

from pawand.cli.common import Context, printable
from pawand.client import Client, RefusedError
from pawand.errors import PawandError

_ANSWERS = {"y": "allow", "a": "allow_session", "n": "deny"}


class TurnFailedError(PawandError):
    code = "turn"


@click.command("chat")
@click.argument("message")
@click.option("--session", metavar="ID", help="Continue this session, or begin one with this id.")
@click.option("--model", help="Model for this message only.")
@click.option("--json", "as_json", is_flag=True, help="Print one event a line, as JSON.")
@click.pass_obj
def command(context: Context, message: str, session: str | None, model: str | None, as_json: bool) -> None:
    """Send MESSAGE to the agent and show its answer as it comes.

    The answer goes to standard output, tool calls and the session's id to standard error. Where a tool needs your
    approval, you are asked in the terminal.
    """
    client = context.client()
    body = {"message": message, "session_id": session, "model": model}
    events = client.stream("/chat/stream", {key: value for key, value in body.items() if value is not None})
    show = _print_json if as_json else _Terminal(client).show
    terminal_event: tuple[str, dict[str, Any]] | None = None
    for event, id, data in events:
        show(event, id, data)
        if event in ("done", "error"):
            terminal_event = event, data
    if terminal_event is None:
        raise TurnFailedError("the connection ended before the turn did")
    name, data = terminal_event
    if name == "error":
        raise TurnFailedError(str(data["message"]))


def _print_json(event: str, id: str, data: dict[str, Any]) -> None:
    if "id" in data:  # a tool call's own
        data["call_id"] = data.pop("id")
    click.echo(json.dumps({"event": event, "id": id, **data}, ensure_ascii=False))
    sys.stdout.flush()


class _Terminal:
    """Tokens as they come; a line for each tool call; a question for each approval."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._session = ""
        self._in_line = False

    def show(self, event: str, id: str, data: dict[str, Any]) -> None:
        match event:
            case "start":
                self._session = data["session_id"]
            case "token":
                self._write(data["content"])
            case "tool_start":
                self._note(f"▸ {data['name']} {_brief(data['arguments'])}")
            case "tool_complete":
                mark = "✓" if data["success"] else "✗"
                first = data["result_preview"].strip().partition("\n")[0]
                self._note(f"{mark} {data['name']} {data['duration_ms']} ms  {first[:100]}")
            case "permission_request":
                self._ask(data)
            case "permission_resolved":
                if data.get("reason") == "expired":
                    self._note("✗ denied: nobody answered in time")
            case "retry":
                self._note(f"↻ {data['reason']}; again in {data['delay_ms'] / 1000:.1f} s")
            case "done":
                if data["finish_reason"] not in ("stop", "tool_calls"):
                    self._note(f"the answer is not complete: {data['finish_reason']}")
                self._note(f"session {data['session_id']}")
            case "error":
                self._end_line()

    def _ask(self, request: dict[str, Any]) -> None:
        """The first answer counts, whichever client it comes from."""
        path = f"/sessions/{self._session}/permissions/{quote(str(request['id']), safe='')}"
        self._note(f"? {request['summary']}")
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            self._note(f'  waits for approval: POST {path} {{"decision": "allow"}} (or allow_session, deny)')
            return
        question = "  Allow it? [y]es, [a]lways in this session, [n]o"
        answer = click.prompt(question, type=click.Choice(list(_ANSWERS)), show_choices=False, err=True)
        try:
            self._client.post(path, {"decision": _ANSWERS[answer]})
        except RefusedError as error:
            self._note(f"  {error.message}")

    def _write(self, text: str) -> None:
        text = printable(text)
        click.echo(text, nl=False)
        sys.stdout.flush()
        self._in_line = not text.endswith("\n") if text else self._in_line

    def _note(self, text: str) -> None:
        self._end_line()
        click.secho(printable(text), err=True, dim=True)

    def _end_line(self) -> None:
        if self._in_line:
            click.echo()
            self._in_line = False


def _brief(arguments: Any) -> str:
    text = " ".join(str(value) for value in arguments.values()) if isinstance(arguments, dict) else str(arguments)
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:79] + "…"
