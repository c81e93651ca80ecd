"""Speaking mDNS: this agent is announced, and the table of those that announce themselves is kept.

The package does not ask again for records that end, and gives PTR records 19 minutes at least; so who is killed would
stay. What counts here is the SRV record: it is asked for again before it ends, and when it ends its agent is gone.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import secrets
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import zeroconf

# Not in the package's list of public names, but kept there for those who need them.
from zeroconf import DNSOutgoing, DNSQuestion, DNSQuestionType, DNSService  # type: ignore[attr-defined]
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from pawand.peers import announcement, interfaces
from pawand.peers.announcement import SERVICE, Card, Neighbours
from pawand.peers.interfaces import Adapter, Reach

TTL_SECS = 60  # of all our records: how long others go on showing a daemon that was killed
MAX_TTL_SECS = 120  # what others say is believed for no longer
ASK_AT = 0.75  # of the time that a record has
ASK_AGAIN_SECS = 4.0
TICK_SECS = 1.0
RESCAN_SECS = 10.0
LOOKUP_MILLIS = 5000
MAX_LOOKUPS = 16
MAX_WANTED = 512
MAX_RENAMES = 8
GOODBYE_SECS = 1.0
SRV, TXT, IN = 33, 16, 1
RESPONSE = 0x8400
# Answers to one address would reach one of the programs that share port 5353 here, and not always this one.
QM = DNSQuestionType.QM

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
                if station is not None and (station.ended or station.reach != here):
                    former, station = station, None
                    await former.aclose()
                    former.check()
                elif station is not None:
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
    """mDNS on the interfaces of one reach, from the sockets to their end."""

    def __init__(self, card: Card, reach: Reach, adapters: Sequence[Adapter], neighbours: Neighbours) -> None:
        """Raises OSError where a socket cannot be had."""
        self._card = card
        self.reach = reach
        self._adapters = adapters
        self._neighbours = neighbours
        # A name of its own: what is said of the host's name, a goodbye too, is for others to say.
        self._server = f"pawan-{secrets.token_hex(8)}.local."
        self._me: AsyncServiceInfo | None = None
        self._renames = 0
        self._closing = False
        self._wanted: dict[str, None] = {}
        self._lookups: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[str, float] = {}
        self._radio = AsyncZeroconf(interfaces=list(reach.senders), ip_version=_version(reach))
        self._work = asyncio.create_task(self._run())

    @property
    def ended(self) -> bool:
        return self._work.done()

    def check(self) -> None:
        """Raises what ended it, if anything did."""
        if self._work.done() and not self._work.cancelled():
            self._work.result()

    async def aclose(self) -> None:
        """Say goodbye, and forget who was found here. Never fails, and takes no longer than `GOODBYE_SECS`."""
        self._closing = True
        self._wanted.clear()
        tasks = [self._work, *self._lookups.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(GOODBYE_SECS):
                await self._radio.async_close()
        except Exception as error:  # noqa: BLE001 - there is nothing more to do for it
            log.debug("mDNS did not end well: %s", error)
        self._neighbours.clear()

    async def _run(self) -> None:
        radio = self._radio.zeroconf
        await radio.async_wait_for_start()
        browser = AsyncServiceBrowser(radio, SERVICE, handlers=[self._changed], question_type=QM)
        try:
            await self._announce()
            while True:
                await asyncio.sleep(TICK_SECS)
                self._keep_fresh()
                await self._keep_name()
        finally:
            await browser.async_cancel()

    # --- this agent -------------------------------------------------------------------------------

    async def _announce(self) -> None:
        if not self.reach.announced:
            return
        try:
            text = announcement.properties(self._card.agent_id, self._card.groups)
        except ValueError as error:
            log.warning("mDNS: this agent is not announced: %s", error)
            return
        self._me = AsyncServiceInfo(
            SERVICE,
            f"{announcement.instance_name(self._card.agent_id)}.{SERVICE}",
            addresses=[ip_address(address).packed for address in self.reach.announced],
            port=self._card.port,
            properties=text,
            server=self._server,
            host_ttl=TTL_SECS,
            other_ttl=TTL_SECS,
        )
        await self._register(self._me)

    async def _register(self, me: AsyncServiceInfo) -> None:
        await (await self._radio.async_register_service(me, allow_name_change=True))
        log.info("announced by mDNS as %r at %s", me.get_name(), ", ".join(self.reach.announced))

    async def _keep_name(self) -> None:
        """Those that began at once may all have taken one name: the one with the least server keeps it."""
        me = self._me
        if (
            me is None
            or self._renames >= MAX_RENAMES
            or self._server <= min(self._servers(me.name), default=self._server)
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
        self._want(me.name)
        me.name = f"{announcement.instance_name(self._card.agent_id)}-{secrets.token_hex(2)}.{SERVICE}"
        await self._register(me)

    # --- the others -------------------------------------------------------------------------------

    def _changed(self, *, name: str, state_change: zeroconf.ServiceStateChange, **_: Any) -> None:
        """Called for each agent that comes, changes or says goodbye. Must not raise: that would close the socket."""
        if not name.lower().endswith(f".{SERVICE}"):
            return
        if state_change is zeroconf.ServiceStateChange.Removed:
            self._wanted.pop(name, None)
            self._forget(name)
        else:
            self._want(name)

    def _want(self, name: str) -> None:
        if len(self._wanted) < MAX_WANTED and not self._closing:
            self._wanted[name] = None
            self._look_up()

    def _look_up(self) -> None:
        """Find out about those that are wanted, some at a time, each once at a time."""
        for name in [name for name in self._wanted if name not in self._lookups]:
            if len(self._lookups) >= MAX_LOOKUPS:
                break
            del self._wanted[name]
            self._lookups[name] = task = asyncio.create_task(self._ask_for(name))
            task.add_done_callback(functools.partial(self._looked_up, name))

    def _looked_up(self, name: str, _: asyncio.Task[None]) -> None:
        self._lookups.pop(name, None)
        self._look_up()

    async def _ask_for(self, name: str) -> None:
        instance, found = _instance(name), None
        try:
            info = AsyncServiceInfo(SERVICE, name)
            if not await info.async_request(self._radio.zeroconf, LOOKUP_MILLIS, QM):
                return
            if info.server != self._server and self._time_left(name) > 0:
                addresses = info.parsed_scoped_addresses()
                found = announcement.read(instance, info.server, info.port, info.properties, addresses, self._adapters)
        except Exception as error:  # noqa: BLE001 - somebody on the network says nonsense
            log.debug("an announcement cannot be used: %s", error)
        if found is None:
            self._neighbours.drop(instance)
        else:
            self._neighbours.put(found)

    def _keep_fresh(self) -> None:
        """Ask for what will end soon; let go of what has ended."""
        now = asyncio.get_running_loop().time()
        question = DNSOutgoing(0)
        for neighbour in self._neighbours:
            name = f"{neighbour.instance}.{SERVICE}"
            left = self._time_left(name)
            if left <= 0:
                self._forget(name)
                continue
            if neighbour.server not in self._servers(name):
                self._want(name)  # another agent has the name now
            if left <= 1 - ASK_AT and now - self._asked.get(name, 0) >= ASK_AGAIN_SECS:
                self._asked[name] = now
                for kind in (SRV, TXT):
                    question.add_question(DNSQuestion(name, kind, IN))
        if question.questions:
            self._radio.zeroconf.async_send(question)

    def _time_left(self, name: str) -> float:
        """From 1, just heard of, to 0, gone."""
        now = zeroconf.current_time_millis()
        records = self._radio.zeroconf.cache.get_all_by_details(name, SRV, IN)
        return max((1 - (now - r.created) / (1000 * max(1, min(r.ttl, MAX_TTL_SECS))) for r in records), default=0.0)

    def _servers(self, name: str) -> set[str]:
        """Of all that go by this name now."""
        now = zeroconf.current_time_millis()
        records = self._radio.zeroconf.cache.get_all_by_details(name, SRV, IN)
        return {r.server for r in records if isinstance(r, DNSService) and not r.is_expired(now)}

    def _forget(self, name: str) -> None:
        """Its record goes too: a later one is news then."""
        cache = self._radio.zeroconf.cache
        cache.async_remove_records(cache.get_all_by_details(name, SRV, IN))
        self._asked.pop(name, None)
        if lookup := self._lookups.get(name):
            lookup.cancel()
        self._neighbours.drop(_instance(name))


def _instance(name: str) -> str:
    return name[: -len(SERVICE) - 1]


def _version(reach: Reach) -> zeroconf.IPVersion:
    kinds = {type(sender) for sender in reach.senders}
    if kinds == {str}:
        return zeroconf.IPVersion.V4Only
    return zeroconf.IPVersion.V6Only if kinds == {int} else zeroconf.IPVersion.All
