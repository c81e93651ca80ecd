"""`pawand models`."""

from __future__ import annotations

import click

from pawand.cli.common import Context, as_json, print_json, print_table


@click.command("models")
@as_json
@click.pass_obj
def command(context: Context, as_json: bool) -> None:
    """List the models that the daemon uses."""
    client = context.client()
    models = client.rows(client.get("/models", "models")["models"], "name", "provider", "is_default")
    if as_json:
        print_json(models)
    else:
        rows = [[m["name"], m["provider"], "default" if m["is_default"] else ""] for m in models]
        print_table(["model", "provider", ""], rows)
