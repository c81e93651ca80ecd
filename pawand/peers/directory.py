"""Who else is there: what `/agents` answers, from the Aegis file and from what is announced by mDNS.

An announcement is anybody's word: it never takes the name of a peer of the Aegis file, and never gives one an address.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from msgspec import Struct

from pawand import config, wire
from pawand.peers.addresses import url_of
from pawand.peers.aegis import AegisFile, AegisPeer
from pawand.peers.announcement import Neighbour, Neighbours
from pawand.peers.interfaces import OwnAddresses
from pawand.peers.probes import Probes

PREFIX = "pawan@"


class _Seen(Struct, frozen=True):
    """What the rows were made of."""

    listed: list[AegisPeer]
    own: frozenset[str]
    neighbours: int
    probes: int


class Directory:
    """The peers of this daemon, itself left out, ordered by name; no two have the same name.

    `configured` are the `[peers.NAME]` of the settings. Who speaks mDNS keeps `neighbours`.
    """

    def __init__(
        self,
        agent_id: str,
        aegis: AegisFile,
        configured: Mapping[str, config.Peer] | None = None,
        own_addresses: Callable[[], frozenset[str]] | None = None,
    ) -> None:
        self.agent_id = agent_id
        self.neighbours = Neighbours()
        self._aegis = aegis
        self._configured = configured or {}
        self._own_addresses = own_addresses or OwnAddresses()
        self._probes = Probes()
        self._seen: _Seen | None = None
        self._rows: list[wire.Peer] = []
        self._urls: dict[str, str] = {}

    def adopt(self, aegis: AegisFile, configured: Mapping[str, config.Peer]) -> None:
        """Go by other settings from now on."""
        self._aegis = aegis
        self._configured = configured
        self._seen = None

    async def peers(self) -> list[wire.Peer]:
        """All, as far as is known now; asks nobody."""
        listed, own = await asyncio.to_thread(lambda: (self._aegis.peers(), self._own_addresses()))
        seen = _Seen(listed, own, self.neighbours.revision, self._probes.revision)
        if self._seen is None or seen.listed is not self._seen.listed or seen != self._seen:
            self._merge(listed, own)
            self._seen = seen
        return self._rows

    def probe(self) -> None:
        """Find out in the background who of the last answer is there, where mDNS does not say it."""
        self._probes.ask(self._urls.values())

    async def aclose(self) -> None:
        await self._probes.aclose()

    def _merge(self, listed: list[AegisPeer], own: frozenset[str]) -> None:
        others = [peer for peer in listed if f"{PREFIX}{peer.name}" != self.agent_id]
        matches, alone = _matched(others, list(self.neighbours))
        # An address of this machine that nobody else here announces is this daemon's own.
        others = [peer for peer in others if peer.name in matches or peer.ip not in own]
        names = _named(alone, {peer.name for peer in listed})
        self._urls = {peer.name: url for peer in others if peer.name not in matches and (url := self._url(peer))}
        rows = [self._listed_row(peer, matches.get(peer.name)) for peer in others]
        rows += [_announced_row(name, neighbour) for name, neighbour in names.items()]
        self._rows = sorted(rows, key=lambda row: row.name)

    def _listed_row(self, peer: AegisPeer, found: Neighbour | None) -> wire.Peer:
        url = self._urls.get(peer.name)
        configured = self._configured.get(peer.name)
        return wire.Peer(
            name=peer.name,
            agent_id=found.agent_id if found else f"{PREFIX}{peer.name}",
            ip=peer.ip,
            groups=peer.groups,
            port=found.port if found else _port(url) if url and configured and configured.address else None,
            source="aegis+mdns" if found else "aegis",
            online=True if found else self._probes.online(url) if url else None,
        )

    def _url(self, peer: AegisPeer) -> str | None:
        """Where `peer` would answer; None where nothing says it."""
        configured = self._configured.get(peer.name)
        if configured is not None and configured.address:
            return url_of(configured.address)
        return None if peer.ip is None else url_of(f"[{peer.ip}]" if ":" in peer.ip else peer.ip)


def _matched(listed: list[AegisPeer], neighbours: list[Neighbour]) -> tuple[dict[str, Neighbour], list[Neighbour]]:
    """Who of the Aegis file is who of mDNS, by name in the file; and the rest.

    First by agent id, and of two that announce the same one by the address of the file too; then by address alone.
    """
    by_id = {f"{PREFIX}{peer.name}": peer for peer in listed}
    matches: dict[str, Neighbour] = {}
    for neighbour in sorted(neighbours, key=lambda n: not _is_at(by_id.get(n.agent_id), n)):
        if neighbour.agent_id in by_id:
            matches.setdefault(by_id[neighbour.agent_id].name, neighbour)
    by_address: dict[str, str] = {}
    for peer in listed:
        if peer.ip is not None and peer.name not in matches:
            by_address.setdefault(peer.ip, peer.name)
    taken = {neighbour.instance for neighbour in matches.values()}
    alone = []
    for neighbour in neighbours:
        if neighbour.instance in taken:
            continue
        names = {by_address[ip] for ip in neighbour.addresses if ip in by_address and by_address[ip] not in matches}
        if names:
            matches[min(names)] = neighbour
        else:
            alone.append(neighbour)
    return matches, alone


def _is_at(peer: AegisPeer | None, neighbour: Neighbour) -> bool:
    return peer is not None and peer.ip in neighbour.addresses


def _named(neighbours: list[Neighbour], taken: Iterable[str]) -> dict[str, Neighbour]:
    """A name for each: its agent id without the prefix, else its instance name, else that with a number."""
    names: dict[str, Neighbour] = {}
    used = set(taken)
    for neighbour in neighbours:
        wanted = [neighbour.agent_id.removeprefix(PREFIX), neighbour.instance]
        numbered = (f"{neighbour.instance} ({number})" for number in itertools.count(2))
        name = next(name for name in itertools.chain(wanted, numbered) if name and name not in used)
        used.add(name)
        names[name] = neighbour
    return names


def _announced_row(name: str, neighbour: Neighbour) -> wire.Peer:
    return wire.Peer(
        name=name,
        agent_id=neighbour.agent_id,
        ip=neighbour.ip,
        groups=neighbour.groups,
        port=neighbour.port,
        source="mdns",
        online=True,
    )


def _port(url: str) -> int | None:
    try:
        return urlsplit(url).port
    except ValueError:
        return None
