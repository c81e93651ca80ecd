"""The servers that an agent talks to, from a plan, and from one plan to the next."""

from __future__ import annotations

import asyncio
import logging

from msgspec import Struct

from pawand.agent.run import Target
from pawand.config import Config
from pawand.daemon.planning import Plan
from pawand.event_loop import Pace
from pawand.memory.eruka import Eruka
from pawand.providers.catalog import Choice
from pawand.providers.upstream import Upstream
from pawand.redact import Redactor
from pawand.tools.mcp.servers import McpServers
from pawand.tools.sandbox import Sandbox

log = logging.getLogger(__name__)


class Outside(Struct, frozen=True, kw_only=True):
    """The servers that an agent talks to: those of the models, and what the settings add."""

    provider: Upstream
    cloud: Upstream | None
    servers: McpServers | None
    memory: Eruka | None

    async def retire(self, heir: Outside | None = None) -> None:
        """Let go of what `heir` does not go on with; answers that come from a provider are waited for."""
        kept = (heir.provider, heir.cloud, heir.memory) if heir is not None else ()
        ends = [u.retire() for u in (self.provider, self.cloud) if u is not None and u not in kept]
        if self.servers is not None:
            ends.append(self.servers.aclose(heir.servers if heir is not None else None))
        if self.memory is not None and self.memory not in kept:
            ends.append(self.memory.aclose())
        for failure in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(failure, Exception):
                log.error("a server could not be left in order", exc_info=failure)


def connect(
    plan: Plan,
    sandbox: Sandbox,
    redactor: Redactor,
    pace: Pace,
    old_plan: Plan | None = None,
    old: Outside | None = None,
) -> Outside:
    """What `plan` asks for; what is the same by both plans is taken over from `old`."""

    def upstream(choice: Choice, former: Upstream | None) -> Upstream:
        fits = former is not None and former.fits(choice, plan.config)
        return former if former is not None and fits else Upstream(choice, plan.config, redactor, pace)

    settings = plan.config
    former = old.servers if old is not None else None
    memory = old.memory if old is not None and old_plan is not None and old_plan.eruka == plan.eruka else None
    return Outside(
        provider=upstream(plan.choice, old.provider if old else None),
        cloud=upstream(plan.cloud, old.cloud if old else None) if plan.cloud is not None else None,
        servers=McpServers(settings.mcp, sandbox, redactor, former) if settings.mcp else None,
        memory=memory or (Eruka(plan.eruka, redactor) if plan.eruka.enabled else None),
    )


def cloud_targets(settings: Config, cloud: Upstream | None) -> list[Target]:
    """None for a cloud that cannot answer: its error would hide why the first provider failed."""
    if cloud is None or settings.cloud is None or cloud.fault is not None:
        return []
    models = dict.fromkeys([settings.cloud.model, *settings.cloud.fallback_models])
    return [Target(cloud, model) for model in models]
