"""`pawand start`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pawand import paths
from pawand.cli import process, serve
from pawand.cli.common import Context, as_json, print_json
from pawand.errors import PawandError


@click.command("start")
@serve.options
@as_json
@click.pass_obj
def command(context: Context, /, as_json: bool, **_: Any) -> None:
    """Run the daemon in the background, and wait until it answers.

    Takes the options of `pawand serve`. Where it runs already, that is told, and all is well. Its log is
    logs/pawand.log in the state folder; `pawand logs` shows it.
    """
    known = process.find(context)
    if known is not None and process.answers(known):
        show(known, started=False, as_json=as_json)
        if _wants_else(known, serve.given()):
            click.echo("it goes on with its own options; `pawand restart` takes new ones", err=True)
        return
    start(serve.given(), as_json=as_json)


def start(given: dict[str, Any], *, as_json: bool) -> None:
    """With these options, and those that a daemon in the background needs."""
    log = str(paths.log_file(paths.state_dir()))
    options = {"workspace": str(Path.cwd()), "log_file": log, **given}
    try:
        known, started = process.start(options)
    except PawandError as error:
        if as_json:
            print_json({"running": False, "started": False, "error": error.message, "log_file": options["log_file"]})
        raise
    show(known, started=started, as_json=as_json)


def show(known: process.Known, *, started: bool, as_json: bool) -> None:
    log = process.log_file(known)
    if as_json:
        facts = {name: known[name] for name in ("pid", "url", "version", "workspace")}
        print_json({"running": True, "started": started, **facts, "log_file": str(log) if log else None})
        return
    click.echo(f"pawand {'runs' if started else 'runs already'} at {known['url']} (pid {known['pid']})")
    click.echo(f"  workspace {known['workspace']}")
    if log:
        click.echo(f"  log       {log}")


def _wants_else(known: process.Known, given: dict[str, Any]) -> bool:
    has = {**known["options"], "workspace": known["workspace"]}
    return any(has.get(name) != value for name, value in {"workspace": str(Path.cwd()), **given}.items())
