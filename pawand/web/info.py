"""`/health`, `/ready`, `/metrics`, `/agents`, `/models` and `/openapi.json`: what this daemon is and how it is."""

from __future__ import annotations

import asyncio
import time

import msgspec
from msgspec import UNSET

from pawand import __version__, wire
from pawand.errors import BadRequestError, ProviderError
from pawand.metrics import CONTENT_TYPE
from pawand.web import openapi
from pawand.web.access import ForbiddenError
from pawand.web.base import BaseHandler
from pawand.web.services import Services


class HealthHandler(BaseHandler):
    verbs = ("GET",)
    public = True

    async def get(self) -> None:
        me = self.services.identity
        faults = await _faults(self.services)
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


class ReadyHandler(BaseHandler):
    """Whether a message that comes now is answered; `/health` says whether the process is alive."""

    verbs = ("GET",)

    async def get(self) -> None:
        stopping = ["pawand is shutting down"] if self.services.turns.stopping else []
        reasons = stopping + await _faults(self.services)
        self.set_status(503 if reasons else 200)
        self.reply(wire.Ready(not reasons, reasons))


class MetricsHandler(BaseHandler):
    verbs = ("GET",)

    async def get(self) -> None:
        self.set_header("Content-Type", CONTENT_TYPE)
        self.finish(await self.services.metrics.exposition())


class AgentsHandler(BaseHandler):
    verbs = ("GET",)
    public = True

    async def get(self) -> None:
        peers = await self.services.directory.peers()
        if self.grant.full and not self.is_a_strange_pages:
            self.services.directory.probe()
        if not self.grant.full:
            peers = [msgspec.structs.replace(peer, port=UNSET, source=UNSET, online=UNSET) for peer in peers]
        self.reply(wire.Agents(self.services.directory.agent_id, peers))


class ModelsHandler(BaseHandler):
    verbs = ("GET",)

    async def get(self) -> None:
        live = self.get_query_argument("live", None)
        if live not in (None, "1"):
            raise BadRequestError(f"`live` must be 1, not {live!r}; leave it out for the configured models")
        if live and self.is_a_strange_pages:
            raise ForbiddenError("pages of other sites may not have the provider asked: leave `live` out")
        rows = self._configured()
        self.reply(wire.Models(rows) if live is None else await self._with_live(rows))

    def _configured(self) -> list[wire.Model]:
        config, me = self.services.config, self.services.identity
        names = dict.fromkeys([me.choice.model, *config.fallback_models])
        rows = [wire.Model(name=name, provider=me.choice.label, is_default=name == me.choice.model) for name in names]
        if config.cloud is not None and me.cloud is not None:
            names = dict.fromkeys([me.cloud.model, *config.cloud.fallback_models])
            rows += [wire.Model(name=name, provider=me.cloud.label, is_default=False) for name in names]
        return rows

    async def _with_live(self, rows: list[wire.Model]) -> wire.Models:
        """The provider's own models too, which are those that a request may name."""
        label = self.services.identity.choice.label
        try:
            names = await self.services.provider.models()
        except ProviderError as error:
            return wire.Models(rows, live=False, reason=error.message)
        known = {row.name for row in rows if row.provider == label}
        more = [wire.Model(name=name, provider=label, is_default=False) for name in names if name not in known]
        return wire.Models(rows + more, live=True)


class OpenApiHandler(BaseHandler):
    verbs = ("GET",)

    async def get(self) -> None:
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(await asyncio.to_thread(openapi.document))


async def _faults(services: Services) -> list[str]:
    """What keeps the daemon from its work."""
    me = services.identity
    found = [None if me.has_cloud else me.choice.fault, await services.store_look.fault()]
    if not me.sandbox.usable:
        found.append(f"[sandbox] mode is require, but {me.sandbox.status.reason}")
    return [fault for fault in found if fault]
