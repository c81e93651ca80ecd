"""`pawand cancel`."""

from __future__ import annotations

from urllib.parse import quote

import click

from pawand.cli.common import Context, as_json, print_json, say


@click.command("cancel")
@click.argument("session")
@click.option("--all", "waiting_too", is_flag=True, help="The turns that wait behind the running one, too.")
@as_json
@click.pass_obj
def command(context: Context, session: str, waiting_too: bool, as_json: bool) -> None:
    """End the turn that runs in SESSION; what it has said and done is kept."""
    path = f"/sessions/{quote(session, safe='', errors='replace')}/cancel" + ("?all=1" if waiting_too else "")
    answer = context.client().post(path, {}, "cancelled")
    if as_json:
        print_json(answer)
    else:
        say(f"cancelled in session {session}" if answer["cancelled"] else f"nothing runs in session {session}")
