"""The boundary: every file a tool opens is opened beneath the workspace, by descriptor, with no way out.

Linux's openat2(2) with RESOLVE_BENEATH refuses `..`, absolute links and races; where the call is missing, a walk
component by component with O_NOFOLLOW refuses every symlink. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import platform
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from pawand import paths
from pawand.errors import ConfigError, ToolError

MAX_FILE_BYTES = 10 * 1024 * 1024
_OPENAT2 = 437  # the same number on every architecture (linux/unistd.h)
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class Stamp:
    """What tells that a file changed: inode, size, time of last write."""

    def __init__(self, status: os.stat_result) -> None:
        self._key = (status.st_ino, status.st_size, status.st_mtime_ns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stamp) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class Workspace:
    """The folder the agent works in. Paths are relative to it; an absolute one inside it is taken as relative."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        try:
            self._descriptor = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"the workspace {root} cannot be used: {error.strerror}") from error
        self._openat2 = _has_openat2(self._descriptor)
        self.git_folders = self._find_git_folders()
        """Git's own folders that are not called `.git`."""

    def close(self) -> None:
        os.close(self._descriptor)

    def relative(self, path: str) -> str:
        """The path below the root, `.` for the root itself. Raises ToolError for one that cannot be inside."""
        if "\0" in path:
            raise ToolError("the path holds a NUL character")
        try:
            os.fsencode(path)
        except UnicodeEncodeError as error:
            raise ToolError("the path is no valid text") from error
        if os.path.isabs(path):
            inside = os.path.relpath(os.path.normpath(path), self.root)
            if inside == ".." or inside.startswith("../"):
                raise ToolError(f"{path} is outside the workspace {self.root}")
            return inside
        return path or "."

    @contextlib.contextmanager
    def open_file(self, path: str) -> Iterator[int]:
        """A descriptor to read a regular file."""
        descriptor = self._open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise ToolError(f"{path} is a folder: use list_directory")
            if not stat.S_ISREG(mode):
                raise ToolError(f"{path} is not a regular file")
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def open_folder(self, path: str) -> Iterator[int]:
        """A descriptor of a folder, for os.scandir and the *at calls."""
        descriptor = self._open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def resolve(self, path: str) -> str:
        """Where an existing path really is, relative to the root, links followed."""
        descriptor = self._open(path, os.O_PATH)
        try:
            return self._place(descriptor)
        finally:
            os.close(descriptor)

    def open_plain(self, path: str) -> int | None:
        """A descriptor (O_PATH) of what is there, to be closed by the caller; None where nothing is, or a link is on
        the way."""
        try:
            if self._openat2:
                return _openat2(self._descriptor, path, os.O_PATH, 0, _RESOLVE_NO_SYMLINKS)
            return _walk(self._descriptor, path, os.O_PATH, 0)
        except OSError:
            return None

    def identity(self, path: str) -> str:
        """The one name of a file, however its path is written and whether it exists or not."""
        try:
            return self.resolve(path)
        except MissingError:
            return os.path.normpath(self.relative(path))

    def read(self, path: str) -> tuple[bytes, Stamp]:
        """The whole content of a file of at most MAX_FILE_BYTES."""
        with self.open_file(path) as descriptor:
            status = os.fstat(descriptor)
            if status.st_size > MAX_FILE_BYTES:
                raise ToolError(
                    f"{path} has {status.st_size} bytes, more than {MAX_FILE_BYTES}: "
                    "use grep_search, or bash with sed, head or tail"
                )
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(MAX_FILE_BYTES + 1), Stamp(status)

    def stamp(self, path: str) -> Stamp | None:
        """None where there is no such file."""
        try:
            descriptor = self._open(path, os.O_PATH)
        except MissingError:
            return None
        try:
            return Stamp(os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def write(self, path: str, data: bytes) -> Stamp:
        """Replace or make a file atomically, with its parents. Links are followed.

        An existing file keeps its mode, and its owner and group as far as we may give them.
        """
        relative = self._write_target(self.relative(path))
        parent, name = os.path.split(relative)
        if not name or name in (".", ".."):
            raise ToolError(f"{path} is no name for a file")
        self._forbid_protected(relative)
        folder = self._make_folders(parent or ".")
        try:
            self._forbid_protected(os.path.join(self._place(folder), name))
            return _replace(folder, name, data)
        except OSError as error:
            raise ToolError(f"{path} cannot be written: {error.strerror}") from error
        finally:
            os.close(folder)

    # --- inside -----------------------------------------------------------------------------------

    def _open(self, path: str, flags: int, mode: int = 0) -> int:
        relative = self.relative(path)
        try:
            if self._openat2:
                return _openat2(self._descriptor, relative, flags, mode)
            return _walk(self._descriptor, relative, flags, mode)
        except FileNotFoundError as error:
            raise MissingError(f"{path} does not exist") from error
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.ELOOP):
                raise ToolError(f"{path} leads out of the workspace {self.root}") from error
            if error.errno == errno.EAGAIN:
                raise ToolError(f"{path} changed while it was opened; try again") from error
            raise ToolError(f"{path} cannot be opened: {error.strerror}") from error

    def _place(self, descriptor: int) -> str:
        place = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), self.root)
        if place == ".." or place.startswith("../"):
            raise ToolError("the path leads out of the workspace")
        return place

    def _write_target(self, relative: str) -> str:
        """Follow the links of an existing target, so that the file is replaced and not the link."""
        try:
            return self.resolve(relative)
        except MissingError:
            pass
        parent, name = os.path.split(relative.rstrip("/"))
        with contextlib.suppress(MissingError):
            folder = self._open(parent or ".", os.O_PATH | os.O_DIRECTORY)
            try:
                if _is_link(folder, name):
                    raise ToolError(f"{relative} is a link to a file that does not exist")
            finally:
                os.close(folder)
        return relative

    def _make_folders(self, path: str) -> int:
        """Open a folder beneath the root, making what is missing."""
        made = "."
        for part in Path(path).parts:
            if part == "..":
                raise ToolError(f"{path}: `..` may not be used in the path of a new file")
            parent = self._open(made, os.O_PATH | os.O_DIRECTORY)
            try:
                self._forbid_protected(os.path.join(self._place(parent), part))
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o777, dir_fd=parent)
            except OSError as error:
                raise ToolError(f"{path} cannot be made: {error.strerror}") from error
            finally:
                os.close(parent)
            made = os.path.join(made, part)
        return self._open(made, os.O_RDONLY | os.O_DIRECTORY)

    def _find_git_folders(self) -> list[str]:
        """Where a `.git` that is a link leads to inside the workspace, and what a `.git` file names: the folder of its
        worktree, and the one behind that."""
        found: list[str] = []
        with contextlib.suppress(ToolError):
            if (real := self.resolve(".git")) != ".git":
                return [real]
            for file in (".git", "commondir"):
                text = self.read(os.path.join(*found[-1:], file))[0].decode("utf-8", "replace")
                target = os.path.join(*found[-1:], text.removeprefix("gitdir:").strip())
                inside = os.path.normpath(self.relative(target))
                if inside == "." or inside.startswith(".."):
                    break
                found.append(inside)
        return found

    def _forbid_protected(self, relative: str) -> None:
        parts = [part.lower() for part in Path(relative).parts]
        if ".git" in parts or any(Path(relative).is_relative_to(folder) for folder in self.git_folders):
            raise ToolError("git's own files may not be written: use git through bash")
        if parts == ["pawan.toml"]:
            raise ToolError("pawan.toml holds the agent's own settings and may not be written by it")


class MissingError(ToolError):
    """The path does not exist (yet)."""


def check_place(root: Path, private: list[Path]) -> None:
    """Refuse a workspace that would hand the agent the whole machine or the daemon's own files (ConfigError)."""
    real = root.resolve()
    if not real.is_dir():
        raise ConfigError(f"the workspace {root} does not exist or is no folder: pass one with --workspace")
    try:
        str(real).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"the workspace {str(real)!r} has a name that is no UTF-8 text: rename the folder") from error
    home = paths.home().resolve()
    if real == Path("/") or real == home:
        raise ConfigError(
            f"the workspace may not be {real} itself: start pawand in a project folder or pass --workspace"
        )
    for path in private:
        if path.resolve().is_relative_to(real) or real.is_relative_to(path.resolve()):
            raise ConfigError(
                f"the workspace {real} and {path} lie one within the other, and the agent must not reach the latter: "
                "choose another workspace"
            )


def _replace(folder: int, name: str, data: bytes) -> Stamp:
    temporary = f".pawan-{secrets.token_hex(8)}.tmp"
    like: os.stat_result | None = None
    with contextlib.suppress(FileNotFoundError):
        like = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(like.st_mode):
            raise ToolError(f"{name} is not a regular file")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666 if like is None else 0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if like is not None:
                _make_like(file.fileno(), like)
            stamp = Stamp(os.fstat(file.fileno()))
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    return stamp


def _make_like(descriptor: int, like: os.stat_result) -> None:
    """Give a file of ours the mode of another, and its owner and group where we may."""
    with contextlib.suppress(OSError):
        os.fchown(descriptor, -1, like.st_gid)
    with contextlib.suppress(OSError):
        os.fchown(descriptor, like.st_uid, -1)
    ours = os.fstat(descriptor)
    mode = stat.S_IMODE(like.st_mode)
    if (ours.st_uid, ours.st_gid) != (like.st_uid, like.st_gid):
        mode &= ~(stat.S_ISUID | stat.S_ISGID)  # it would run as somebody else
    os.fchmod(descriptor, mode)


def _is_link(folder: int, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _has_openat2(root: int) -> bool:
    if platform.system() != "Linux":
        return False
    try:
        os.close(_openat2(root, ".", os.O_PATH, 0))
    except OSError:
        return False
    return True


def _openat2(root: int, path: str, flags: int, mode: int, resolve: int = 0) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, mode, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS | resolve)
    descriptor = _libc().syscall(_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(descriptor)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _walk(root: int, path: str, flags: int, mode: int) -> int:
    """openat2's promise without openat2: no `..`, no link anywhere in the path."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        last = parts[-1] if parts else "."
        if flags & os.O_PATH and _is_link(folder, last):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        return os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=folder)
    finally:
        os.close(folder)
