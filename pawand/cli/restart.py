"""`pawand restart`."""

from __future__ import annotations

from typing import Any

import click

from pawand.cli import process, serve
from pawand.cli.common import Context, as_json
from pawand.cli.start import start


@click.command("restart")
@serve.options
@as_json
@click.pass_obj
def command(context: Context, /, as_json: bool, **_: Any) -> None:
    """End the daemon as `pawand stop` does, and start it in the background.

    It gets the workspace and the options that it had, and those that are given here. The environment is that of this
    shell. Where none runs, it is started.
    """
    known = process.find(context)
    options = serve.given()
    if known is not None:
        process.check_is_ours(known, "restart")
        options = {"workspace": known["workspace"], **known["options"], **options}
        serve.plan(options)  # what cannot start must not end the one that runs
        process.stop(known)
    start(options, as_json=as_json)
