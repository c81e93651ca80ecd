"""`pawand agents`."""

from __future__ import annotations

import click

from pawand.cli.common import Context, as_json, print_json, print_table, printable


@click.command("agents")
@as_json
@click.pass_obj
def command(context: Context, as_json: bool) -> None:
    """List the other agents that the daemon knows."""
    agents = context.client().get("/agents", "self", "peers")
    if as_json:
        print_json(agents)
        return
    click.echo(printable(f"this is {agents['self']}"))
    if agents["peers"]:
        rows = [[p["name"], p["agent_id"], p["ip"], ", ".join(p["groups"])] for p in agents["peers"]]
        print_table(["name", "agent", "address", "groups"], rows)
    else:
        click.echo("no peers; they come from ~/.config/aegis/aegis-net.toml")
