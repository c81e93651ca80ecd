"""`pawand doctor`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pawand.cli import process, serve
from pawand.cli.common import Context, as_json, one_line, print_json, say
from pawand.errors import PawandError

if TYPE_CHECKING:
    from pawand.daemon import checkup

_MARKS = {"ok": ("✓", "green"), "note": ("!", "yellow"), "fault": ("✗", "red")}


@click.command("doctor")
@as_json
@click.pass_obj
def command(context: Context, as_json: bool) -> None:
    """Look for what keeps pawand from working, and say what to do.

    Changes nothing. Looks at the running daemon and its options, else at what `pawand start` would find in this
    folder and this shell. Exits 1 where there is a fault.
    """
    import msgspec

    from pawand.daemon import checkup

    known = process.find(context)
    running = _running(context, known) if known else None
    options = {**known["options"], "workspace": known["workspace"]} if known else {}
    found = []
    workspace = Path(options.get("workspace") or Path.cwd())
    for row in checkup.examine(serve.flags(options), workspace, running):
        found.append(row)
        if not as_json:
            _print(row.check, row.state, row.text, row.advice)
    ok = not any(row.state == "fault" for row in found)
    if as_json:
        print_json({"ok": ok, "checks": msgspec.to_builtins(found)})
    if not ok:
        sys.exit(1)


def _running(context: Context, known: process.Known) -> checkup.Running:
    from pawand.daemon import checkup

    stopping = bool(known.get("stopping"))
    return checkup.Running(known["pid"], known["url"], None if stopping else _health(context), stopping)


def _health(context: Context) -> dict[str, Any] | None:
    try:
        return context.client().get("/health", "status", "version")
    except PawandError:
        return None


def _print(check: str, state: str, text: str, advice: str) -> None:
    mark, colour = _MARKS[state]
    say(f"{mark} ", fg=colour, nl=False)
    say(f"{check:10} {one_line(text)}")
    if advice:
        say(f"  {'':10} → {one_line(advice)}")
