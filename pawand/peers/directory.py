"""Who else is there: what `/agents` answers."""

from __future__ import annotations

import asyncio

from pawand import wire
from pawand.peers.aegis import AegisFile


class Directory:
    """The peers of this daemon, itself left out, ordered by name."""

    def __init__(self, agent_id: str, aegis: AegisFile) -> None:
        self.agent_id = agent_id
        self._aegis = aegis

    async def peers(self) -> list[wire.Peer]:
        found = await asyncio.to_thread(self._aegis.peers)
        rows = [
            wire.Peer(
                name=peer.name,
                agent_id=f"pawan@{peer.name}",
                ip=peer.ip,
                groups=peer.groups,
                port=None,
                source="aegis",
                online=None,
            )
            for peer in found
        ]
        return [row for row in rows if row.agent_id != self.agent_id]
