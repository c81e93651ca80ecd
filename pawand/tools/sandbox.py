"""The only way a program is started that the model can steer: in bubblewrap where it works (docs/security.md, 3).

Inside: the workspace writable, the system read-only, the home and every other folder hidden, a private /tmp, own
user, pid, ipc and uts namespaces, no network unless configured, and an environment made from an allow-list.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from pawand import config, paths
from pawand.aio import uninterrupted
from pawand.errors import ToolError
from pawand.tools import reaper, supervisor
from pawand.tools.profile import Profile
from pawand.tools.workspace import Workspace

_ENVIRONMENT = ("LANG", "LANGUAGE", "TZ", "USER", "LOGNAME", "NO_COLOR", "CARGO_HOME", "RUSTUP_HOME", "PYENV_ROOT")


class Status(Struct, frozen=True):
    """`word` is what `/health` shows: `bwrap`, `off` or `unavailable`; `reason` says why it is not bwrap."""

    word: str
    reason: str = ""


class Sandbox:
    """Made once at start by `probe`; it never changes afterwards."""

    def __init__(
        self,
        settings: config.Sandbox,
        workspace: Workspace,
        scratch: Path,
        profile: Profile | None,
        status: Status,
    ) -> None:
        """With a profile programs run in bubblewrap."""
        self.status = status
        self._settings = settings
        self._workspace = workspace
        self._scratch = scratch
        self._profile = profile
        self._environment = _environment()
        self._identity = _git_identity(workspace.root) if status.word != "off" else {}

    @classmethod
    def probe(cls, settings: config.Sandbox, workspace: Workspace, scratch: Path, hidden: Iterable[Path]) -> Sandbox:
        """Try the real profile once. `scratch` is where the sessions' private /tmp folders live. Blocks."""
        shutil.rmtree(scratch, ignore_errors=True)
        if settings.mode == "off":
            return cls(settings, workspace, scratch, None, Status("off", "[sandbox] mode is off"))
        reason = "bubblewrap is not installed (apt install bubblewrap)"
        if shutil.which("bwrap") is not None:
            profile = Profile(settings, workspace, scratch, hidden)
            try:
                _try(profile, network=settings.network)
            except subprocess.CalledProcessError as error:
                reason = f"bubblewrap does not work here: {error.stderr.decode(errors='replace').strip()[:300]}"
            except (OSError, subprocess.TimeoutExpired) as error:
                reason = f"bubblewrap does not work here: {error}"
            else:
                return cls(settings, workspace, scratch, profile, Status("bwrap"))
        return cls(settings, workspace, scratch, None, Status("unavailable", reason))

    @property
    def usable(self) -> bool:
        """False when the configuration requires a sandbox and there is none: nothing may be started then."""
        return self._settings.mode != "require" or self.status.word == "bwrap"

    @contextlib.asynccontextmanager
    async def start(
        self,
        command: list[str],
        *,
        session_id: str,
        folder: str = ".",
        stdin: bool = False,
        network: bool | None = None,
        env: Mapping[str, str] | None = None,
        sandboxed: bool = True,
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run `command` in `folder` of the workspace; at the end of the block its whole tree is dead.

        `stdin` makes a pipe of it instead of nothing, `network` takes the place of `[sandbox] network`, `env` is added
        to the environment. `sandboxed=False` is for programs that the user's own settings name, with the word that
        they run outside: it counts in mode require too.
        """
        if sandboxed and not self.usable:
            raise ToolError(f"programs may not be started: [sandbox] mode is require, but {self.status.reason}")
        real = await asyncio.to_thread(self._folder, folder)
        launch: Callable[[list[int]], list[str]] = _supervised
        if in_bwrap := sandboxed and self._profile is not None:
            network = self._settings.network if network is None else network
            launch = functools.partial(self._profile.arguments, session_id, real, network=network)
        starting = asyncio.create_task(
            self._start(command, launch, self._workspace.root / real, env or {}, stdin=stdin)
        )
        try:
            yield await asyncio.shield(starting)
        finally:
            await uninterrupted(self._end(starting, in_bwrap=in_bwrap))

    async def _start(
        self,
        command: list[str],
        launch: Callable[[list[int]], list[str]],
        folder: Path,
        env: Mapping[str, str],
        *,
        stdin: bool,
    ) -> asyncio.subprocess.Process:
        held: list[int] = []  # descriptors that bwrap mounts from
        try:
            return await asyncio.create_subprocess_exec(
                *await asyncio.to_thread(launch, held),
                *command,
                stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd=folder,
                env={**self._environment, **self._identity, **env},
                start_new_session=True,
                pass_fds=held,
            )
        except OSError as error:  # E2BIG for a command over 128 KiB among them
            raise ToolError(f"the command cannot be started: {(error.strerror or '').lower()}") from error
        except ValueError as error:
            raise ToolError("the command is no valid text") from error
        finally:
            for descriptor in held:
                os.close(descriptor)

    async def _end(self, starting: asyncio.Task[asyncio.subprocess.Process], *, in_bwrap: bool) -> None:
        """Also for a call that was cancelled while its program started."""
        with contextlib.suppress(ToolError):
            await reaper.end(await starting, in_bwrap=in_bwrap)

    def _folder(self, path: str) -> str:
        real = self._workspace.resolve(path)
        if not (self._workspace.root / real).is_dir():
            raise ToolError(f"{path} is no folder")
        return real

    def forget(self, session_id: str) -> None:
        """Drop a session's /tmp. Blocks."""
        shutil.rmtree(self._scratch / session_id, ignore_errors=True)


def _try(profile: Profile, *, network: bool) -> None:
    """Raises what subprocess raises."""
    held: list[int] = []
    try:
        arguments = profile.arguments("probe", ".", held, network=network)
        # Also where there is no repository yet, for which the option will be needed.
        held.append(os.open(os.devnull, os.O_PATH))
        arguments = [*arguments[:-1], "--ro-bind-fd", str(held[-1]), "/tmp/probe", "--", "true"]  # noqa: S108
        subprocess.run(arguments, capture_output=True, env=_environment(), timeout=30, check=True, pass_fds=held)
    finally:
        for descriptor in held:
            os.close(descriptor)


def _supervised(held: list[int]) -> list[str]:
    return [sys.executable, "-I", "-S", supervisor.__file__]


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    kept.update({name: value for name, value in os.environ.items() if name.startswith("LC_")})
    kept["PATH"] = os.environ.get("PATH", os.defpath)
    kept["HOME"] = str(paths.home())
    kept["SHELL"] = "/bin/bash"
    kept["TERM"] = "dumb"
    kept["TMPDIR"] = "/tmp"  # noqa: S108
    kept["GIT_TERMINAL_PROMPT"] = "0"
    kept["PAGER"] = kept["GIT_PAGER"] = "cat"
    return kept


def _git_identity(root: Path) -> dict[str, str]:
    """The user's name and address for commits in the workspace; the sandbox does not show the user's own settings."""
    identity: dict[str, str] = {}
    for key in ("name", "email"):
        value = _git_setting(f"user.{key}", root) or _git_setting(f"user.{key}", Path("/"))  # its own may be broken
        if value:
            identity[f"GIT_AUTHOR_{key.upper()}"] = identity[f"GIT_COMMITTER_{key.upper()}"] = value
    return identity


def _git_setting(key: str, folder: Path) -> str:
    """What counts in a folder, the user's own settings included; empty where nothing can be learned."""
    try:
        answer = subprocess.run(["git", "config", key], capture_output=True, timeout=5, cwd=folder, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.decode(errors="replace").strip()
