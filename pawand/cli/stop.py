"""`pawand stop`."""

from __future__ import annotations

import click

from pawand.cli import process
from pawand.cli.common import Context
from pawand.client import NotRunningError


@click.command("stop")
@click.option("--now", is_flag=True, help="Do not let running turns end; what was seen of them is kept.")
@click.pass_obj
def command(context: Context, now: bool) -> None:
    """End the daemon, and wait until it is gone.

    Running turns have [server] drain_secs to end. Exits 3 when none runs. One that systemd runs is left to systemd.
    """
    known = process.find(context)
    if known is None:
        raise NotRunningError("no daemon runs here")
    process.check_is_ours(known, "stop")
    process.stop(known, now=now)
    click.echo(f"pawand (pid {known['pid']}) has ended")
