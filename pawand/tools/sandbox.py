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
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from pawand import config, paths
from pawand.aio import uninterrupted
from pawand.errors import ToolError
from pawand.tools import reaper, supervisor
from pawand.tools.workspace import Workspace

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix/store")
# Where people keep compilers and interpreters in their home; nothing here holds credentials.
_TOOLCHAINS = (
    ".pyenv",
    ".local/bin",
    ".local/share/uv/python",
    ".local/share/uv/tools",
    ".local/share/mise",
    ".local/pipx",
    ".cargo/bin",
    ".cargo/registry",
    ".rustup",
    ".nvm/versions",
    ".volta",
    ".bun/bin",
    ".deno/bin",
    ".rbenv",
    ".asdf",
    ".sdkman/candidates",
    "go/bin",
    "go/pkg",
    ".ghcup",
    "miniconda3",
    "miniforge3",
)
_ENVIRONMENT = ("LANG", "LANGUAGE", "TZ", "USER", "LOGNAME", "NO_COLOR", "CARGO_HOME", "RUSTUP_HOME", "PYENV_ROOT")
_GIT_READ_ONLY = (".git/hooks", ".git/config", ".git")


class Status(Struct, frozen=True):
    """`word` is what `/health` shows: `bwrap`, `off` or `unavailable`; `reason` says why it is not bwrap."""

    word: str
    reason: str = ""


class Sandbox:
    """Made once at start by `probe`; it never changes afterwards."""

    def __init__(
        self, settings: config.Sandbox, workspace: Workspace, scratch: Path, hidden: Iterable[Path], status: Status
    ) -> None:
        self.status = status
        self._settings = settings
        self._workspace = workspace
        self._scratch = scratch
        self._hidden = list(hidden)
        self._environment = _environment()
        self._identity: dict[str, str] = {}
        self._profile = self._fixed_profile() if status.word == "bwrap" else []
        self._network = self._network_profile() if status.word == "bwrap" else []
        self._mounts = self._own_mounts() if status.word == "bwrap" else []

    @classmethod
    def probe(cls, settings: config.Sandbox, workspace: Workspace, scratch: Path, hidden: Iterable[Path]) -> Sandbox:
        """Try the real profile once. `scratch` is where the sessions' private /tmp folders live. Blocks."""
        shutil.rmtree(scratch, ignore_errors=True)
        hidden = list(hidden)
        if settings.mode == "off":
            return cls(settings, workspace, scratch, hidden, Status("off", "[sandbox] mode is off"))
        reason = ""
        if shutil.which("bwrap") is None:
            reason = "bubblewrap is not installed (apt install bubblewrap)"
        else:
            sandbox = cls(settings, workspace, scratch, hidden, Status("bwrap"))
            try:
                sandbox._try(["true"])
            except subprocess.CalledProcessError as error:
                reason = f"bubblewrap does not work here: {error.stderr.decode(errors='replace').strip()[:300]}"
            except (OSError, subprocess.TimeoutExpired) as error:
                reason = f"bubblewrap does not work here: {error}"
            else:
                sandbox._identity = _git_identity()
                return sandbox
        sandbox = cls(settings, workspace, scratch, hidden, Status("unavailable", reason))
        sandbox._identity = _git_identity()
        return sandbox

    def _try(self, command: list[str]) -> None:
        """Raises what subprocess raises."""
        held: list[int] = []
        try:
            arguments = self._arguments("probe", ".", held, network=self._settings.network)
            # Also where there is no repository yet, for which the option will be needed.
            held.append(os.open(os.devnull, os.O_PATH))
            arguments = [*arguments[:-1], "--ro-bind-fd", str(held[-1]), "/tmp/probe", "--", *command]  # noqa: S108
            subprocess.run(arguments, capture_output=True, env=self._environment, timeout=30, check=True, pass_fds=held)
        finally:
            for descriptor in held:
                os.close(descriptor)

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
        in_bwrap = sandboxed and self.status.word == "bwrap"
        network = self._settings.network if network is None else network
        launch = functools.partial(self._arguments, session_id, real, network=network) if in_bwrap else _supervised
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

    # --- the profile ------------------------------------------------------------------------------

    def _arguments(self, session_id: str, folder: str, held: list[int], *, network: bool) -> list[str]:
        """The command line of bwrap; the descriptors in it are added to `held`."""
        root = str(self._workspace.root)
        arguments = [*self._profile, *(self._network if network else ["--unshare-net"])]
        arguments += [*self._temporary(session_id), "/tmp", *self._mounts, "--bind", root, root]  # noqa: S108
        elsewhere = (f"{folder}/{part}" for folder in self._workspace.git_folders for part in ("hooks", "config"))
        for name in (*_GIT_READ_ONLY, *elsewhere):
            # By descriptor: a name could lead to another place by the time that bwrap looks.
            descriptor = self._workspace.open_plain(name)
            if descriptor is not None:
                held.append(descriptor)
                if name != ".git" or stat.S_ISREG(os.fstat(descriptor).st_mode):  # the file of a worktree
                    arguments += ["--ro-bind-fd", str(descriptor), f"{root}/{name}"]
        return [*arguments, "--chdir", os.path.normpath(f"{root}/{folder}"), "--"]

    def _temporary(self, session_id: str) -> list[str]:
        """A session's own /tmp; on a state folder that is full or read-only one that lasts for the command alone."""
        try:
            return ["--bind", str(paths.private_dir(self._scratch / session_id))]
        except OSError:
            return ["--tmpfs"]

    def _fixed_profile(self) -> list[str]:
        """The system, the same for every command of this daemon."""
        arguments = [
            "bwrap",
            "--unshare-user",
            "--unshare-pid",
            "--unshare-ipc",
            "--unshare-uts",
            "--unshare-cgroup-try",
        ]
        arguments += ["--disable-userns", "--die-with-parent", "--new-session"]
        arguments += ["--cap-drop", "ALL"]  # bwrap leaves root its own
        for path in _SYSTEM:
            if os.path.islink(path):
                arguments += ["--symlink", os.readlink(path), path]
            elif os.path.isdir(path):
                arguments += ["--ro-bind", path, path]
        for path, is_folder in _unreadable(Path("/etc")):
            arguments += ["--tmpfs", path, "--remount-ro", path] if is_folder else ["--ro-bind", os.devnull, path]
        arguments += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/var/tmp", "--tmpfs", "/run"]  # noqa: S108
        return arguments

    def _network_profile(self) -> list[str]:
        """What a program with network needs to see: where the names of hosts are looked up."""
        resolver = os.path.realpath("/etc/resolv.conf")
        return [] if resolver.startswith("/etc/") else ["--ro-bind-try", resolver, resolver]

    def _own_mounts(self) -> list[str]:
        """The cover of the home, what is shown, and the covers of what is private: the deeper path lies on top."""
        home = _mountable(Path.home())
        readable = [_mountable(Path(path)) for path in self._readable_paths()]
        writable = [_mountable(paths.expand(path)) for path in self._settings.writable_paths]
        mounts = [(home, ["--tmpfs", str(home)])] if home != Path("/") else []
        mounts += [(path, ["--ro-bind-try", str(path), str(path)]) for path in readable]
        mounts += [(path, ["--bind-try", str(path), str(path)]) for path in writable]
        private = [path.resolve() for path in (self._hidden if home.resolve() == home else [*self._hidden, home])]
        for shown in [*map(Path, _SYSTEM), *readable, *writable]:
            top = shown.resolve()
            covers = [shown / path.relative_to(top) for path in private if path.is_dir() and path.is_relative_to(top)]
            mounts += [(path, ["--tmpfs", str(path)]) for path in covers]
        mounts.sort(key=lambda mount: len(mount[0].parts))
        return [argument for _, arguments in mounts for argument in arguments]

    def _readable_paths(self) -> list[str]:
        """Toolchains that live in the home or beside the interpreter, and what the configuration adds."""
        home = Path.home()
        found = [home / name for name in _TOOLCHAINS]
        found += [Path(sys.base_prefix), Path(sys.prefix)]
        found += [prefix for name in (".venv", "venv") if (prefix := self._venv_base(name)) is not None]
        kept = [
            path
            for path in found
            if path.exists() and not home.is_relative_to(path) and not str(path).startswith("/usr")
        ]
        return [*map(str, dict.fromkeys(kept)), *(str(paths.expand(p)) for p in self._settings.read_only_paths)]

    def _venv_base(self, name: str) -> Path | None:
        """The interpreter that a virtual environment of the workspace was made from, if it is one of a toolchain.

        `pyvenv.cfg` belongs to the workspace, so its word counts only for a folder that we would show anyway.
        """
        try:
            text = self._workspace.read(f"{name}/pyvenv.cfg")[0].decode("utf-8", "replace")
        except ToolError:
            return None
        home = next((line.partition("=")[2].strip() for line in text.splitlines() if line.startswith("home")), "")
        folder = Path(home)
        python = folder / "python3"
        if folder.name != "bin" or not python.exists() or stat.S_IMODE(python.stat().st_mode) & 0o111 == 0:
            return None
        allowed = [Path.home() / tool for tool in _TOOLCHAINS] + [Path("/opt"), Path("/usr")]
        real = folder.resolve()
        return real.parent if any(real.is_relative_to(path) for path in allowed) else None


def _supervised(held: list[int]) -> list[str]:
    return [sys.executable, "-I", "-S", supervisor.__file__]


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    kept.update({name: value for name, value in os.environ.items() if name.startswith("LC_")})
    kept["PATH"] = os.environ.get("PATH", os.defpath)
    kept["HOME"] = str(Path.home())
    kept["SHELL"] = "/bin/bash"
    kept["TERM"] = "dumb"
    kept["TMPDIR"] = "/tmp"  # noqa: S108
    kept["GIT_TERMINAL_PROMPT"] = "0"
    kept["PAGER"] = kept["GIT_PAGER"] = "cat"
    return kept


def _git_identity() -> dict[str, str]:
    """The user's name and address for commits; the sandbox does not show git's own configuration."""
    identity: dict[str, str] = {}
    for key in ("name", "email"):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            answer = subprocess.run(
                ["git", "config", "--global", f"user.{key}"], capture_output=True, timeout=5, cwd="/", check=False
            )
            value = answer.stdout.decode(errors="replace").strip()
            if value:
                identity[f"GIT_AUTHOR_{key.upper()}"] = identity[f"GIT_COMMITTER_{key.upper()}"] = value
    return identity


def _mountable(path: Path) -> Path:
    """bwrap does not mount on a link, and the system's links are there: they lead on to the real place."""
    return path.resolve() if any(path.is_relative_to(system) for system in _SYSTEM) else path


def _unreadable(top: Path) -> list[tuple[str, bool]]:
    """(path, is a folder) of what others may not read below `top`: as root the sandbox would show it."""
    found: list[tuple[str, bool]] = []
    for folder, folders, files in os.walk(top):
        for name in list(folders):
            path = os.path.join(folder, name)
            if not os.path.islink(path) and os.stat(path).st_mode & 0o005 != 0o005:
                found.append((path, True))
                folders.remove(name)
        for name in files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o004 == 0:
                found.append((path, False))
    return sorted(found)
