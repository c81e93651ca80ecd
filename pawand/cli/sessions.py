"""`pawand sessions`: through the daemon when one runs, else straight from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pawand import paths
from pawand.cli.common import Context, as_json, print_json, print_table, printable

if TYPE_CHECKING:
    from pawand.sessions.store import SessionStore


@click.group("sessions")
def command() -> None:
    """List, show and delete conversations."""


@command.command("list")
@as_json
@click.pass_obj
def list_(context: Context, as_json: bool) -> None:
    """List sessions, the newest first."""
    rows = _list(context)
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo("no sessions yet; begin one with: pawand chat MESSAGE")
    else:
        cells = [[r["id"], _minute(r["updated_at"]), r["message_count"], r["title"]] for r in rows]
        print_table(["id", "updated", "messages", "title"], cells)


@command.command()
@click.argument("id")
@as_json
@click.pass_obj
def show(context: Context, id: str, as_json: bool) -> None:
    """Show the messages of session ID."""
    session = _show(context, id)
    if as_json:
        print_json(session)
        return
    click.secho(printable(f"{session['id']}  {session['model']}  {_minute(session['updated_at'])}"), bold=True)
    for message in session["messages"]:
        click.secho(f"\n{message['role']}  {_minute(message['timestamp'])}", fg="cyan")
        if message["content"]:
            click.echo(printable(message["content"]))
        for call in message.get("tool_calls", []):
            click.secho(printable(f"▸ {call['name']} {call['arguments']}"), dim=True)


@command.command()
@click.argument("id")
@click.pass_obj
def delete(context: Context, id: str) -> None:
    """Delete session ID; a turn that runs in it is cancelled."""
    if context.runs_here:
        context.client().delete(f"/sessions/{_path(id)}")
    else:
        store = _store()
        store.open()
        try:
            store.delete(id)
        finally:
            store.close()
    click.echo(f"deleted {id}")


def _list(context: Context) -> list[dict[str, Any]]:
    if context.runs_here:
        return context.client().get_list("/sessions", "id", "updated_at", "message_count", "title")
    import msgspec

    from pawand.sessions import view

    store = _store()
    if not store.folder.is_dir():
        return []
    return [msgspec.to_builtins(view.summary(row, active=False)) for row in store.list()]


def _show(context: Context, id: str) -> dict[str, Any]:
    if context.runs_here:
        client = context.client()
        session = client.get(f"/sessions/{_path(id)}", "id", "model", "updated_at", "messages")
        client.rows(session["messages"], "role", "content", "timestamp")
        return session
    import msgspec

    from pawand.sessions import view

    detail = view.detail(_store().load(id), active_turn=None, last_event_id=None)
    found: dict[str, Any] = msgspec.to_builtins(detail)
    return found


def _store() -> SessionStore:
    from pawand import config
    from pawand.sessions.store import SessionStore

    return SessionStore(config.sessions_folder(config.load(Path.cwd(), {}).config, paths.state_dir()))


def _path(id: str) -> str:
    from urllib.parse import quote

    return quote(id, safe="")


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")
