"""`pawand start`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pawand import paths
from pawand.cli import process, serve
from pawand.cli.common import Context, as_json, one_line, print_json, say
from pawand.client import silent
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
    known = _running(context)
    if known is not None:
        show(known, started=False, as_json=as_json)
        if _wants_else(known, serve.given()):
            say("it goes on with its own options; `pawand restart` takes new ones", err=True)
        return
    start(serve.given(), as_json=as_json)


def _running(context: Context) -> process.Known | None:
    """The daemon that runs and answers. One that is stopping is waited for. Raises UnansweringError, LeftAloneError."""
    while (known := process.find(context)) is not None:
        if known.get("stopping"):
            process.check_is_ours(known, "start")
            process.wait_for_end(known)
        elif process.answers(known):
            break
        elif process.find(context) == known:  # it has not just begun to stop
            raise silent(known)
    return known


def in_background(given: dict[str, Any]) -> dict[str, Any]:
    """These options, and those that a daemon in the background needs."""
    return {"workspace": str(Path.cwd()), "log_file": str(paths.log_file(paths.state_dir())), **given}


def start(given: dict[str, Any], *, as_json: bool) -> None:
    options = in_background(given)
    try:
        known, started = process.start(options)
    except PawandError as error:
        if as_json:
            facts = {"error": process.in_full(error), "log_file": options["log_file"]}
            print_json({"running": False, "started": False, **facts})
        raise
    show(known, started=started, as_json=as_json)


def show(known: process.Known, *, started: bool, as_json: bool) -> None:
    log = process.log_file(known)
    if as_json:
        print_json({"running": True, "started": started, **process.facts(known)})
        return
    say(f"pawand {'runs' if started else 'runs already'} at {known['url']} (pid {known['pid']})")
    say(f"  workspace {one_line(known['workspace'])}")
    if log:
        say(f"  log       {one_line(log)}")


def _wants_else(known: process.Known, given: dict[str, Any]) -> bool:
    has = {**known["options"], "workspace": known["workspace"]}
    return any(has.get(name) != value for name, value in {"workspace": str(Path.cwd()), **given}.items())
