"""`pawand status`."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import click

from pawand import paths
from pawand.cli import process
from pawand.cli.common import Context, as_json, print_json
from pawand.client import NotRunningError, read_state_file

NOT_RUNNING = 3


@click.command("status")
@as_json
@click.pass_obj
def command(context: Context, as_json: bool) -> None:
    """Tell whether the daemon runs, and how it is.

    Exits 0 when it runs, 3 when it does not.
    """
    client = context.client()
    known = read_state_file(paths.state_dir()) or {}
    known = known if known.get("url") == client.url else {}
    status: dict[str, Any] = {"running": False, "pid": known.get("pid"), "url": client.url}
    if known:
        log, unit = process.log_file(known), known["systemd"]
        status |= {"workspace": known["workspace"], "log_file": str(log) if log else None, "unit": unit}
    try:
        status |= {"running": True, **client.get("/health", "status", "version", "agent_id", "uptime_secs")}
    except NotRunningError as error:
        status["error"] = error.message
    if as_json:
        print_json(status)
    elif not status["running"]:
        click.echo(f"not running: {status['error']}")
    else:
        _print(status)
    if not status["running"]:
        sys.exit(NOT_RUNNING)


def _unit(unit: dict[str, Any] | None) -> str | None:
    return f"{unit['name']} of systemd{' --user' if unit['user'] else ''}" if unit else None


def _print(status: dict[str, Any]) -> None:
    click.echo(f"running: {status['agent_id']} at {status['url']}, pawand {status['version']}")
    rows = {
        "status": status["status"],
        "pid": status["pid"],
        "unit": _unit(status.get("unit")),
        "up": timedelta(seconds=status["uptime_secs"]),
        "provider": status.get("provider"),
        "model": status.get("model"),
        "sandbox": status.get("sandbox"),
        "turns": status.get("active_turns"),
        "workspace": status.get("workspace"),
        "log": status.get("log_file"),
    }
    for name, value in rows.items():
        if value is not None:
            click.echo(f"  {name:9} {value}")
    for reason in status.get("reasons", []):
        click.echo(f"  note      {reason}")
