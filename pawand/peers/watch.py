"""The others by mDNS: the table of those that announce themselves is kept.

The package does not ask again for records that end, and gives PTR records 19 minutes at least; so who is killed would
stay. What counts here is the SRV record: it is asked for again before it ends, and when it ends its agent is gone. And
it asks who is there at its start only; here that is asked for ever, so that nobody stays unknown.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import Sequence
from typing import Any

import zeroconf

# Not in the package's list of public names, but kept there for those who need them.
from zeroconf import (  # type: ignore[attr-defined]
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSQuestionType,
    DNSService,
    ServiceStateChange,
)
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo

from pawand.peers import announcement
from pawand.peers.announcement import SERVICE, Neighbours
from pawand.peers.interfaces import Adapter

MAX_TTL_SECS = 120  # what others say is believed for no longer
ASK_AT = 0.75  # of the time that a record has
ASK_AGAIN_SECS = 4.0
ASK_ALL_SECS = 20.0
LOOK_AGAIN_SECS = 2.0  # a record that was replaced counts for another second (RFC 6762, 10.2)
TICK_SECS = 1.0
LOOKUP_MILLIS = 5000
MAX_LOOKUPS = 16
MAX_WANTED = 512
PTR, TXT, SRV, IN = 12, 16, 33, 1
# Answers to one address would reach one of the programs that share port 5353 here, and not always this one.
QM = DNSQuestionType.QM

log = logging.getLogger(__name__)


class Watch:
    """Keeps `neighbours`, without the one that is `own_server`; `adapters` are those of this machine now."""

    def __init__(
        self, radio: zeroconf.Zeroconf, own_server: str, neighbours: Neighbours, adapters: Sequence[Adapter]
    ) -> None:
        self.adapters = adapters
        self._radio = radio
        self._own_server = own_server
        self._neighbours = neighbours
        self._closing = False
        self._wanted: dict[str, None] = {}
        self._lookups: dict[str, asyncio.Task[None]] = {}
        self._asked: dict[str, float] = {}
        self._look_again: dict[str, float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        await self._radio.async_wait_for_start()
        browser = AsyncServiceBrowser(self._radio, SERVICE, handlers=[self._changed], question_type=QM)
        loop = asyncio.get_running_loop()
        ask_all = loop.time() + ASK_ALL_SECS
        try:
            while True:
                await asyncio.sleep(TICK_SECS)
                self._keep_fresh()
                if loop.time() >= ask_all:
                    ask_all = loop.time() + ASK_ALL_SECS
                    self._ask_all()
        finally:
            self._closing = True
            self._wanted.clear()
            lookups = list(self._lookups.values())
            for lookup in lookups:
                lookup.cancel()
            await browser.async_cancel()
            await asyncio.gather(*lookups, return_exceptions=True)

    def servers(self, name: str) -> set[str]:
        """Of all that go by this name now."""
        now = zeroconf.current_time_millis()
        records = self._radio.cache.get_all_by_details(name, SRV, IN)
        return {r.server for r in records if isinstance(r, DNSService) and not r.is_expired(now)}

    def want(self, name: str) -> None:
        """Find out about this one."""
        if self._closing:
            return
        if len(self._wanted) < MAX_WANTED:
            self._wanted[name] = None
            self._look_up()
        elif _instance(name) not in self._neighbours:
            self._forget(name)

    def _changed(self, *, name: str, state_change: ServiceStateChange, **_: Any) -> None:
        """Called for each agent that comes, changes or says goodbye. Must not raise: that would close the socket."""
        if not name.lower().endswith(f".{SERVICE}"):
            return
        if state_change is ServiceStateChange.Removed:
            self._wanted.pop(name, None)
            self._forget(name)
            return
        if _instance(name) in self._neighbours:
            self._look_again[name.lower()] = asyncio.get_running_loop().time() + LOOK_AGAIN_SECS
        self.want(name)

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
            complete = await info.async_request(self._radio, LOOKUP_MILLIS, QM)
            if info.server == self._own_server:
                self._neighbours.drop(instance)
                return
            if not complete and instance in self._neighbours:
                return  # what was known of it counts until its record ends
            if complete and self._time_left(name) > 0:
                addresses = info.parsed_scoped_addresses()
                found = announcement.read(instance, info.server, info.port, info.properties, addresses, self.adapters)
        except Exception as error:  # noqa: BLE001 - somebody on the network says nonsense
            log.debug("an announcement cannot be used: %s", error)
        if found is None or not self._neighbours.put(found):
            self._forget(name)

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
            if neighbour.server not in self.servers(name) or self._look_again.get(name.lower(), math.inf) <= now:
                self._look_again.pop(name.lower(), None)
                self.want(name)
            if left <= 1 - ASK_AT and now - self._asked.get(name, 0) >= ASK_AGAIN_SECS:
                self._asked[name] = now
                for kind in (SRV, TXT):
                    question.add_question(DNSQuestion(name, kind, IN))
        if question.questions:
            self._radio.async_send(question)

    def _ask_all(self) -> None:
        """Those that are in the table need not answer (RFC 6762, 7.1); our own name is not among them, so that another
        one that has it does. Addresses that went are no news to the package: all are looked at again."""
        question = DNSOutgoing(0)
        question.add_question(DNSQuestion(SERVICE, PTR, IN))
        known = {f"{neighbour.instance}.{SERVICE}".lower() for neighbour in self._neighbours}
        now = zeroconf.current_time_millis()
        for record in self._radio.cache.get_all_by_details(SERVICE, PTR, IN):
            if isinstance(record, DNSPointer) and record.alias.lower() in known:
                question.add_answer_at_time(record, now)
        self._radio.async_send(question)
        for neighbour in self._neighbours:
            self.want(f"{neighbour.instance}.{SERVICE}")

    def _time_left(self, name: str) -> float:
        """From 1, just heard of, to 0, gone."""
        now = zeroconf.current_time_millis()
        records = self._radio.cache.get_all_by_details(name, SRV, IN)
        return max((1 - (now - r.created) / (1000 * max(1, min(r.ttl, MAX_TTL_SECS))) for r in records), default=0.0)

    def _forget(self, name: str) -> None:
        """Its records go too: a later one is news then, and the next question to all asks for it."""
        cache = self._radio.cache
        pointer = cache.get(DNSPointer(SERVICE, PTR, IN, 0, name))
        cache.async_remove_records([*cache.get_all_by_details(name, SRV, IN), *([pointer] if pointer else [])])
        self._asked.pop(name, None)
        self._look_again.pop(name.lower(), None)
        self._neighbours.drop(_instance(name))


def _instance(name: str) -> str:
    return name[: -len(SERVICE) - 1]
