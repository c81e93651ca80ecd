"""`pawand version`."""

from __future__ import annotations

import click

from pawand import __version__


@click.command("version")
def command() -> None:
    """Print the version."""
    click.echo(f"pawand {__version__}")
