"""`/health`, `/agents` and `/models`: what this daemon is."""

from __future__ import annotations

import asyncio
import time

import msgspec
from msgspec import UNSET

from pawand import __version__, wire
from pawand.web.base import BaseHandler

STORE_SECS = 2.0  # a disk that hangs must not hang the health check


class HealthHandler(BaseHandler):
    verbs = ("GET",)
    public = True

    async def get(self) -> None:
        me = self.services.identity
        faults = await self._faults()
        health = wire.Health(
            status="degraded" if faults else "ok",
            version=__version__,
            uptime_secs=int(time.monotonic() - me.started),
            agent_id=me.agent_id,
        )
        if self.grant.full:
            health = wire.HealthDetail(
                **msgspec.structs.asdict(health),
                provider=me.choice.label,
                model=me.choice.model,
                sandbox=me.sandbox.status.word,
                active_turns=self.services.turns.active_turns,
                reasons=faults + self._notes(),
            )
        self.reply(health)

    async def _faults(self) -> list[str]:
        """What keeps the daemon from its work."""
        me = self.services.identity
        found = [None if me.has_cloud else me.choice.fault, await self._store_fault()]
        if not me.sandbox.usable:
            found.append(f"[sandbox] mode is require, but {me.sandbox.status.reason}")
        return [fault for fault in found if fault]

    async def _store_fault(self) -> str | None:
        store = self.services.turns.store
        try:
            async with asyncio.timeout(STORE_SECS):
                return await asyncio.to_thread(store.fault)
        except TimeoutError:
            return f"the session store {store.folder} does not answer"

    def _notes(self) -> list[str]:
        """What the user should know although all works."""
        me = self.services.identity
        notes = []
        if me.choice.automatic:
            notes.append("no provider is configured: the embedded model answers, which can chat a little but not code")
        if me.cloud is not None and me.cloud.fault is not None:
            notes.append(f"[cloud] is not used: {me.cloud.fault}")
        if me.has_cloud and me.choice.fault is not None:
            notes.append(f"[cloud] answers alone: {me.choice.fault}")
        if me.sandbox.usable and me.sandbox.status.reason:
            notes.append(f"commands run without a sandbox: {me.sandbox.status.reason}")
        return notes


class AgentsHandler(BaseHandler):
    verbs = ("GET",)
    public = True

    async def get(self) -> None:
        peers = await self.services.directory.peers()
        if not self.grant.full:
            peers = [msgspec.structs.replace(peer, port=UNSET, source=UNSET, online=UNSET) for peer in peers]
        self.reply(wire.Agents(self.services.directory.agent_id, peers))


class ModelsHandler(BaseHandler):
    verbs = ("GET",)

    def get(self) -> None:
        config, me = self.services.config, self.services.identity
        names = dict.fromkeys([me.choice.model, *config.fallback_models])
        rows = [wire.Model(name=name, provider=me.choice.label, is_default=name == me.choice.model) for name in names]
        if config.cloud is not None and me.cloud is not None:
            names = dict.fromkeys([me.cloud.model, *config.cloud.fallback_models])
            rows += [wire.Model(name=name, provider=me.cloud.label, is_default=False) for name in names]
        self.reply(wire.Models(rows))
