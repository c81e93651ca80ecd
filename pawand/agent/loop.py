"""The agent loop: ask the model, run the tools it calls, ask again until it answers.

It reads and appends to a Session and emits events; it knows neither HTTP nor the event log. Whatever ends it, the
session holds what was said and done until then, with every tool call answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from msgspec import Struct

from pawand import wire
from pawand.agent import children, prompt
from pawand.agent.approvals import Approvals
from pawand.agent.calls import Calls
from pawand.agent.compaction import Compactor
from pawand.agent.completion import Answer, Completions, Patience
from pawand.agent.permissions import Permissions
from pawand.agent.run import Finished, Run, Sink, Target
from pawand.errors import ProviderError
from pawand.memory.eruka import Eruka
from pawand.providers.base import Provider
from pawand.redact import Redactor
from pawand.sessions.model import Session
from pawand.tools.base import Assignment, Emit, Registry, Report, ToolContext
from pawand.tools.mcp.servers import McpServers
from pawand.tools.skills import Skills


class AgentSettings(Struct, frozen=True, kw_only=True):
    max_iterations: int
    max_retries: int
    max_context_tokens: int
    thinking_budget: int
    permission_timeout_secs: float
    fallback_models: list[str]
    system_prompt: str | None
    tiny: bool
    """A model that can use no tools."""


class Equipment(Struct, frozen=True, kw_only=True):
    """What an agent works with besides its settings; `cloud` is asked when `provider` and its models have failed."""

    provider: Provider
    cloud: list[Target]
    tools: Registry
    servers: McpServers | None
    skills: Skills
    memory: Eruka | None


Save = Callable[[], Awaitable[None]]


class Agent:
    """Runs turns; holds nothing between them, so one serves all sessions."""

    def __init__(
        self, settings: AgentSettings, equipment: Equipment, permissions: Permissions, redactor: Redactor
    ) -> None:
        self._settings = settings
        self._equipment = equipment
        patience = Patience(max_retries=settings.max_retries, thinking_budget=settings.thinking_budget)
        self._completions = Completions(patience, redactor)
        self._compactor = Compactor(settings.max_context_tokens, self._completions)
        self._calls = Calls(permissions, settings.permission_timeout_secs, self._spawn)

    async def run(
        self, session: Session, context: ToolContext, approvals: Approvals, emit: Sink, save: Save
    ) -> Finished:
        """Answer the session's last user message with its model. Raises TurnError; `save` is awaited after each
        iteration."""
        tools, recalled, instructions = await asyncio.gather(
            self._tools(), self._recall(session), asyncio.to_thread(self._instructions, context)
        )
        targets = self._targets(session.model)
        run = Run(session, targets, tools, context, approvals, emit, self._settings.max_iterations)
        run.system = "\n\n".join(filter(None, (instructions, recalled)))
        return await self._iterate(run, save)

    def remember(self, session: Session, answer: str) -> None:
        """Hand a turn that is done and saved to the memory, which does its work in the background."""
        if self._equipment.memory is not None:
            asked = [message.content for message in session.messages if message.role == "user"]
            self._equipment.memory.archive(session.id, asked, answer)

    async def _iterate(self, run: Run, save: Save) -> Finished:
        while True:
            run.iterations += 1
            if self._compactor.is_due(run):
                await self._shorten(run)
            answer = await self._ask(run)
            if not answer.tool_calls:
                break
            await self._calls.run(run, answer.tool_calls, cut=answer.finish_reason == "length")
            await save()
        return Finished(
            content=answer.text,
            iterations=run.counted_iterations,
            tool_calls=run.tool_calls,
            finish_reason="max_iterations" if run.wraps_up else answer.finish_reason,
            usage=run.usage,
            model=run.target.model,
        )

    async def _ask(self, run: Run) -> Answer:
        """An iteration's answer; where the provider finds the conversation too long, again with less of it."""
        for attempt, make_room in enumerate((self._shorten, self._clip), 1):
            try:
                return await self._completions.ask(run)
            except ProviderError as error:
                if not error.context_length or not await make_room(run):
                    raise
                reason = error.message
            run.emit(wire.Retry(attempt=attempt, delay_ms=0, reason=reason, model=run.target.model))
        return await self._completions.ask(run)

    async def _shorten(self, run: Run) -> bool:
        """Whether the conversation is shorter now, one way or the other."""
        if not self._compactor.can_shorten(run):
            return run.clip_results()
        notes = await self._compactor.shorten(run)
        if self._equipment.memory is not None:
            self._equipment.memory.note(run.session.id, notes)
        return True

    async def _clip(self, run: Run) -> bool:
        return run.clip_results()

    # --- what a run begins with -------------------------------------------------------------------

    def _instructions(self, context: ToolContext) -> str:
        """What the model is told before the conversation. Blocks."""
        settings = self._settings
        if settings.tiny:
            return settings.system_prompt or prompt.TINY
        return prompt.build(context.workspace, settings.system_prompt or prompt.CODING, self._equipment.skills)

    def _targets(self, model: str) -> list[Target]:
        equipment = self._equipment
        models = dict.fromkeys([model, *self._settings.fallback_models])
        return [*(Target(equipment.provider, name) for name in models), *equipment.cloud]

    async def _tools(self) -> Registry:
        equipment = self._equipment
        if self._settings.tiny:
            return equipment.tools.chosen(lambda tool: False)
        if equipment.servers is None:
            return equipment.tools
        return equipment.tools.extended(await equipment.servers.tools())

    async def _recall(self, session: Session) -> str:
        memory = self._equipment.memory
        return "" if memory is None else await memory.recall(session.id, session.messages[-1].content)

    # --- child agents -----------------------------------------------------------------------------

    async def _spawn(self, parent: Run, assignment: Assignment, watch: Emit) -> Report:
        """A run of its own within a tool call of `parent`: same provider and permissions, own conversation."""
        run = children.begin(parent, assignment, watch)
        return await children.see_through(parent, run, assignment, self._iterate(run, children.keep_nothing))
