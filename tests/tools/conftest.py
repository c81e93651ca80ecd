"""A workspace, a sandbox and the tools over them, called as the agent calls them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from pawand import config
from pawand.daemon import TOOLS
from pawand.redact import Redactor
from pawand.tools.base import Outcome, Registry, ToolContext
from pawand.tools.sandbox import Sandbox
from pawand.tools.workspace import Workspace
from pawand.wire import ToolCall
from tests import harness

SECRET = "what-no-tool-may-show"
Mode = Literal["auto", "require", "off"]


def _bwrap_works() -> bool:
    """Whether bubblewrap itself works on this machine, whatever our profile asks of it."""
    if shutil.which("bwrap") is None:
        return False
    command = ["bwrap", "--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_bwrap = pytest.mark.skipif(not _bwrap_works(), reason="bubblewrap is not installed or does not work here")
needs_rg = pytest.mark.skipif(shutil.which("rg") is None, reason="ripgrep is not installed")
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make this")


@dataclass
class Bench:
    """One session's tools. `emitted` is the live output of all its calls."""

    workspace: Workspace
    sandbox: Sandbox
    session_id: str = "session-1"
    max_result_chars: int = 8000
    redactor: Redactor = field(default_factory=lambda: Redactor([]))
    emitted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root = self.workspace.root
        self.registry = Registry(TOOLS, self.redactor)
        self.context = ToolContext(
            session_id=self.session_id,
            workspace=self.workspace,
            sandbox=self.sandbox,
            bash_timeout_secs=20,
            max_result_chars=self.max_result_chars,
            redactor=self.redactor,
        )

    async def run(self, name: str, **arguments: Any) -> Outcome:
        call = ToolCall(id="call_1", name=name, arguments=arguments)
        parsed = self.registry.parse(call)
        with harness.no_blocking():
            return await self.registry.run(call, parsed, self.context, self.emitted.append)

    def call(self, name: str, **arguments: Any) -> Outcome:
        outcome = asyncio.run(self.run(name, **arguments))
        msgspec.json.encode(outcome.content)
        return outcome

    def ok(self, name: str, **arguments: Any) -> dict[str, Any]:
        """The result of a call that must succeed."""
        outcome = self.call(name, **arguments)
        assert outcome.success, outcome.content
        assert isinstance(outcome.content, dict), outcome.content
        return outcome.content

    def refused(self, name: str, **arguments: Any) -> str:
        """The error of a call that must fail, by the tool's own decision."""
        outcome = self.call(name, **arguments)
        assert not outcome.success, outcome.content
        assert set(outcome.content) == {"error", "tool"}, outcome.content
        error = outcome.content["error"]
        assert isinstance(error, str)
        assert "internal error" not in error
        return error

    def bash(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The result of a command, whatever its exit status."""
        content = self.call("bash", command=command, **arguments).content
        assert isinstance(content, dict)
        assert "exit_code" in content, content
        return content

    def out(self, command: str) -> str:
        """The output of a command that must succeed."""
        result = self.bash(command)
        assert result["success"], result
        stdout = result["stdout"]
        assert isinstance(stdout, str)
        return stdout


MakeBench = Callable[..., Bench]
Hide = Callable[[str], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the workspace; nothing in it may be read or changed."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "secret.txt").write_text(SECRET)
    return path


@pytest.fixture
def workspace(root: Path) -> Iterator[Workspace]:
    made = Workspace(root)
    yield made
    made.close()


@pytest.fixture
def make_bench(workspace: Workspace, tmp_path: Path) -> MakeBench:
    """`make_bench(mode, network=…, hidden=[…], session_id=…, …)`."""

    def make(
        mode: Mode = "off",
        *,
        network: bool = False,
        read_only_paths: list[Path] | None = None,
        writable_paths: list[Path] | None = None,
        hidden: list[Path] | None = None,
        **more: Any,
    ) -> Bench:
        settings = config.Sandbox(
            mode=mode,
            network=network,
            read_only_paths=[str(path) for path in read_only_paths or []],
            writable_paths=[str(path) for path in writable_paths or []],
        )
        sandbox = Sandbox.probe(settings, workspace, tmp_path / "state" / "tmp", hidden or [tmp_path / "state"])
        return Bench(workspace, sandbox, **more)

    return make


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    """For tools that start no program."""
    return make_bench("off")


@pytest.fixture
def caged(make_bench: MakeBench) -> Bench:
    """In bubblewrap."""
    made = make_bench("auto")
    assert made.sandbox.status.word == "bwrap", made.sandbox.status.reason
    return made


@pytest.fixture(params=[pytest.param("bwrap", marks=needs_bwrap), "supervisor"])
def shell_bench(request: pytest.FixtureRequest, make_bench: MakeBench) -> Bench:
    """Both ways in which programs are started."""
    made = make_bench("auto" if request.param == "bwrap" else "off")
    assert made.sandbox.status.word == ("bwrap" if request.param == "bwrap" else "off"), made.sandbox.status.reason
    return made


@pytest.fixture
def shown_place() -> Iterator[Path]:
    """A folder that the sandbox shows like the rest of the system: what is hidden in it was hidden on purpose."""
    try:
        place = Path(tempfile.mkdtemp(prefix="pawand-test-", dir="/opt"))
    except OSError as error:
        pytest.skip(f"needs a folder in /opt: {error.strerror}")
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def poll(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait until it is true; False when that took too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


async def reached(condition: Callable[[], bool]) -> None:
    """The same without blocking the loop; fails when it takes too long."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("waited in vain")


def running(marker: str) -> list[int]:
    """The processes of this machine that carry `marker` in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def running_in(folder: Path, marker: str) -> list[int]:
    """Those whose working folder is `folder`: others may run the same program at the same time."""
    found = []
    for pid in running(marker):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cwd").samefile(folder):
                found.append(pid)
    return found


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's rights; only where we are root."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one step: there is no moment at which either is missing (renameat2(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_fdcwd, rename_exchange = -100, 2
    if libc.renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange):
        raise OSError(ctypes.get_errno(), "renameat2")


@contextlib.contextmanager
def swapping(folder: Path, link: Path) -> Iterator[list[int]]:
    """Swaps the two without rest; yields a list of one, how often so far."""
    done = threading.Event()
    count = [0]

    def swap() -> None:
        while not done.is_set():
            exchange(folder, link)
            count[0] += 1
            # Now and then long enough for a call, in either state; on a slow machine that is longer.
            time.sleep((0.03 if count[0] < 20_000 else 0.3) if count[0] % 61 == 0 else 0)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield count
    finally:
        done.set()
        thread.join()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def path_without(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`path_without(name)`: a PATH with every program that the current one has, but for `name`."""

    @functools.cache
    def make(name: str) -> str:
        folder = tmp_path_factory.mktemp(f"no-{name}")
        for place in os.environ["PATH"].split(":"):
            for program in os.listdir(place) if os.path.isdir(place) else ():
                link = folder / program
                if program != name and not link.is_symlink():
                    link.symlink_to(Path(place, program))
        return str(folder)

    return make


@pytest.fixture
def hide(path_without: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Hide:
    """`hide(name)`: from here on the test finds no such program."""
    return lambda name: monkeypatch.setenv("PATH", path_without(name))
