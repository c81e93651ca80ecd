"""The composition root: reads the settings, builds the parts, binds, serves, and takes everything down in stages."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets as random_secrets
import signal
import socket
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from pawand import __version__, config, hardening, paths
from pawand.agent.loop import Agent, AgentSettings
from pawand.agent.permissions import Permissions
from pawand.client import url_of
from pawand.config import Config, Settings
from pawand.errors import ConfigError, StartError, StorageError
from pawand.peers.aegis import AegisFile
from pawand.peers.directory import Directory
from pawand.providers import catalog
from pawand.providers.upstream import Upstream
from pawand.redact import LogFilter, Redactor
from pawand.sessions import lock
from pawand.sessions.store import SessionStore
from pawand.tools import edit, files, search, shell
from pawand.tools.base import Registry, ToolContext
from pawand.tools.sandbox import Sandbox
from pawand.tools.workspace import Workspace, check_place
from pawand.turns.manager import TurnManager
from pawand.turns.turn import Bench
from pawand.web.access import Gate, is_loopback
from pawand.web.app import make_app
from pawand.web.base import MAX_DRAINED_BYTES, Identity, Services

log = logging.getLogger(__name__)

MIN_TOKEN_CHARS = 16
BACKLOG = 1024
CLOSE_SECS = 5.0
TOOLS = [
    shell.BASH,
    files.READ_FILE,
    files.WRITE_FILE,
    edit.EDIT_FILE,
    files.LIST_DIRECTORY,
    search.GLOB_SEARCH,
    search.GREP_SEARCH,
]
"""In the order in which the model is told of them."""


class Plan(Struct, frozen=True, kw_only=True):
    """Everything that is decided before anything is opened."""

    settings: Settings
    workspace: Path
    state: Path
    choice: catalog.Choice
    secrets: dict[str, str]

    @property
    def config(self) -> Config:
        return self.settings.config

    @property
    def sessions(self) -> Path:
        return config.sessions_folder(self.config, self.state)

    @property
    def token_file(self) -> Path:
        file = self.config.server.token_file
        return Path(file).expanduser() if file else self.state / "token"

    @property
    def agent_id(self) -> str:
        return self.config.server.agent_id or f"pawan@{socket.gethostname()}"


def plan(flags: Mapping[str, Any], workspace: Path, env: Mapping[str, str] = os.environ) -> Plan:
    """Read and check all settings. Raises ConfigError."""
    state = paths.state_dir(env)
    workspace = workspace.expanduser().absolute()
    settings = config.load(workspace, flags, env)
    secrets = config.load_secrets(catalog.KEY_VARIABLES, env, settings.warnings)
    trusted = settings.sources.get("model") != settings.stranger
    choice = catalog.choose(settings.config, secrets, env, model_trusted=trusted)
    made = Plan(settings=settings, workspace=workspace, state=state, choice=choice, secrets=secrets)
    private = [state, made.sessions, made.token_file, paths.SYSTEM_CONFIG.parent, paths.user_config_dir(env)]
    check_place(workspace, [*private, *(file.parent for file in _aegis_files(settings.config))])
    return made


def serve(plan: Plan) -> None:
    """Run until SIGTERM or SIGINT. Raises ConfigError or StartError before the port answers."""
    hardening.forget_environment(catalog.KEY_VARIABLES)
    if os.environ.get("PAWAND_DEBUG") != "1":
        hardening.forbid_dumps()
    asyncio.run(_run(plan))


class Parts(Struct, frozen=True, kw_only=True):
    """A daemon's working parts, without its sockets."""

    services: Services
    provider: Upstream
    workspace: Workspace

    async def aclose(self) -> None:
        await self.services.turns.shutdown()
        await self.provider.aclose()
        self.workspace.close()


def assemble(plan: Plan, store: SessionStore, *, beyond_loopback: bool = False) -> Parts:
    """Build everything that answers requests. Blocks (it tries the sandbox). Raises ConfigError."""
    settings = plan.config
    token = _token(plan, needed=beyond_loopback or settings.server.local_auth == "token")
    redactor = Redactor([*plan.secrets.values(), *([token] if token else [])])
    for handler in logging.getLogger().handlers:
        handler.addFilter(LogFilter(redactor))
    workspace = Workspace(plan.workspace)
    private = [plan.state, plan.sessions, paths.user_config_dir(), paths.SYSTEM_CONFIG.parent]
    sandbox = Sandbox.probe(settings.sandbox, workspace, plan.state / "tmp", private)
    provider = Upstream(plan.choice, settings, redactor)
    services = Services(
        config=settings,
        gate=Gate(
            token=token,
            local_auth=settings.server.local_auth == "token",
            allowed_hosts=settings.server.allowed_hosts,
            own_names=_own_names() if beyond_loopback else [],
            cors_origins=settings.server.cors_origins,
        ),
        identity=Identity(agent_id=plan.agent_id, started=time.monotonic(), choice=plan.choice, sandbox=sandbox),
        turns=_turns(plan, store, workspace, sandbox, provider, redactor),
        directory=Directory(plan.agent_id, AegisFile(_aegis_files(settings))),
    )
    return Parts(services=services, provider=provider, workspace=workspace)


def _turns(
    plan: Plan,
    store: SessionStore,
    workspace: Workspace,
    sandbox: Sandbox,
    provider: Upstream,
    redactor: Redactor,
) -> TurnManager:
    settings = plan.config
    agent = Agent(
        AgentSettings(
            max_iterations=settings.max_tool_iterations,
            max_retries=settings.max_retries,
            fallback_models=settings.fallback_models,
            system_prompt=settings.system_prompt,
            tiny=plan.choice.embedded,
        ),
        provider,
        Registry(TOOLS, redactor),
        Permissions(settings.permissions, plan.settings.workspace_permissions),
        redactor,
    )

    def new_context(session_id: str) -> ToolContext:
        return ToolContext(
            session_id=session_id,
            workspace=workspace,
            sandbox=sandbox,
            bash_timeout_secs=settings.bash_timeout_secs,
            max_result_chars=settings.max_result_chars,
            redactor=redactor,
        )

    bench = Bench(
        agent=agent,
        store=store,
        redactor=redactor,
        default_model=plan.choice.model,
        timeout_secs=settings.turn_timeout_secs,
    )
    return TurnManager(bench, provider, settings.limits, new_context, sandbox.forget)


async def _run(plan: Plan) -> None:
    """From an owned store and bound sockets to a clean end."""
    store = SessionStore(plan.sessions)
    # The state folder has an owner of its own: `[sessions] dir` may be elsewhere.
    state_lock = await asyncio.to_thread(lock.acquire, plan.state / "run" / "lock", f"the state folder {plan.state}")
    try:
        await asyncio.to_thread(store.open)
        sockets = _bind(plan.config.server)
        try:
            await _serve(plan, store, sockets)
        finally:
            for sock in sockets:
                sock.close()
    finally:
        store.close()
        os.close(state_lock)


async def _serve(plan: Plan, store: SessionStore, sockets: list[socket.socket]) -> None:
    beyond_loopback = any(not is_loopback(str(sock.getsockname()[0])) for sock in sockets)
    parts = await asyncio.to_thread(assemble, plan, store, beyond_loopback=beyond_loopback)
    server = HTTPServer(make_app(parts.services), max_body_size=4 * MAX_DRAINED_BYTES)
    server.add_sockets(sockets)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, stop)
    _announce(plan, url_of(*sockets[0].getsockname()[:2]), parts.services.identity.sandbox)
    warming = asyncio.create_task(_warm(store, parts.provider))
    try:
        await stop.wait()
    finally:
        _notify("STOPPING=1")
        log.info("stopping")
        server.stop()
        await parts.services.turns.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECS):
                await server.close_all_connections()
        warming.cancel()
        await asyncio.wait([warming])
        await parts.aclose()
        with suppress(OSError):
            paths.state_file(plan.state).unlink()


def _announce(plan: Plan, url: str, sandbox: Sandbox) -> None:
    """Say where we are: to the command, the log and systemd."""
    _write_state_file(plan, url)
    for warning in plan.settings.warnings:
        log.warning("%s", warning)
    if plan.choice.automatic:
        log.warning(
            "no provider is configured: the embedded model %s answers. It shows that everything works; "
            "it cannot code. Set NVIDIA_API_KEY, or `provider` and `model` in pawan.toml.",
            plan.choice.model,
        )
    if plan.choice.fault:
        log.warning("%s", plan.choice.fault)
    if sandbox.status.word != "bwrap":
        log.warning("commands run without a sandbox: %s", sandbox.status.reason)
    if os.geteuid() == 0:
        log.warning("pawand runs as root: what the agent may write, it may write as root")
    log.info(
        "pawand %s on %s, workspace %s, provider %s, model %s",
        __version__,
        url,
        plan.workspace,
        plan.choice.name,
        plan.choice.model,
    )
    _notify(f"READY=1\nSTATUS=Serving {plan.workspace} on {url}")


async def _warm(store: SessionStore, provider: Upstream) -> None:
    """What the first requests would wait for, done while nobody waits."""
    try:
        await asyncio.to_thread(store.list)
    except StorageError as error:
        log.warning("%s", error)
    await provider.warm()


def _on_signal(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(130)  # asked twice: no more manners
    stop.set()


# --- binding --------------------------------------------------------------------------------------


def _bind(server: config.Server) -> list[socket.socket]:
    """The listening sockets, all on one port. Raises StartError naming the port, ConfigError for a bad address."""
    hosts = [server.host] if isinstance(server.host, str) else server.host
    default = config.Server().host == server.host
    sockets: list[socket.socket] = []
    port = server.port
    for host in hosts:
        try:
            bound = bind_sockets(port, host, backlog=BACKLOG)
        except OSError as error:
            if default and sockets and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue  # a machine without IPv6
            for sock in sockets:
                sock.close()
            raise _bind_error(error, host, port) from error
        sockets += bound
        port = bound[0].getsockname()[1]
    return sockets


def _bind_error(error: OSError, host: str, port: int) -> ConfigError | StartError:
    if error.errno == errno.EADDRINUSE:
        return StartError(
            f"port {port} on {host} is in use by another program: stop it, or choose another with --port "
            "(`pawand status` tells whether it is pawand)"
        )
    if error.errno == errno.EACCES:
        return StartError(f"port {port} needs more rights: choose one above 1023 with --port")
    return ConfigError(f"cannot listen on {host}: {error.strerror or error}")


def _own_names() -> list[str]:
    name = socket.gethostname()
    return [name, socket.getfqdn(), f"{name.partition('.')[0]}.local"]


# --- files ----------------------------------------------------------------------------------------


def _token(plan: Plan, *, needed: bool) -> str | None:
    """The token of the file, made where one is needed. Raises ConfigError for one that is too short."""
    path = plan.token_file
    if needed and not path.exists():
        _make_token(path)
    if not path.exists():
        if "*" in plan.config.server.cors_origins:
            raise ConfigError(
                f'cors_origins = ["*"] lets every web page in, so it needs a token: put one into {path} (mode 0600)'
            )
        return None
    try:
        mode = path.stat().st_mode
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {path} cannot be read: {error}") from error
    if len(token) < MIN_TOKEN_CHARS:
        raise ConfigError(f"the token in {path} has {len(token)} characters; at least {MIN_TOKEN_CHARS} are needed")
    if stat.S_IMODE(mode) & 0o077:
        log.warning("the token file %s is readable by others; run: chmod 600 %s", path, path)
    return token


def _make_token(path: Path) -> None:
    try:
        paths.private_dir(path.parent)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"the token file {path} cannot be made: {error.strerror}") from error
    with os.fdopen(descriptor, "w") as file:
        file.write(random_secrets.token_urlsafe(32) + "\n")
    log.info("a token for callers from other machines was made: %s", path)


def _aegis_files(settings: Config) -> list[Path]:
    configured = settings.discovery.aegis_file
    return [*([Path(configured).expanduser()] if configured else []), paths.aegis_file()]


def _write_state_file(plan: Plan, url: str) -> None:
    path = paths.state_file(plan.state)
    paths.private_dir(path.parent)
    state = {
        "pid": os.getpid(),
        "url": url,
        "version": __version__,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "token_file": str(plan.token_file),
    }
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(state))
    temporary.rename(path)


def _notify(message: str) -> None:
    """Tell systemd (sd_notify(3)); nothing where it did not ask."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock, suppress(OSError):
            sock.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)
