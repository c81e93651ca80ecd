"""The network interfaces of this machine: its own addresses, and on which of them others can find it."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

import ifaddr
from msgspec import Struct

MAX_AGE_SECS = 10.0


class Adapter(Struct, frozen=True):
    """A network interface. `index` is the system's number for it."""

    index: int
    addresses: tuple[IPv4Interface | IPv6Interface, ...]


class Reach(Struct, frozen=True):
    """Where mDNS is spoken: `announced` are the addresses that others are told, `senders` the interfaces, by an IPv4
    address of each, and by the index of those that have IPv6; `networks` and `indexes` are theirs."""

    announced: tuple[str, ...]
    senders: tuple[str | int, ...]
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    indexes: tuple[int, ...] = ()

    def is_near(self, source: str, scope: int) -> bool:
        """Whether a packet from `source` (of `scope`, the interface of a link-local IPv6 address) came over them."""
        ip = ipaddress.ip_address(source.partition("%")[0])
        if isinstance(ip, IPv6Address):
            if ip.is_link_local:
                return scope in self.indexes
            ip = ip.ipv4_mapped or ip
        return any(ip in network for network in self.networks)


class OwnAddresses:
    """All addresses of this machine, looked up again when that was long ago."""

    def __init__(self) -> None:
        self._known: frozenset[str] = frozenset()
        self._until = 0.0

    def __call__(self) -> frozenset[str]:
        """Blocks, shortly."""
        if time.monotonic() >= self._until:
            with suppress(OSError):  # where the system does not say it, what was known counts on
                self._known = frozenset(str(address.ip) for adapter in adapters() for address in adapter.addresses)
            self._until = time.monotonic() + MAX_AGE_SECS
        return self._known


def adapters() -> list[Adapter]:
    """What the system has now. Blocks, shortly."""
    found: dict[int, list[IPv4Interface | IPv6Interface]] = {}
    for adapter in ifaddr.get_adapters():
        if adapter.index is None:
            continue
        for address in adapter.ips:
            text = address.ip if isinstance(address.ip, str) else address.ip[0]
            found.setdefault(adapter.index, []).append(ipaddress.ip_interface(f"{text}/{address.network_prefix}"))
    return [Adapter(index, tuple(addresses)) for index, addresses in sorted(found.items())]


def reach(bound: Iterable[str], adapters: Iterable[Adapter]) -> Reach:
    """Where a server that listens on `bound` can be found: on loopback only, nowhere, and then it listens to all."""
    hosts = [ipaddress.ip_address(host.partition("%")[0]) for host in bound]
    outer = [Adapter(a.index, tuple(i for i in a.addresses if not i.ip.is_loopback)) for a in adapters]

    def is_bound(address: IPv4Interface | IPv6Interface) -> bool:
        same_kind = [host for host in hosts if host.version == address.version]
        return any(host.is_unspecified or host == address.ip for host in same_kind)

    ours = [adapter for adapter in outer if any(map(is_bound, adapter.addresses))]
    found = [address.ip for adapter in ours for address in adapter.addresses if is_bound(address)]
    told = [ip for ip in found if not ip.is_link_local] or found
    # Those of containers have nothing else, and come and go.
    spoken = [a for a in ours or outer if not all(address.is_link_local for address in a.addresses)] or ours or outer
    senders: list[str | int] = []
    for adapter in spoken:
        senders += [str(address.ip) for address in adapter.addresses if address.version == 4][:1]
        senders += [adapter.index for address in adapter.addresses if address.version == 6][:1]
    return Reach(
        announced=tuple(str(ip) for ip in told),
        senders=tuple(senders),
        networks=tuple(dict.fromkeys(_network(address) for adapter in spoken for address in adapter.addresses)),
        indexes=tuple(adapter.index for adapter in spoken),
    )


def _network(address: IPv4Interface | IPv6Interface) -> IPv4Network | IPv6Network:
    """An address of DHCPv6 does not say what its network is."""
    if isinstance(address, IPv6Interface) and address.network.prefixlen == 128:
        return IPv6Network((address.ip, 64), strict=False)
    return address.network
