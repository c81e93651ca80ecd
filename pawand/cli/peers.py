"""Talking to another agent straight from the command, at the address and with the token that the daemon would use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pawand.cli.common import Context
from pawand.client import Client, NotRunningError, RefusedError

if TYPE_CHECKING:
    from pawand import wire
    from pawand.config import Config
    from pawand.peers.addresses import Place


class PeerClient(Client):
    """A client that knows what to do when a peer refuses."""

    def __init__(self, place: Place) -> None:
        super().__init__(place.url, place.token)
        self._place = place

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
        try:
            yield from super().stream(path, body)
        except RefusedError as error:
            hint = self._place.hint(error.code)
            raise RefusedError(f"{self._place.name} refuses: {hint or error.message}", error.code) from error


def client_for(context: Context, name: str) -> PeerClient:
    """A client for peer `name`. Raises ConfigError, PeerError, or click's error for `--url` beside it."""
    from pawand import config
    from pawand.peers import addresses

    if context.has_url:
        raise click.UsageError("--peer names another agent than --url: give one of them")
    settings = config.load(Path.cwd(), {}).config
    return PeerClient(addresses.find(name, settings.peers, _rows(context, settings)))


def _rows(context: Context, settings: Config) -> list[wire.Peer]:
    """Those of our own daemon, else of the Aegis file: a token goes where they lead."""
    import msgspec

    from pawand import config, wire
    from pawand.peers.aegis import AegisFile

    if context.runs_here:
        with suppress(NotRunningError, msgspec.ValidationError):  # it stops just now, or is of another version
            rows = msgspec.convert(context.client().get("/agents", "peers")["peers"], list[wire.Peer])
            if all(isinstance(row.source, str) for row in rows):  # a daemon tells strangers less
                return rows
    return [
        wire.Peer(name=peer.name, agent_id=f"pawan@{peer.name}", ip=peer.ip, groups=peer.groups, source="aegis")
        for peer in AegisFile(config.aegis_files(settings)).peers()
    ]
