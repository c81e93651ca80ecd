"""What may be wrong with a set-up, and what to do about it: the checks of `pawand doctor`. They change nothing."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from pawand import __version__, config, paths
from pawand.config import Config
from pawand.daemon import planning, reach, system
from pawand.daemon.planning import Plan
from pawand.daemon.reach import State
from pawand.errors import ConfigError, PawandError
from pawand.peers.aegis import AegisFile
from pawand.tools.sandbox import Sandbox
from pawand.tools.workspace import Workspace
from pawand.web.access import is_loopback

LOW_SPACE_BYTES = 100 * 1024 * 1024


class Row(Struct, frozen=True):
    """One finding; `advice` is what to do."""

    check: str
    state: State
    text: str
    advice: str = ""


class Running(Struct, frozen=True):
    """The daemon that runs here; `health` is None where it does not answer."""

    pid: int
    url: str
    health: Mapping[str, Any] | None
    stopping: bool = False

    @property
    def reasons(self) -> list[str]:
        return [str(reason) for reason in (self.health or {}).get("reasons", [])]


def examine(flags: Mapping[str, Any], workspace: Path, running: Running | None) -> Iterator[Row]:
    """All findings, in the order in which they are worth reading. Blocks."""
    yield from _daemon(running)
    if os.geteuid() == 0:
        yield Row("user", "note", "this is root: what the agent may write, it may write as root",
                  "fine in a container; a service should have a user of its own")  # fmt: skip
    try:
        plan = planning.draft(flags, workspace, os.environ, {})
    except ConfigError as error:
        yield Row("settings", "fault", error.message, "mend it; nothing that rests on the settings was looked at")
        return
    for warning in plan.settings.warnings:
        yield Row("settings", "note", warning)
    if not plan.settings.warnings:
        yield Row("settings", "ok", "all files are valid")
    yield from _exposed(plan)
    fit = True
    try:
        planning.check_workspace(plan)
        Workspace(plan.workspace).close()
        yield Row("workspace", "ok", str(plan.workspace))
    except ConfigError as error:
        fit = False
        yield Row("workspace", "fault", error.message)
    yield from _providers(plan, running)
    yield from _sandbox(plan, fit=fit)
    yield from _programs()
    yield from _folders(plan)
    yield from _port(plan.config, running)
    for check in (_token, _mdns, _peers):
        yield from _with_warnings(check, plan)


def _exposed(plan: Plan) -> Iterator[Row]:
    files = {source for key, source in plan.settings.sources.items() if config.is_secret(key)}
    for file in sorted(files):
        if config.is_open_to_others(Path(file)):
            yield Row("settings", "note", f"others can read {file}, which holds secrets", f"chmod 600 {file}")


def _daemon(running: Running | None) -> Iterator[Row]:
    if running is None:
        yield Row("daemon", "note", "none runs", "`pawand start` starts one")
    elif running.stopping:
        yield Row("daemon", "note", f"pid {running.pid} is stopping", "`pawand stop --now` ends it at once")
    elif running.health is None:
        yield Row("daemon", "fault", f"pid {running.pid} does not answer at {running.url}",
                  "`pawand logs` may say why; `pawand stop --now` ends it")  # fmt: skip
    else:
        yield Row("daemon", "ok", f"pid {running.pid} answers at {running.url}")
        if running.health["version"] != __version__:
            yield Row(
                "daemon",
                "note",
                f"it is of version {running.health['version']}, this is {__version__}",
                "pawand restart",
            )
        for reason in running.reasons:
            yield Row("daemon", "fault" if running.health["status"] != "ok" else "note", reason)


# --- the model ------------------------------------------------------------------------------------


def _providers(plan: Plan, running: Running | None) -> Iterator[Row]:
    for choice in filter(None, (plan.choice, plan.cloud)):
        name = "provider" if choice is plan.choice else "cloud"
        if choice.automatic:
            yield Row(name, "note", f"nothing is configured: the embedded model {choice.model} answers",
                      "set NVIDIA_API_KEY, or `provider` and `model` in pawan.toml")  # fmt: skip
        elif choice.fault is None and choice.name == "local":
            yield Row(name, "ok", f"{choice.label}, model {choice.model}")
        elif choice.fault is None:
            yield Row(name, *reach.ask(choice))
        elif running is not None and running.health is not None and running.health["status"] == "ok":
            yield Row(
                name,
                "note",
                f"{choice.label}: the daemon has what it needs; it was not tried, because this shell has no key",
            )
        else:
            yield Row(name, "fault", choice.fault)


# --- this machine ---------------------------------------------------------------------------------


def _sandbox(plan: Plan, *, fit: bool) -> Iterator[Row]:
    settings = plan.config.sandbox
    with tempfile.TemporaryDirectory(prefix="pawand-doctor-") as scratch:  # the daemon's own may be in use
        workspace = Workspace(plan.workspace if fit else Path(scratch))
        private = [plan.state, plan.sessions, paths.user_config_dir(), paths.SYSTEM_CONFIG.parent]
        sandbox = Sandbox.probe(settings, workspace, Path(scratch, "tmp"), private)
        workspace.close()
    if sandbox.status.word == "bwrap":
        yield Row("sandbox", "ok", "bubblewrap works")
    elif not sandbox.usable:
        yield Row("sandbox", "fault", f"[sandbox] mode is require, but {sandbox.status.reason}",
                  "commands are refused until it works, or mode is auto")  # fmt: skip
    else:
        yield Row("sandbox", "note", f"commands run without a sandbox: {sandbox.status.reason}")


def _programs() -> Iterator[Row]:
    for name, without in {"bash": "the agent can run no commands", "git": "the agent's git tools fail",
                          "rg": "the agent's searches are slower"}.items():  # fmt: skip
        if shutil.which(name) is None:
            yield Row("programs", "fault" if name == "bash" else "note", f"{name} is not installed: {without}")
    if all(map(shutil.which, ("bash", "git", "rg"))):
        yield Row("programs", "ok", "bash, git and rg are installed")


def _folders(plan: Plan) -> Iterator[Row]:
    folders = dict.fromkeys([plan.state, plan.sessions])
    rows = [row for folder in folders for row in _folder(folder)]
    yield from rows
    if not rows:
        yield Row("store", "ok", f"{plan.sessions} is writable")


def _folder(folder: Path) -> Iterator[Row]:
    advice = "mend that, or choose another: PAWAND_STATE_DIR, [sessions] dir"
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))  # the rest is made at the start
    if not there.is_dir():
        yield Row("store", "fault", f"{there} is no folder, so there can be no {folder}", advice)
        return
    status, space = there.stat(), os.statvfs(there)
    free = (space.f_bfree if os.geteuid() == 0 else space.f_bavail) * space.f_frsize
    if not os.access(there, os.W_OK | os.X_OK):
        why = (
            "read-only"
            if space.f_flag & os.ST_RDONLY
            else f"of user {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}"
        )
        yield Row("store", "fault", f"{there} is not writable: it is {why}", advice)
    elif there == folder and status.st_uid != os.geteuid():
        yield Row("store", "note", f"{folder} belongs to user {status.st_uid}", f"chown it to {os.geteuid()}")
    if there == folder and stat.S_IMODE(status.st_mode) & 0o077 and folder.name == "sessions":
        yield Row("store", "note", f"others can look into {folder}", f"chmod 700 {folder}; the next start does it")
    if free == 0:
        yield Row("store", "fault", f"the disk of {there} is full", "make room; nothing can be saved")
    elif free < LOW_SPACE_BYTES:
        yield Row("store", "note", f"the disk of {there} has {free >> 20} MiB left", "make room")


def _port(settings: Config, running: Running | None) -> Iterator[Row]:
    if running is not None:
        yield Row("port", "ok", f"the daemon has its own: {running.url}")
        return
    try:
        for sock in system.bind(settings.server):
            sock.close()
    except PawandError as error:
        yield Row("port", "fault", error.message)
    else:
        yield Row("port", "ok", f"{settings.server.port} is free")


# --- others ---------------------------------------------------------------------------------------


def _hosts(settings: Config) -> list[str]:
    return [settings.server.host] if isinstance(settings.server.host, str) else settings.server.host


def _beyond_loopback(settings: Config) -> bool:
    return any(host != "localhost" and not is_loopback(host) for host in _hosts(settings))


def _token(plan: Plan) -> Iterator[Row]:
    open_to_others = _beyond_loopback(plan.config)
    if not plan.token_file.exists() and (open_to_others or plan.config.server.local_auth == "token"):
        yield Row("token", "note", f"there is none yet: the start makes {plan.token_file}")
        return
    try:
        token = system.read_token(plan, beyond_loopback=open_to_others)
    except ConfigError as error:
        yield Row("token", "fault", error.message)
        return
    if token is None:
        yield Row("token", "ok", "none is needed: only this machine can reach the daemon")
    else:
        yield Row("token", "ok", f"{plan.token_file} is good")


def _mdns(plan: Plan) -> Iterator[Row]:
    if not plan.config.discovery.mdns:
        yield Row("mdns", "ok", "off")
    elif importlib.util.find_spec("zeroconf") is None:
        yield Row("mdns", "fault", "on, but zeroconf is not installed", "pip install zeroconf, or set mdns = false")
    elif not _beyond_loopback(plan.config):
        yield Row("mdns", "note", f"on, but the daemon listens on {', '.join(_hosts(plan.config))} only",
                  "others see it with [server] host set to an address of the network")  # fmt: skip
    else:
        yield Row("mdns", "ok", "on")


def _peers(plan: Plan) -> Iterator[Row]:
    count = len(AegisFile(plan.aegis_files).peers())
    file = next((file for file in plan.aegis_files if file.exists()), None)
    yield Row("peers", "ok", f"{count} in {file}" if file else "no Aegis file")


def _with_warnings(check: Callable[[Plan], Iterator[Row]], plan: Plan) -> Iterator[Row]:
    """The check's rows; what it warns of in the log becomes notes in their place."""
    with _warnings() as heard:
        rows = list(check(plan))
    if heard and rows:
        yield from (Row(rows[0].check, "note", warning) for warning in heard)
        rows = [row for row in rows if row.state != "ok"]
    yield from rows


@contextmanager
def _warnings() -> Iterator[list[str]]:
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("pawand")
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)
