"""What the commands share: finding the daemon, and printing for people or for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pawand import paths
from pawand.client import Client, StateError, read_state_file, url_of

# Control characters, and those that hide text or change its direction.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


class Context:
    """The `--url` of the command line, and what follows from it."""

    def __init__(self, url: str | None) -> None:
        self._url = url

    @property
    def url(self) -> str | None:
        """What `--url` names."""
        return self._url

    def client(self) -> Client:
        """A client for `--url`, else the running daemon of this state folder, else the configured address.

        Only the running daemon of this state folder gets the token: anybody may listen on any other address, one of
        loopback too.
        """
        known = self.known()
        url = self._url or (str(known["url"]) if known else _configured_url())
        if known is None or url.rstrip("/") != known["url"]:
            return Client(url)
        # While it stops its port is closed, and may be somebody else's.
        token = None if known.get("stopping") else _token(str(known["token_file"]))
        return Client(url, token, known=known)

    def known(self) -> dict[str, Any] | None:
        """The state file of the daemon that runs here. Raises StateError, but where `--url` says whom to ask."""
        try:
            return read_state_file(paths.state_dir())
        except StateError:
            if self._url is None:
                raise
            return None

    @property
    def has_url(self) -> bool:
        return self._url is not None

    @property
    def runs_here(self) -> bool:
        """Whether a daemon owns this state folder, or one was named."""
        return self._url is not None or read_state_file(paths.state_dir()) is not None


def _configured_url() -> str:
    from pawand import config

    server = config.load(Path.cwd(), {}).config.server
    host = server.host if isinstance(server.host, str) else server.host[0]
    return url_of(host, server.port)


def _token(file: str) -> str | None:
    try:
        return Path(file).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def printable(text: str) -> str:
    """Text without the control characters that would steer a terminal; lines and tabs stay."""
    return _CONTROL.sub("", text)


def one_line(value: object) -> str:
    """As part of a line: what it holds begins none of its own."""
    return str(value).replace("\n", "\\n")


def say(text: object = "", *, nl: bool = True, err: bool = False, **style: Any) -> None:
    """Print for people: the one place, so that nothing that others wrote steers the terminal."""
    text = printable(str(text))
    click.echo(click.style(text, **style) if style else text, nl=nl, err=err)


def say_bytes(data: bytes) -> None:
    """Print as it is, for programs."""
    click.echo(data, nl=False)


def note(text: str) -> None:
    """Something worth knowing, on standard error."""
    say(f"note: {one_line(text)}", err=True)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=indent))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(headings):
        # The first column is what one copies into the next command: it is never cut.
        table.add_column(heading, no_wrap=True, overflow="ellipsis", min_width=None if number else _widest(rows))
    for row in rows:
        table.add_row(*(Text(printable(one_line("" if cell is None else cell))) for cell in row))
    Console(highlight=False).print(table)


def _widest(rows: Sequence[Sequence[object]]) -> int:
    return max((len(str(row[0])) for row in rows), default=0)
