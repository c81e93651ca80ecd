"""`pawand agents`."""

from __future__ import annotations

import click

from pawand.cli.common import Context, as_json, print_json, print_table, printable


@click.command("agents")
@as_json
@click.pass_obj
def command(context: Context, as_json: bool) -> None:
    """List the other agents that the daemon knows."""
    client = context.client()
    agents = client.get("/agents", "self", "peers")
    peers = client.rows(agents["peers"], "name", "agent_id", "ip", "groups")
    if as_json:
        print_json(agents)
        return
    click.echo(printable(f"this is {agents['self']}"))
    if peers:
        rows = [[p["name"], p["agent_id"], p["ip"], " ".join(map(str, p["groups"] or []))] for p in peers]
        print_table(["name", "agent", "address", "groups"], rows)
    else:
        click.echo("no peers; they come from ~/.config/aegis/aegis-net.toml")
