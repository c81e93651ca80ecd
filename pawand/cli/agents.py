"""`pawand agents`."""

from __future__ import annotations

from typing import Any

import click

from pawand.cli.common import Context, as_json, one_line, print_json, print_table, say


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
    say(f"this is {one_line(agents['self'])}")
    if peers:
        headings = ["name", "agent", "address", "groups", "source", "online"]
        print_table(headings, [_row(peer) for peer in peers])
    else:
        say("no peers; they come from ~/.config/aegis/aegis-net.toml, and with `pawand serve --mdns` by mDNS")


def _row(peer: dict[str, Any]) -> list[object]:
    """A daemon that is not asked with its token, or is of another make, says less of its peers."""
    ip, port = peer["ip"], peer.get("port")
    address = f"[{ip}]:{port}" if ip and port and ":" in str(ip) else f"{ip}:{port}" if ip and port else ip
    online = "" if peer.get("online") is None else "yes" if peer["online"] else "no"
    return [
        peer["name"],
        peer["agent_id"],
        address,
        " ".join(map(str, peer["groups"] or [])),
        peer.get("source"),
        online,
    ]
