"""`pawand restart`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import click

from pawand.cli import process, serve
from pawand.cli.common import Context, as_json, print_json
from pawand.cli.start import in_background, show, start
from pawand.errors import ConfigError, PawandError, StartError


@click.command("restart")
@serve.options
@as_json
@click.pass_obj
def command(context: Context, /, as_json: bool, **_: Any) -> None:
    """End the daemon as `pawand stop` does, and start it in the background.

    It gets the workspace and the options that it had, and those that are given here. The environment is that of this
    shell. Where it cannot start so, the old one goes on. Where none runs, it is started.
    """
    known = process.find(context)
    given = serve.given()
    if known is None:
        start(given, as_json=as_json)
        return
    process.check_is_ours(known, "restart")
    old = in_background({"workspace": known["workspace"], **known["options"]})
    new = {**old, **given}
    os.close(process.open_log(Path(new["log_file"])))
    serve.rehearse(new, urlsplit(known["url"]).port)  # what cannot start must not end the one that runs
    process.stop(known)
    try:
        known, started = process.start(new)
    except (ConfigError, StartError) as error:
        _go_back(old, process.in_full(error), as_json=as_json)
    show(known, started=started, as_json=as_json)


def _go_back(old: dict[str, Any], reason: str, *, as_json: bool) -> NoReturn:
    """Rather the daemon that there was than none. Raises StartError."""
    try:
        known, _ = process.start(old)
    except PawandError as error:
        message = f"it did not start ({reason}), nor did it with the options it had; none runs now"
        if as_json:
            print_json({"running": False, "started": False, "error": message, "log_file": old["log_file"]})
        raise StartError(message) from error
    message = (
        f"it did not start ({reason}); it runs again with the options it had, at {known['url']} (pid {known['pid']})"
    )
    if as_json:
        print_json({"running": True, "started": False, "error": message, **process.facts(known)})
    raise StartError(message)
