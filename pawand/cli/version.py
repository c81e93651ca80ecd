"""`pawand version`."""

from __future__ import annotations

import click

from pawand import __version__
from pawand.cli.common import say


@click.command("version")
def command() -> None:
    """Print the version."""
    say(f"pawand {__version__}")
