"""`pawand stop`."""

from __future__ import annotations

import click

from pawand.cli import process
from pawand.cli.common import Context, as_json, print_json, say
from pawand.client import NotRunningError


@click.command("stop")
@click.option("--now", is_flag=True, help="Do not let running turns end; what was seen of them is kept.")
@as_json
@click.pass_obj
def command(context: Context, now: bool, as_json: bool) -> None:
    """End the daemon, and wait until it is gone.

    Running turns have [server] drain_secs to end. Exits 3 when none runs. One that systemd runs is left to systemd.
    """
    known = process.find(context)
    if known is None:
        if as_json:
            print_json({"stopped": False, "pid": None})
        raise NotRunningError("no daemon runs here")
    process.check_is_ours(known, "stop")
    process.stop(known, now=now)
    if as_json:
        print_json({"stopped": True, "pid": known["pid"]})
    else:
        say(f"pawand (pid {known['pid']}) has ended")
