"""Where a peer is asked, and with which token: one rule for the agent's tool and for `pawand chat --peer`.

A token goes only where the user's own files lead: to `[peers.NAME] address`, or to the address in the Aegis file. What
mDNS says of a name, anybody on the network can say.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import TypeVar
from urllib.parse import urlsplit

from msgspec import Struct

from pawand import config, wire
from pawand.errors import PeerError

MAX_LISTED = 20
MAX_NAME_CHARS = 128
_T = TypeVar("_T")
_THIS_NETWORK = IPv4Network("0.0.0.0/8")


class Place(Struct, frozen=True):
    """`url` has no slash at its end; `token` is None where none may be sent."""

    name: str
    url: str
    token: str | None

    def hint(self, code: str) -> str:
        """What to do about a refusal, where it is known; else empty."""
        if code == "unauthorized":
            what = "" if self.token else " (none is set)"
            return f"`[peers.{self.name}] token`{what} must be the token in the token file of that daemon"
        if code == "host_not_allowed":
            there = "`[server] allowed_hosts` there"
            return f"put that name into {there}, or its IP address into `[peers.{self.name}] address` here"
        return ""


def find(name: str, configured: Mapping[str, config.Peer], rows: Sequence[wire.Peer]) -> Place:
    """The place of a peer, by its exact name or else by one that differs in case. Raises PeerError."""
    # What the Aegis file names comes first: nobody on the network can take such a name.
    trusted = _pick(name, {row.name: row for row in reversed(rows) if _is_trusted(row)})
    settings = _pick(name, configured)
    row = trusted or _pick(name, {row.name: row for row in reversed(rows)})
    known_as = settings[0] if settings else row[0] if row else None
    if known_as is None:
        raise PeerError(
            f"there is no agent {name[:MAX_NAME_CHARS]!r}; {_listed([*configured, *(r.name for r in rows)])}"
        )
    token = settings[1].token if settings else None
    if settings and settings[1].address:
        return Place(known_as, _checked(url_of(settings[1].address), known_as), token)
    if row is None or row[1].ip is None:
        raise PeerError(f"no address of {known_as} is known: set `[peers.{known_as}] address`")
    if token is not None and not trusted:
        raise PeerError(
            f"{known_as} was only announced by mDNS, where anybody can take any name, so its token is not sent: "
            f"set `[peers.{known_as}] address`"
        )
    if not trusted and usable(row[1].ip) is None:
        raise PeerError(f"{known_as} was announced at {row[1].ip}, which is no address of another machine")
    # The port too may be an announcement's word.
    port = row[1].port if token is None and isinstance(row[1].port, int) else config.Server().port
    return Place(known_as, f"http://{_bracketed(row[1].ip)}:{port}", token)


def _is_trusted(row: wire.Peer) -> bool:
    return isinstance(row.source, str) and row.source.startswith("aegis")


def _pick(name: str, known: Mapping[str, _T]) -> tuple[str, _T] | None:
    if name in known:
        return name, known[name]
    alike = [other for other in known if other.casefold() == name.casefold()]
    return (alike[0], known[alike[0]]) if len(alike) == 1 else None


def _listed(names: Iterable[str]) -> str:
    different = sorted({name[:MAX_NAME_CHARS] for name in names})
    if not different:
        return "none is known"
    more = f" and {len(different) - MAX_LISTED} more" if len(different) > MAX_LISTED else ""
    return f"there are: {', '.join(different[:MAX_LISTED])}{more}"


def url_of(address: str) -> str:
    """An address of the settings as a URL: one that is none has our scheme, and our port where it names none."""
    if address.startswith(("http://", "https://")):
        return address.rstrip("/")
    has_port = ":" in address.rpartition("]")[2]
    return f"http://{address}" if has_port else f"http://{address}:{config.Server().port}"


def usable(address: str) -> IPv4Address | IPv6Address | None:
    """What was announced as the address of another machine; None for what can be none: it might lead to our own
    loopback. A link-local address of IPv6 says nothing without its interface."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(ip, IPv6Address):
        ip = ip.ipv4_mapped or ip
    if ip.is_loopback or ip.is_unspecified or ip.is_multicast or ip.is_reserved or ip in _THIS_NETWORK:
        return None
    return None if isinstance(ip, IPv6Address) and ip.is_link_local and not ip.scope_id else ip


def _checked(url: str, name: str) -> str:
    """What looks like an address in brackets may be none."""
    try:
        urlsplit(url)
    except ValueError as error:
        raise PeerError(f"the address of {name}, {url}, is none: correct `[peers.{name}] address`") from error
    return url


def _bracketed(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip
