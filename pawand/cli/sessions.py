"""`pawand sessions`: the conversations, whether a daemon runs or not."""

from __future__ import annotations

import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from pawand.cli import conversations
from pawand.cli.common import Context, as_json, print_json, print_table, printable, say, say_bytes
from pawand.cli.completing import session_ids
from pawand.cli.conversations import Conversations, Row
from pawand.client import NotRunningError
from pawand.errors import PawandError

_AGE = re.compile(r"([0-9]{1,6})([dh]?)")


@click.group("sessions")
def command() -> None:
    """List, show, delete, copy and export conversations."""


@command.command("list")
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Only the newest N.")
@click.option("-q", "--query", metavar="TEXT", help="Only those with TEXT in title or id.")
@as_json
@click.pass_obj
def list_(context: Context, limit: int | None, query: str | None, as_json: bool) -> None:
    """List sessions, the newest first."""
    with conversations.reach(context) as place:
        rows = place.list(limit, query)
    if as_json:
        print_json(rows)
    elif not rows:
        nothing = "no sessions yet; begin one with: pawand chat MESSAGE"
        say(nothing if limit is None and query is None else "no such sessions")
    else:
        _print_rows(rows)


@command.command()
@click.argument("id", shell_complete=session_ids)
@as_json
@click.pass_obj
def show(context: Context, id: str, as_json: bool) -> None:
    """Show the messages of session ID."""
    with conversations.reach(context) as place:
        session = place.show(id)
    if as_json:
        print_json(session)
        return
    say(f"{session['id']}  {session['model']}  {_minute(session['updated_at'])}", bold=True)
    for message in session["messages"]:
        say(f"\n{message['role']}  {_minute(message['timestamp'])}", fg="cyan")
        if message["content"]:
            say(message["content"])
        for call in message.get("tool_calls", []):
            say(f"▸ {call['name']} {call['arguments']}", dim=True)
        if message.get("interrupted"):
            say("(interrupted)", dim=True)


@command.command()
@click.argument("id", nargs=-1, required=True, shell_complete=session_ids)
@as_json
@click.pass_obj
def delete(context: Context, id: tuple[str, ...], as_json: bool) -> None:
    """Delete the sessions ID…; turns that run in them are cancelled."""
    with conversations.reach(context, change=True) as place:
        deleted, failed = _delete(place, id)
    if as_json:
        print_json({"deleted": deleted, "failed": failed})
    for gone in [] if as_json else deleted:
        say(f"deleted {gone}")
    _end(failed)


@command.command()
@click.argument("id", shell_complete=session_ids)
@click.option("--message", type=click.IntRange(min=0), metavar="N", help="Copy up to message N, counted from 0.")
@as_json
@click.pass_obj
def fork(context: Context, id: str, message: int | None, as_json: bool) -> None:
    """Copy session ID into a new one, to go on from there, and print the new id."""
    with conversations.reach(context, change=True) as place:
        made = place.fork(id, message)
    if as_json:
        print_json({"session_id": made})
    else:
        say(made)


@command.command()
@click.argument("id", shell_complete=session_ids)
@click.option(
    "--format", "form", type=click.Choice(["markdown", "json"]), default="markdown", show_default=True,
    help="For people, or the document as it is stored.",
)  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write; - is standard output.  [default: -]"
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.pass_obj
def export(context: Context, id: str, form: str, output: Path | None, force: bool) -> None:
    """Write session ID as a readable transcript, or as it is stored."""
    if form == "json":
        if context.url is not None:
            raise click.UsageError("only the daemon's own machine has the stored document; see `sessions show --json`")
        data = conversations.stored(id)
    else:
        from pawand.cli.transcript import markdown

        with conversations.reach(context) as place:
            data = printable(markdown(place.show(id))).encode(errors="replace")
    if output is None or _is_stdout(output):
        say_bytes(data + b"\n" * (form == "json"))
        return
    if output.is_file() and not force:
        raise click.ClickException(f"{output} is there already; --force replaces it")
    from pawand.sessions import disk

    try:
        disk.put(output, data)
    except OSError as error:
        raise click.ClickException(f"{output} cannot be written: {error.strerror}") from error


def _is_stdout(output: Path) -> bool:
    """Whether it is `-`, or what standard output leads to: that is written to, wherever it leads."""
    try:
        return str(output) == "-" or os.path.samestat(output.stat(), os.fstat(1))
    except OSError:
        return False


def _age(context: click.Context, parameter: click.Parameter, text: str) -> timedelta:
    found = _AGE.fullmatch(text)
    if found is None:
        raise click.BadParameter("write days or hours, like 30, 30d or 12h")
    return timedelta(hours=int(found[1])) if found[2] == "h" else timedelta(days=int(found[1]))


@command.command()
@click.option("--older-than", required=True, metavar="AGE", callback=_age, help="Days or hours: 30, 30d, 12h.")
@click.option("--keep", type=click.IntRange(min=0), default=0, metavar="N", help="Never delete the newest N.")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@click.pass_obj
def prune(context: Context, older_than: timedelta, keep: int, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete the sessions in which nothing was said for some time.

    One with a turn that runs or waits is never deleted.
    """
    before = _ago(older_than)
    with conversations.reach(context, change=not dry_run) as place:
        rows = [row for row in place.list(None, None)[keep:] if _time(row) < before and not row["active"]]
        if dry_run:
            _print_plan(rows, as_json)
            return
        if rows and not yes:
            _confirm(len(rows), before)
        idle = (row["id"] for row in rows if _is_as_before(place, row))
        deleted, failed = _delete(place, idle)
    if as_json:
        print_json({"deleted": deleted, "failed": failed})
    else:
        say(f"deleted {_count(len(deleted))}")
    _end(failed)


def _ago(age: timedelta) -> datetime:
    try:
        return datetime.now(UTC) - age
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def _print_plan(rows: list[Row], as_json: bool) -> None:
    if as_json:
        print_json({"would_delete": [row["id"] for row in rows]})
        return
    if rows:
        _print_rows(rows)
    say(f"{_count(len(rows))} would be deleted")


def _confirm(number: int, before: datetime) -> None:
    """Raises ClickException where the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"{_count(number)} would be deleted; pass --yes, since nobody can be asked here")
    question = f"Delete {_count(number)} in which nothing was said since {before:%Y-%m-%d %H:%M} UTC?"
    if not click.confirm(question, err=True):
        raise click.ClickException("nothing was deleted")


def _is_as_before(place: Conversations, row: Row) -> bool:
    """Whether nothing has happened in a session since it was listed."""
    try:
        session = place.show(row["id"])
    except NotRunningError:
        raise
    except PawandError:  # deleted meanwhile, or damaged
        return False
    return session["active_turn"] is None and bool(session["updated_at"] == row["updated_at"])


def _delete(place: Conversations, ids: Any) -> tuple[list[str], list[dict[str, str]]]:
    """Those that are deleted, and why the others are not."""
    deleted, failed = [], []
    for id in ids:
        try:
            place.delete(id)
            deleted.append(id)
        except NotRunningError:
            raise
        except PawandError as error:
            failed.append({"id": id, "error": error.message})
    return deleted, failed


def _end(failed: list[dict[str, str]]) -> None:
    for row in failed:
        say(f"pawand: {row['error']}", err=True)
    if failed:
        sys.exit(1)


def _print_rows(rows: list[Row]) -> None:
    cells = [[r["id"], _minute(r["updated_at"]), r["message_count"], r["title"]] for r in rows]
    print_table(["id", "updated", "messages", "title"], cells)


def _count(number: int) -> str:
    return f"{number} session{'' if number == 1 else 's'}"


def _time(row: Row) -> datetime:
    return datetime.fromisoformat(row["updated_at"])


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")
