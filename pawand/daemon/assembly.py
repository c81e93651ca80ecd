"""From a plan to everything that answers requests, and from a new plan to the same parts with new settings."""

from __future__ import annotations

import asyncio
import logging
import time

from msgspec import Struct

from pawand import config, paths
from pawand.agent.loop import Agent, AgentSettings, Equipment
from pawand.agent.permissions import Permissions
from pawand.aio import Workers
from pawand.config import Config
from pawand.daemon import system
from pawand.daemon.outside import Outside, cloud_targets, connect
from pawand.daemon.planning import Plan
from pawand.errors import ConfigError
from pawand.event_loop import Pace
from pawand.metrics import Metrics
from pawand.peers.aegis import AegisFile
from pawand.peers.asking import Asking
from pawand.peers.directory import Directory
from pawand.redact import LogFilter, Redactor
from pawand.sessions.store import SessionStore
from pawand.tools import agents, ask_agent, ast_grep, batch, edit, edit_lines, files, git, insert, search, shell
from pawand.tools.base import Registry, ToolContext
from pawand.tools.sandbox import Sandbox
from pawand.tools.skills import Skills
from pawand.tools.skills import tool as skill_tool
from pawand.tools.workspace import Stamp, Workspace
from pawand.turns.manager import TurnManager
from pawand.turns.turn import Bench
from pawand.web.access import Gate
from pawand.web.services import Identity, Services
from pawand.web.store_look import StoreLook

log = logging.getLogger(__name__)

TOOLS = [
    shell.BASH,
    files.READ_FILE,
    files.WRITE_FILE,
    edit.EDIT_FILE,
    edit_lines.EDIT_FILE_LINES,
    insert.INSERT_AFTER,
    insert.APPEND_FILE,
    ast_grep.AST_GREP,
    files.LIST_DIRECTORY,
    search.GLOB_SEARCH,
    search.GREP_SEARCH,
    git.GIT_STATUS,
    git.GIT_DIFF,
    git.GIT_ADD,
    git.GIT_COMMIT,
    git.GIT_LOG,
    git.GIT_BLAME,
    git.GIT_BRANCH,
    git.GIT_CHECKOUT,
    git.GIT_STASH,
    batch.BATCH,
    agents.SPAWN_AGENT,
    agents.SPAWN_AGENTS,
    agents.TASK,
]
"""In the order in which the model is told of them."""
SAVES_AT_ONCE = 4
FIXED = (
    "discovery.groups",
    "discovery.mdns",
    "limits.connections",
    "limits.turns",
    "sandbox",
    "server.agent_id",
    "server.host",
    "server.port",
    "sessions",
    "skills_repo",
)
"""Settings, and tables of settings, that count from the start to the end of the process."""


class Ground(Struct, frozen=True, kw_only=True):
    """What stays as it is from the start of the process to its end."""

    redactor: Redactor
    workspace: Workspace
    sandbox: Sandbox
    store: SessionStore
    files: Workers
    skills: Skills
    directory: Directory
    metrics: Metrics
    pace: Pace


class Parts(Struct, kw_only=True):
    """A daemon's working parts, without its sockets."""

    plan: Plan
    started: Config
    """The settings at the start: what they say of FIXED counts to the end."""
    own_names: list[str]
    """Of this machine, for callers from others; empty when bound to loopback only."""
    ground: Ground
    outside: Outside
    services: Services

    async def aclose(self) -> None:
        await self.services.turns.shutdown()
        await self.ground.directory.aclose()
        await self.outside.retire()
        self.ground.files.close()
        self.ground.workspace.close()

    async def adopt(self, plan: Plan, token: str | None) -> None:
        """Work by another plan from now on, as far as that goes in a running process; turns that run keep theirs."""
        ground, services, old = self.ground, self.services, self.outside
        ground.redactor.learn(_secrets(plan, token))
        self.outside = connect(plan, ground.sandbox, ground.redactor, ground.pace, self.plan, old)
        services.config = plan.config
        services.gate = _gate(plan, token, self.own_names)
        services.identity = Identity(
            agent_id=services.identity.agent_id,
            started=services.identity.started,
            choice=plan.choice,
            cloud=plan.cloud,
            sandbox=ground.sandbox,
        )
        services.provider = self.outside.provider
        ground.directory.adopt(AegisFile(plan.aegis_files), plan.config.peers)
        services.turns.bench = _bench(plan, ground, self.outside)
        self.plan = plan
        await old.retire(self.outside)

    async def read_token(self, plan: Plan) -> str | None:
        """Raises ConfigError."""
        return await asyncio.to_thread(system.read_token, plan, beyond_loopback=bool(self.own_names))

    async def take_token(self) -> None:
        """Read it again by the plan in force: an old one must not go on counting because new settings are wrong."""
        try:
            token = await self.read_token(self.plan)
        except ConfigError as error:
            log.error("the token stays as it was: %s", error)  # noqa: TRY400 - a user's slip needs no traceback
            return
        self.ground.redactor.learn(_secrets(self.plan, token))
        self.services.gate = _gate(self.plan, token, self.own_names)
        if token is not None:
            log.info("the token was read again, and counts")

    def changes(self, plan: Plan) -> tuple[list[str], list[str]]:
        """The settings that `plan` would change at once, and those that would wait for the next start."""
        at_once = [key for key in config.differences(self.plan.config, plan.config) if not is_fixed(key)]
        waiting = [key for key in config.differences(self.started, plan.config) if is_fixed(key)]
        return at_once + ["the API keys"] * (plan.secrets != self.plan.secrets), waiting


def assemble(plan: Plan, store: SessionStore, *, beyond_loopback: bool = False) -> Parts:
    """Build everything that answers requests. Blocks (it tries the sandbox). Raises ConfigError."""
    own_names = system.own_names() if beyond_loopback else []
    token = system.read_token(plan, beyond_loopback=beyond_loopback)
    redactor = Redactor(_secrets(plan, token))
    for handler in logging.getLogger().handlers:
        handler.addFilter(LogFilter(redactor))
    workspace = Workspace(plan.workspace)
    private = [plan.state, plan.sessions, paths.user_config_dir(), paths.SYSTEM_CONFIG.parent]
    sandbox = Sandbox.probe(plan.config.sandbox, workspace, plan.state / "tmp", private)
    ground = Ground(
        redactor=redactor,
        workspace=workspace,
        sandbox=sandbox,
        store=store,
        files=Workers("sessions", SAVES_AT_ONCE),
        skills=Skills(plan.skills),
        directory=Directory(plan.agent_id, AegisFile(plan.aegis_files), plan.config.peers),
        metrics=Metrics(tool.name for tool in TOOLS),
        pace=Pace(),
    )
    outside = connect(plan, sandbox, redactor, ground.pace)
    turns = TurnManager(_bench(plan, ground, outside), sandbox.forget)
    metrics = ground.metrics
    metrics.show("active_turns", "Sessions with a turn that has not ended.", lambda: turns.active_turns)
    metrics.show("queued_turns", "Turns that wait behind another of their session.", lambda: turns.queued_turns)
    metrics.show("followers", "Open event streams.", lambda: turns.followers)
    services = Services(
        config=plan.config,
        gate=_gate(plan, token, own_names),
        identity=Identity(
            agent_id=plan.agent_id,
            started=time.monotonic(),
            choice=plan.choice,
            cloud=plan.cloud,
            sandbox=sandbox,
        ),
        turns=turns,
        directory=ground.directory,
        provider=outside.provider,
        metrics=metrics,
        store_look=StoreLook(store, lambda: metrics.store_failures),
        pace=ground.pace,
    )
    return Parts(plan=plan, started=plan.config, own_names=own_names, ground=ground, outside=outside, services=services)


def is_fixed(key: str) -> bool:
    """Whether a setting counts from the start to the end of the process."""
    return any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED)


def _secrets(plan: Plan, token: str | None) -> list[str]:
    peers = [peer.token for peer in plan.config.peers.values()]
    return [*plan.secrets.values(), *filter(None, (token, plan.eruka.api_key, *peers))]


def _gate(plan: Plan, token: str | None, own_names: list[str]) -> Gate:
    server = plan.config.server
    return Gate(
        token=token,
        local_auth=server.local_auth == "token",
        allowed_hosts=server.allowed_hosts,
        own_names=own_names,
        cors_origins=server.cors_origins,
    )


def _agent_settings(plan: Plan) -> AgentSettings:
    settings = plan.config
    return AgentSettings(
        max_iterations=settings.max_tool_iterations,
        max_retries=settings.max_retries,
        max_context_tokens=settings.max_context_tokens,
        thinking_budget=settings.thinking_budget,
        permission_timeout_secs=settings.permission_timeout_secs,
        fallback_models=settings.fallback_models,
        system_prompt=settings.system_prompt,
        tiny=plan.choice.embedded,
    )


def _bench(plan: Plan, ground: Ground, outside: Outside) -> Bench:
    settings = plan.config
    tools = [*TOOLS, *([skill_tool(ground.skills)] if ground.skills.readable else [])]
    if plan.has_company:
        tools.append(ask_agent.tool(Asking(settings.peers, ground.directory), settings.limits.hops, settings.peers))
    equipment = Equipment(
        provider=outside.provider,
        cloud=cloud_targets(settings, outside.cloud),
        tools=Registry(tools, ground.redactor),
        servers=outside.servers,
        skills=ground.skills,
        memory=outside.memory,
    )
    permissions = Permissions(settings.permissions, plan.settings.workspace_permissions)

    def new_context(session_id: str, seen: dict[str, Stamp], hops: int) -> ToolContext:
        return ToolContext(
            session_id=session_id,
            workspace=ground.workspace,
            sandbox=ground.sandbox,
            bash_timeout_secs=settings.bash_timeout_secs,
            max_result_chars=settings.max_result_chars,
            redactor=ground.redactor,
            hops=hops,
            seen=seen,
        )

    return Bench(
        agent=Agent(_agent_settings(plan), equipment, permissions, ground.redactor),
        provider=outside.provider,
        store=ground.store,
        files=ground.files,
        metrics=ground.metrics,
        redactor=ground.redactor,
        pace=ground.pace,
        limits=settings.limits,
        new_context=new_context,
        default_model=plan.choice.model,
        timeout_secs=settings.turn_timeout_secs,
    )
