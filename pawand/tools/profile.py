"""What bubblewrap is told to show to a program, and what it hides (docs/security.md, 3)."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from pawand import config, paths
from pawand.errors import ToolError
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
_GIT_READ_ONLY = (".git/hooks", ".git/config", ".git")


class Profile:
    """Worked out once, at the start. `scratch` is where the private /tmp folders live, `hidden` what is never shown."""

    def __init__(self, settings: config.Sandbox, workspace: Workspace, scratch: Path, hidden: Iterable[Path]) -> None:
        self._settings = settings
        self._workspace = workspace
        self._scratch = scratch
        self._hidden = list(hidden)
        self._fixed = self._fixed_part()
        self._network = self._network_part()
        self._mounts = self._own_mounts()

    def arguments(self, session_id: str, folder: str, held: list[int], *, network: bool) -> list[str]:
        """The command line of bwrap, to be followed by the program's; its descriptors are added to `held`. Blocks."""
        root = str(self._workspace.root)
        arguments = [*self._fixed, *(self._network if network else ["--unshare-net"])]
        arguments += [*self._temporary(session_id), "/tmp", *self._mounts, "--bind", root, root]  # noqa: S108
        elsewhere = (f"{folder}/{part}" for folder in self._workspace.git_folders for part in ("hooks", "config"))
        for name in (*_GIT_READ_ONLY, *elsewhere):
            # By descriptor: a name could lead to another place by the time that bwrap looks.
            descriptor = self._workspace.open_plain(name)
            if descriptor is None:
                continue
            if name == ".git" and stat.S_ISDIR(os.fstat(descriptor).st_mode):  # only the file of a worktree is covered
                os.close(descriptor)
                continue
            # bwrap closes what it mounts. One that it does not mount would lead the command out of the sandbox.
            held.append(descriptor)
            arguments += ["--ro-bind-fd", str(descriptor), f"{root}/{name}"]
        return [*arguments, "--chdir", os.path.normpath(f"{root}/{folder}"), "--"]

    def _temporary(self, session_id: str) -> list[str]:
        """A session's own /tmp; on a state folder that is full or read-only one that lasts for the command alone."""
        try:
            return ["--bind", str(paths.private_dir(self._scratch / session_id))]
        except OSError:
            return ["--tmpfs"]

    def _fixed_part(self) -> list[str]:
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

    def _network_part(self) -> list[str]:
        """What a program with network needs to see: where the names of hosts are looked up."""
        resolver = os.path.realpath("/etc/resolv.conf")
        return [] if resolver.startswith("/etc/") else ["--ro-bind-try", resolver, resolver]

    def _own_mounts(self) -> list[str]:
        """The cover of the home, what is shown, and the covers of what is private: the deeper path lies on top."""
        home = _mountable(paths.home())
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
        home = paths.home()
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
        allowed = [paths.home() / tool for tool in _TOOLCHAINS] + [Path("/opt"), Path("/usr")]
        real = folder.resolve()
        return real.parent if any(real.is_relative_to(path) for path in allowed) else None


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
