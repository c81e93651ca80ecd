"""The only way a program is started that the model can steer: in bubblewrap where it works (docs/security.md, 3).

Inside: the workspace writable, the system read-only, the home and every other folder hidden, a private /tmp, own
user, pid, ipc and uts namespaces, no network unless configured, and an environment made from an allow-list.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from msgspec import Struct

from pawand import config, paths
from pawand.errors import ToolError
from pawand.tools import supervisor
from pawand.tools.workspace import Workspace

TERM_GRACE_SECS = 2.0
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix/store")
# Where people keep compilers and interpreters in their home; nothing here holds credentials.
_TOOLCHAINS = (
    ".pyenv",
    ".local/bin",
    ".local/share/uv",
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
_GIT_READ_ONLY = (".git/hooks", ".git/config")


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

    @classmethod
    def probe(cls, settings: config.Sandbox, workspace: Workspace, scratch: Path, hidden: Iterable[Path]) -> Sandbox:
        """Try the real profile once. `scratch` is where the sessions' private /tmp folders live. Blocks."""
        shutil.rmtree(scratch, ignore_errors=True)
        paths.private_dir(scratch)
        hidden = list(hidden)
        if settings.mode == "off":
            return cls(settings, workspace, scratch, hidden, Status("off", "[sandbox] mode is off"))
        reason = ""
        if shutil.which("bwrap") is None:
            reason = "bubblewrap is not installed (apt install bubblewrap)"
        else:
            sandbox = cls(settings, workspace, scratch, hidden, Status("bwrap"))
            command = [*sandbox._arguments("probe", "."), "true"]
            probe = subprocess.run(command, capture_output=True, env=sandbox._environment, timeout=30, check=False)
            if probe.returncode == 0:
                sandbox._identity = _git_identity()
                return sandbox
            reason = f"bubblewrap does not work here: {probe.stderr.decode(errors='replace').strip()[:300]}"
        sandbox = cls(settings, workspace, scratch, hidden, Status("unavailable", reason))
        sandbox._identity = _git_identity()
        return sandbox

    @property
    def usable(self) -> bool:
        """False when the configuration requires a sandbox and there is none: nothing may be started then."""
        return self._settings.mode != "require" or self.status.word == "bwrap"

    @contextlib.asynccontextmanager
    async def start(
        self, command: list[str], *, session_id: str, folder: str = "."
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run `command` in `folder` of the workspace with no stdin; at the end of the block its whole tree is dead."""
        if not self.usable:
            raise ToolError(f"programs may not be started: [sandbox] mode is require, but {self.status.reason}")
        real = await asyncio.to_thread(self._workspace.resolve, folder)
        if self.status.word == "bwrap":
            arguments = [*await asyncio.to_thread(self._arguments, session_id, real), *command]
        else:
            arguments = [sys.executable, "-I", "-S", supervisor.__file__, *command]
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self._workspace.root / real,
            env={**self._environment, **self._identity},
            start_new_session=True,
        )
        try:
            yield process
        finally:
            await asyncio.shield(kill_tree(process))

    def forget(self, session_id: str) -> None:
        """Drop a session's /tmp. Blocks."""
        shutil.rmtree(self._scratch / session_id, ignore_errors=True)

    # --- the profile ------------------------------------------------------------------------------

    def _arguments(self, session_id: str, folder: str) -> list[str]:
        root = str(self._workspace.root)
        temporary = str(paths.private_dir(self._scratch / session_id))
        arguments = [*self._profile, "--bind", temporary, "/tmp", "--bind", root, root]  # noqa: S108
        for path in self._settings.writable_paths:
            real = str(Path(path).expanduser())
            arguments += ["--bind-try", real, real]
        for name in _GIT_READ_ONLY:
            if _is_plain(self._workspace.root, name):
                arguments += ["--ro-bind", f"{root}/{name}", f"{root}/{name}"]
        if (self._workspace.root / ".git").is_file():
            arguments += ["--ro-bind", f"{root}/.git", f"{root}/.git"]
        return [*arguments, "--chdir", os.path.normpath(f"{root}/{folder}"), "--"]

    def _fixed_profile(self) -> list[str]:
        """What is the same for every command of this daemon."""
        home = str(Path.home())
        arguments = [
            "bwrap",
            "--unshare-user",
            "--unshare-pid",
            "--unshare-ipc",
            "--unshare-uts",
            "--unshare-cgroup-try",
        ]
        arguments += ["--disable-userns", "--die-with-parent", "--new-session"]
        if not self._settings.network:
            arguments.append("--unshare-net")
        for path in _SYSTEM:
            if os.path.islink(path):
                arguments += ["--symlink", os.readlink(path), path]
            elif os.path.isdir(path):
                arguments += ["--ro-bind", path, path]
        for path, is_folder in _unreadable(Path("/etc")):
            arguments += ["--tmpfs", path, "--remount-ro", path] if is_folder else ["--ro-bind", os.devnull, path]
        if self._settings.network:
            resolver = os.path.realpath("/etc/resolv.conf")
            if not resolver.startswith("/etc/"):
                arguments += ["--ro-bind-try", resolver, resolver]
        arguments += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/var/tmp", "--tmpfs", "/run"]  # noqa: S108
        for private in self._hidden:
            if private.is_dir() and any(private.is_relative_to(system) for system in _SYSTEM):
                arguments += ["--tmpfs", str(private)]
        if home != "/":
            arguments += ["--tmpfs", home]
        for path in self._readable_paths():
            arguments += ["--ro-bind-try", path, path]
        return arguments

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
        return [*map(str, dict.fromkeys(kept)), *(str(Path(p).expanduser()) for p in self._settings.read_only_paths)]

    def _venv_base(self, name: str) -> Path | None:
        """The interpreter that a virtual environment of the workspace was made from, if it is one of a toolchain.

        `pyvenv.cfg` belongs to the workspace, so its word counts only for a folder that we would show anyway.
        """
        try:
            text = (self._workspace.root / name / "pyvenv.cfg").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None
        home = next((line.partition("=")[2].strip() for line in text.splitlines() if line.startswith("home")), "")
        folder = Path(home)
        python = folder / "python3"
        if folder.name != "bin" or not python.exists() or stat.S_IMODE(python.stat().st_mode) & 0o111 == 0:
            return None
        allowed = [Path.home() / tool for tool in _TOOLCHAINS] + [Path("/opt"), Path("/usr")]
        real = folder.resolve()
        return real.parent if any(real.is_relative_to(path) for path in allowed) else None


async def kill_tree(process: asyncio.subprocess.Process) -> None:
    """TERM to every process below, KILL after TERM_GRACE_SECS; with bubblewrap or the supervisor none is left."""
    if process.returncode is None:
        below = await asyncio.to_thread(supervisor.descendants, process.pid)
        # bwrap and its init would take the whole tree down at once; the supervisor passes the signal on itself.
        supervisor.signal_all(below[1:] if _is_bwrap(process) else [process.pid], signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TERM_GRACE_SECS + 0.5):
                await process.wait()
        if process.returncode is None:
            below = await asyncio.to_thread(supervisor.descendants, process.pid)
            supervisor.signal_all([process.pid, *below], signal.SIGKILL)
            await process.wait()


def _is_bwrap(process: asyncio.subprocess.Process) -> bool:
    try:
        return Path(f"/proc/{process.pid}/comm").read_text().strip() == "bwrap"
    except OSError:
        return False


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


def _is_plain(root: Path, name: str) -> bool:
    """Whether `name` exists below `root` with no link on the way: a link's target must not be mounted."""
    path = root
    for part in name.split("/"):
        path = path / part
        if not path.exists() or path.is_symlink():
            return False
    return True


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
