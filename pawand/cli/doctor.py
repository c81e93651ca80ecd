"""`pawand doctor`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from pawand.cli import process, serve
from pawand.cli.common import Context, as_json, print_json, printable
from pawand.errors import PawandError

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
    running = checkup.Running(known["pid"], known["url"], _health(context)) if known else None
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


def _health(context: Context) -> dict[str, Any] | None:
    try:
        return context.client().get("/health", "status", "version")
    except PawandError:
        return None


def _print(check: str, state: str, text: str, advice: str) -> None:
    mark, colour = _MARKS[state]
    click.secho(f"{mark} ", fg=colour, nl=False)
    click.echo(f"{check:10} {printable(text)}")
    if advice:
        click.echo(f"  {'':10} → {printable(advice)}")
