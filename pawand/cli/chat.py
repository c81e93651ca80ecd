"""`pawand chat`."""

from __future__ import annotations

import json
import sys
import termios
from typing import Any
from urllib.parse import quote

import click

from pawand.cli.common import Context, print_json, printable, say
from pawand.cli.completing import peers, session_ids
from pawand.cli.interrupts import Interrupts
from pawand.cli.peers import client_for
from pawand.client import Client, NotRunningError, RefusedError, strange
from pawand.errors import PawandError

_FIELDS: dict[str, dict[str, Any]] = {
    "start": {"session_id": str},
    "token": {"content": str},
    "tool_start": {"name": str, "arguments": object},
    "tool_complete": {"name": str, "success": bool, "duration_ms": int, "result_preview": str},
    "permission_request": {"id": str, "tool": str, "arguments": object, "summary": str, "expires_at": str},
    "retry": {"reason": str, "delay_ms": int},
    "done": {"finish_reason": str, "session_id": str},
    "error": {"message": str, "session_id": str},
}
"""What is shown of each event."""
_ANSWERS = {"y": "allow", "a": "allow_session", "n": "deny"}


class TurnFailedError(PawandError):
    code = "turn"


@click.command("chat")
@click.argument("message")
@click.option(
    "--session", metavar="ID", shell_complete=session_ids, help="Continue this session, or begin one with this id."
)
@click.option("--model", help="Model for this message only.")
@click.option(
    "--peer", metavar="NAME", shell_complete=peers, help="Ask this other agent instead (`pawand agents` lists them)."
)
@click.option("--json", "as_json", is_flag=True, help="Print one event a line, as JSON.")
@click.pass_obj
def command(
    context: Context, message: str, session: str | None, model: str | None, peer: str | None, as_json: bool
) -> None:
    """Send MESSAGE to the agent and show its answer as it comes.

    The answer goes to standard output, tool calls and the session's id to standard error. Where a tool needs your
    approval, you are asked in the terminal. Ctrl-C cancels the turn; a second one leaves it running.
    """
    for word in filter(None, (message, session, model)):
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise click.UsageError(f"{word!r} is no UTF-8 text") from error
    client = client_for(context, peer) if peer else context.client()
    body = {"message": message, "session_id": session, "model": model}
    events = client.stream("/chat/stream", {key: value for key, value in body.items() if value is not None})
    terminal = _Terminal(client, session or "")
    show = _print_json if as_json else terminal.show
    terminal_event: tuple[str, dict[str, Any]] | None = None
    try:
        with terminal.interrupts:
            for event, id, data in events:
                if not all(n in data and isinstance(data[n], kind) for n, kind in _FIELDS.get(event, {}).items()):
                    raise strange(client.url)
                if event == "start":
                    terminal.begun(data["session_id"])
                show(event, id, data)
                if event in ("done", "error"):
                    terminal_event = event, data
    except (KeyboardInterrupt, click.Abort, NotRunningError):
        if terminal_event is None:
            terminal.say_how_to_come_back()
        raise
    if terminal.interrupts.count:
        if terminal_event is None:
            terminal.say_how_to_come_back()
        raise click.Abort
    if terminal_event is None:
        raise TurnFailedError("the connection ended before the turn did")
    name, data = terminal_event
    if name == "error":
        raise TurnFailedError(str(data["message"]))


def _print_json(event: str, id: str, data: dict[str, Any]) -> None:
    if "id" in data:  # a tool call's own
        data["call_id"] = data.pop("id")
    print_json({"event": event, "id": id, **data}, indent=None)
    sys.stdout.flush()


class _Terminal:
    """Tokens as they come; a line for each tool call; a question for each approval."""

    def __init__(self, client: Client, session: str) -> None:
        self.interrupts = Interrupts(client, self._note)
        self._client = client
        self._session = session
        self._in_line = False

    def begun(self, session: str) -> None:
        self._session = session
        self.interrupts.begun(session)

    def show(self, event: str, id: str, data: dict[str, Any]) -> None:
        match event:
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
                self._note(f"session {data['session_id']}")

    def say_how_to_come_back(self) -> None:
        if self._session:
            path = f"{self._client.url}/sessions/{self._session}/events"
            unless = "unless it was cancelled in time, " if self.interrupts.count else ""
            self._note(f"{unless}the turn goes on in session {self._session}: follow it with GET {path},")
            self._note(f"end it with `pawand cancel {self._session}`, go on with --session {self._session}")
        elif self.interrupts.count:
            self._note("if the message has arrived, its turn goes on; `pawand sessions list` shows it")

    def _ask(self, request: dict[str, Any]) -> None:
        """Show the whole call and take an answer. The first one counts, whichever client it comes from."""
        path = f"/sessions/{self._session}/permissions/{quote(str(request['id']), safe='')}"
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            self._note(f"? {request['summary']}")
            self._note(f'  waits for approval: POST {path} {{"decision": "allow"}} (or allow_session, deny)')
            return
        self._note(f"? {request['tool']}, until {request['expires_at']}")
        for line in _lines(request["arguments"]):
            say(f"  {line}", err=True)
        termios.tcflush(sys.stdin, termios.TCIFLUSH)  # what was typed before the question does not answer it
        question = "  Allow it? [y]es, [a]lways in this session, [n]o"
        choices = click.Choice([*_ANSWERS, "yes", "always", "no"], case_sensitive=False)
        try:
            with self.interrupts.question():
                answer = click.prompt(question, type=choices, show_choices=False, err=True)
        except (KeyboardInterrupt, click.Abort):
            if self.interrupts.count == 1:  # the turn is being cancelled, and the question with it
                self._in_line = True
                return
            raise
        try:
            self._client.post(path, {"decision": _ANSWERS[answer[0]]})
        except RefusedError as error:
            self._note(f"  {error.message}")

    def _write(self, text: str) -> None:
        text = printable(text)
        say(text, nl=False)
        sys.stdout.flush()
        self._in_line = not text.endswith("\n") if text else self._in_line

    def _note(self, text: str) -> None:
        self._end_line()
        say(text, err=True, dim=True)

    def _end_line(self) -> None:
        if self._in_line:
            say()
            self._in_line = False


def _lines(arguments: Any) -> list[str]:
    """All of a call's arguments, the line ends of each where they are."""
    values = arguments if isinstance(arguments, dict) else {"arguments": arguments}
    shown = []
    for name, value in values.items():
        first, *rest = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)).split("\n")
        shown += [f"{name}: {first}", *(f"  {line}" for line in rest)]
    return shown


def _brief(arguments: Any) -> str:
    text = " ".join(str(value) for value in arguments.values()) if isinstance(arguments, dict) else str(arguments)
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:79] + "…"
