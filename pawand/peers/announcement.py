"""What a daemon says of itself by mDNS, what is believed of what others say, and the table of those others.

Anybody on the network can say anything: what does not fit is left out, and there is a limit to everything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address

from msgspec import Struct

from pawand import __version__
from pawand.peers.addresses import usable
from pawand.peers.interfaces import Adapter

SERVICE = "_pawan._tcp.local."
MAX_NEIGHBOURS = 256
MAX_NAME_CHARS = 128
MAX_GROUPS = 64
MAX_ADDRESSES = 16
MAX_INSTANCE_BYTES = 58  # of the 63 of DNS; the rest is for a number where the name is taken
MAX_TEXT_BYTES = 255  # of one key and value

log = logging.getLogger(__name__)


class Card(Struct, frozen=True, kw_only=True):
    """What a daemon says of itself; `bound` are the addresses that it listens on."""

    agent_id: str
    groups: list[str]
    port: int
    bound: list[str]


class Neighbour(Struct, frozen=True, kw_only=True):
    """An agent that announces itself. `ip` is the best of its `addresses`; `server` tells apart those that go by one
    instance name for a moment."""

    instance: str
    server: str
    agent_id: str
    groups: list[str]
    ip: str
    addresses: frozenset[str]
    port: int


class Neighbours:
    """Who announces itself now, by instance name (as in all of DNS, capitals are no difference); `revision` is another
    number after each change."""

    def __init__(self) -> None:
        self.revision = 0
        self._found: dict[str, Neighbour] = {}

    def __iter__(self) -> Iterator[Neighbour]:
        """Ordered by instance name."""
        return iter(sorted(self._found.values(), key=lambda neighbour: neighbour.instance))

    def __contains__(self, instance: str) -> bool:
        return instance.lower() in self._found

    def put(self, neighbour: Neighbour) -> bool:
        """False where there is no place for it."""
        key = neighbour.instance.lower()
        if key not in self._found and len(self._found) >= MAX_NEIGHBOURS:
            log.debug("an agent that announces itself is left out: there are %d already", MAX_NEIGHBOURS)
            return False
        if self._found.get(key) != neighbour:
            self._found[key] = neighbour
            self.revision += 1
        return True

    def drop(self, instance: str) -> None:
        if self._found.pop(instance.lower(), None) is not None:
            self.revision += 1

    def clear(self) -> None:
        for instance in list(self._found):
            self.drop(instance)


def instance_name(agent_id: str) -> str:
    """The agent id as one label of DNS: no dots, at most `MAX_INSTANCE_BYTES`."""
    label = "".join("-" if c in ".\\" or not c.isprintable() else c for c in agent_id).strip() or "pawan"
    return label.encode()[:MAX_INSTANCE_BYTES].decode(errors="ignore").rstrip()


def properties(agent_id: str, groups: Iterable[str]) -> dict[str, str]:
    """The TXT record; groups that do not fit into it are left out. Raises ValueError for an id that cannot be told."""
    if len(f"agent_id={agent_id}".encode()) > MAX_TEXT_BYTES or not agent_id.isprintable():
        raise ValueError("`server.agent_id` is too long for an announcement, or not printable")
    told = ""
    for group in groups:
        longer = f"{told},{group}" if told else group
        if len(f"groups={longer}".encode()) > MAX_TEXT_BYTES:
            log.warning("mDNS: not all of [discovery] groups fit into an announcement")
            break
        told = longer
    return {"agent_id": agent_id, "version": __version__, "groups": told, "path": "/"}


def read(
    instance: str,
    server: str | None,
    port: int | None,
    text: Mapping[bytes, bytes | None],
    addresses: Iterable[str],
    adapters: Iterable[Adapter],
) -> Neighbour | None:
    """What was announced, as far as it can be used; `adapters` are those of this machine."""
    agent_id = _plain(text.get(b"agent_id"))
    groups = [_plain(group) for group in (text.get(b"groups") or b"").split(b",")]
    ips = _ordered(addresses, list(adapters))[:MAX_ADDRESSES]
    if not agent_id or not instance.isprintable() or not server or not port or not ips:
        return None
    return Neighbour(
        instance=instance,
        server=server,
        agent_id=agent_id,
        groups=[group for group in groups if group][:MAX_GROUPS],
        ip=ips[0],
        addresses=frozenset(ips),
        port=port,
    )


def _plain(value: bytes | None) -> str:
    """Empty for what is no short printable text."""
    try:
        text = (value or b"").decode()
    except UnicodeDecodeError:
        return ""
    return text if len(text) <= MAX_NAME_CHARS and text.isprintable() else ""


def _ordered(addresses: Iterable[str], adapters: list[Adapter]) -> list[str]:
    """Those that can be called, best first: IPv4 before IPv6, near before far, link-local last."""
    own = {str(address.ip) for adapter in adapters for address in adapter.addresses}
    networks = [address.network for adapter in adapters for address in adapter.addresses]

    def rank(ip: IPv4Address | IPv6Address) -> tuple[bool, bool, bool, bool]:
        # An address of ours that another machine has too is of a network inside it, as containers have.
        far = not any(ip in network for network in networks if network.version == ip.version)
        return ip.is_link_local, ip.version == 6, str(ip) in own, far

    ips = [ip for address in addresses if (ip := usable(address)) is not None]
    return [str(ip) for ip in sorted(ips, key=rank)]
