"""`pawand status`."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import click

from pawand.cli import process
from pawand.cli.common import Context, as_json, one_line, print_json, say
from pawand.client import Client, NotRunningError, silent
from pawand.errors import ConfigError

NOT_ANSWERING = 1
NOT_RUNNING = 3
_NOTHING = {"running": False, "answering": False, "stopping": False, "pid": None}


@click.command("status")
@as_json
@click.pass_obj
def command(context: Context, as_json: bool) -> None:
    """Tell whether the daemon runs, and how it is.

    Exits 0 when it runs and answers, 1 when it runs and does not answer, 3 when none runs.
    """
    known = context.known()
    try:
        client = context.client()
    except ConfigError as error:  # of settings that do not even say where to look
        if as_json:
            print_json({**_NOTHING, "url": None, "error": error.message})
        raise
    status = _look(client, known if known is not None and known["url"] == client.url else None)
    if as_json:
        print_json(status)
    elif status["answering"]:
        _print(status)
    else:
        state = "not running" if not status["running"] else "stopping" if status["stopping"] else "not answering"
        say(f"{state}: {status['error']}")
    if not status["answering"]:
        sys.exit(NOT_ANSWERING if status["running"] else NOT_RUNNING)


def _look(client: Client, known: process.Known | None) -> dict[str, Any]:
    status: dict[str, Any] = {**_NOTHING, "url": client.url}
    if known:
        log = process.log_file(known)
        status |= {
            "running": True,
            "stopping": bool(known.get("stopping")),
            "pid": known["pid"],
            "workspace": known["workspace"],
            "log_file": str(log) if log else None,
            "unit": known["systemd"],
        }
        if status["stopping"]:  # its sockets may be systemd's: then nobody answers, and nobody refuses
            return status | {"error": silent(known).message}
    try:
        health = client.get("/health", "status", "version", "agent_id", "uptime_secs")
    except NotRunningError as error:
        return status | {"error": error.message}
    return status | {"running": True, "answering": True, **health}


def _unit(unit: dict[str, Any] | None) -> str | None:
    return f"{unit['name']} of systemd{' --user' if unit['user'] else ''}" if unit else None


def _print(status: dict[str, Any]) -> None:
    say(f"running: {one_line(status['agent_id'])} at {status['url']}, pawand {one_line(status['version'])}")
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
            say(f"  {name:9} {one_line(value)}")
    for reason in status.get("reasons", []):
        say(f"  note      {one_line(reason)}")
