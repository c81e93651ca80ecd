"""Speaking mDNS: this agent is announced, on the interfaces that its server is bound to. The others: watch.py."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

import zeroconf

# Not in the package's list of public names, but kept there for those who need them.
from zeroconf import DNSOutgoing, DNSService  # type: ignore[attr-defined]
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from pawand.peers import announcement, interfaces
from pawand.peers.announcement import SERVICE, Card, Neighbours
from pawand.peers.interfaces import Adapter, Reach
from pawand.peers.watch import IN, SRV, TICK_SECS, Watch

TTL_SECS = 60  # of all our records: how long others go on showing a daemon that was killed
RESCAN_SECS = 10.0
MAX_RENAMES = 8
GOODBYE_SECS = 1.0
RESPONSE = 0x8400
# Of Linux, and not named by Python: ip(7), ipv6(7).
IP_MULTICAST_ALL, IPV6_MULTICAST_ALL = 49, 29

log = logging.getLogger(__name__)


async def run(card: Card, neighbours: Neighbours) -> None:
    """Announce and browse until cancelled; then say goodbye. Trouble is told once, and tried again."""
    if all(ip_address(host.partition("%")[0]).is_loopback for host in card.bound):
        log.warning(
            "mDNS: this agent finds others, but is not announced, because it listens on loopback only; "
            "start it with --host 0.0.0.0, or with the address of one interface"
        )
    # Its warnings are tracebacks of what strangers send and of networks that are gone.
    logging.getLogger("zeroconf").setLevel(logging.ERROR)
    station: _Station | None = None
    trouble = ""
    try:
        while True:
            try:
                adapters = await asyncio.to_thread(interfaces.adapters)
                here = interfaces.reach(card.bound, adapters)
                if station is not None and (station.ended or not here.senders):
                    former, station = station, None
                    await former.aclose()
                    former.check()
                elif station is not None:
                    await station.adapt(here, adapters)
                    trouble = ""
                if station is None and here.senders:
                    station = _Station(card, here, adapters, neighbours)
            except Exception as error:  # noqa: BLE001 - without mDNS the daemon works as well
                reason = str(error) or type(error).__name__
                if reason != trouble:
                    log.warning("mDNS does not work, it is tried again: %s", reason)
                trouble = reason
            await asyncio.sleep(RESCAN_SECS)
    finally:
        if station is not None:
            await station.aclose()


class _Station:
    """mDNS on the interfaces of a reach, from the sockets to their end."""

    def __init__(self, card: Card, reach: Reach, adapters: Sequence[Adapter], neighbours: Neighbours) -> None:
        """Raises OSError where a socket cannot be had."""
        self._card = card
        self._reach = reach
        self._neighbours = neighbours
        # A name of its own: what is said of the host's name, a goodbye too, is for others to say.
        self._server = f"pawan-{secrets.token_hex(8)}.local."
        self._text = _text(card)
        self._me: AsyncServiceInfo | None = None
        self._told: tuple[str, ...] = ()
        self._renames = 0
        self._radio = AsyncZeroconf(interfaces=list(reach.senders), ip_version=_version(reach))
        self._watch = Watch(self._radio.zeroconf, self._server, neighbours, adapters)
        # Two tasks: a name takes its time to be had, and the others go on meanwhile.
        self._tasks = [asyncio.create_task(self._be_known()), asyncio.create_task(self._watch.run())]

    @property
    def ended(self) -> bool:
        return any(task.done() for task in self._tasks)

    def check(self) -> None:
        """Raises what ended it, if anything did."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def adapt(self, reach: Reach, adapters: Sequence[Adapter]) -> None:
        """Go on with other interfaces: what is said, and who is known, stays."""
        self._watch.adapters = adapters
        former, self._reach = self._reach, reach
        radio = self._radio.zeroconf
        # An address that is new to the system cannot be bound yet.
        if reach.senders != former.senders or len(radio.engine.senders) < len(reach.senders):
            await radio.async_update_interfaces(list(reach.senders), _version(reach))
            self._fence()

    async def aclose(self) -> None:
        """Say goodbye, and forget who was found here. Never fails, and takes no longer than `GOODBYE_SECS`."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(GOODBYE_SECS):
                await self._radio.async_close()
        except Exception as error:  # noqa: BLE001 - there is nothing more to do for it
            log.debug("mDNS did not end well: %s", error)
        self._neighbours.clear()

    def _fence(self) -> None:
        """The package listens to all interfaces, and takes what comes from anywhere."""
        for reader in self._radio.zeroconf.engine.readers:
            inner: Any = reader.transport.get_protocol()
            if not isinstance(inner, _Fence):
                reader.transport.set_protocol(_Fence(inner, lambda host, scope: self._reach.is_near(host, scope)))
                # Else what other programs have joined on other interfaces would come here too.
                with suppress(OSError):
                    reader.sock.setsockopt(socket.IPPROTO_IP, IP_MULTICAST_ALL, 0)
                with suppress(OSError):
                    reader.sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MULTICAST_ALL, 0)

    async def _be_known(self) -> None:
        await self._radio.zeroconf.async_wait_for_start()
        self._fence()
        while True:
            if self._text and self._told != self._reach.announced:
                await self._announce(self._text)
            await asyncio.sleep(TICK_SECS)
            await self._keep_name()

    async def _announce(self, text: dict[str, str]) -> None:
        """As what the server is reached at now, which may be nothing."""
        former, self._told = self._me, self._reach.announced
        name = former.name if former else f"{announcement.instance_name(self._card.agent_id)}.{SERVICE}"
        me = AsyncServiceInfo(
            SERVICE,
            name,
            addresses=[ip_address(address).packed for address in self._told],
            port=self._card.port,
            properties=text,
            server=self._server,
            host_ttl=TTL_SECS,
            other_ttl=TTL_SECS,
        )
        self._me = me if self._told else None
        if former is None:
            await self._register(me)
        elif self._told:
            await (await self._radio.async_update_service(me))
            log.info("announced by mDNS as %r at %s", me.get_name(), ", ".join(self._told))
        else:
            await (await self._radio.async_unregister_service(former))

    async def _register(self, me: AsyncServiceInfo) -> None:
        await (await self._radio.async_register_service(me, allow_name_change=True))
        log.info("announced by mDNS as %r at %s", me.get_name(), ", ".join(self._told))

    async def _keep_name(self) -> None:
        """Those that began at once may all have taken one name: the one with the least server keeps it."""
        me = self._me
        if (
            me is None
            or self._renames >= MAX_RENAMES
            or self._server <= min(self._watch.servers(me.name), default=self._server)
        ):
            return
        self._renames += 1
        radio = self._radio.zeroconf
        radio.registry.async_remove(me)
        # No goodbye, which would be one for all of them: only our own record goes.
        ours = DNSService(me.name, SRV, IN, 0, 0, 0, self._card.port, self._server)
        gone = DNSOutgoing(RESPONSE)
        gone.add_answer_at_time(ours, 0)
        radio.async_send(gone)
        cached = radio.cache.get_all_by_details(me.name, SRV, IN)
        radio.cache.async_remove_records([record for record in cached if record == ours])
        self._watch.want(me.name)
        me.name = f"{announcement.instance_name(self._card.agent_id)}-{secrets.token_hex(2)}.{SERVICE}"
        await self._register(me)


class _Fence(asyncio.DatagramProtocol):
    """Lets in what comes from an interface where mDNS is spoken (RFC 6762, 11)."""

    def __init__(self, inner: asyncio.DatagramProtocol, is_near: Callable[[str, int], bool]) -> None:
        self._inner = inner
        self._is_near = is_near

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self._is_near(addr[0], addr[3] if len(addr) == 4 else 0):
            self._inner.datagram_received(data, addr)

    def error_received(self, exc: Exception) -> None:
        self._inner.error_received(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)


def _text(card: Card) -> dict[str, str]:
    """Empty where this agent cannot be announced."""
    try:
        return announcement.properties(card.agent_id, card.groups)
    except ValueError as error:
        log.warning("mDNS: this agent is not announced: %s", error)
        return {}


def _version(reach: Reach) -> zeroconf.IPVersion:
    kinds = {type(sender) for sender in reach.senders}
    if kinds == {str}:
        return zeroconf.IPVersion.V4Only
    return zeroconf.IPVersion.V6Only if kinds == {int} else zeroconf.IPVersion.All
