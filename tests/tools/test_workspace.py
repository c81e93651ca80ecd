"""The boundary: what leads out of the workspace, what is no file, and what belongs to git or to us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pawand.errors import ConfigError, ToolError
from pawand.tools.workspace import MAX_FILE_BYTES, MissingError, Workspace, check_place
from tests.tools.conftest import SECRET, Bench, Hide, as_nobody, needs_rg, needs_root, swapping, tree

OUT_FILES = {
    "dots": "../outside/secret.txt",
    "dots after a folder": "sub/../../outside/secret.txt",
    "absolute": "{outside}/secret.txt",
    "absolute with dots": "{root}/../outside/secret.txt",
    "link to a file": "file-link",
    "link to a folder": "folder-link/secret.txt",
    "relative link to a folder": "relative-link/secret.txt",
    "link to the folder above": "up/outside/secret.txt",
    "chain of links": "chain-1",
    "chain of folders": "chain-folder/secret.txt",
    "absolute link back inside": "back-file",
    "absolute link to a folder inside": "back-folder/inside.txt",
    "magic link": "magic/outside/secret.txt",
}
OUT_FOLDERS = {
    "dots": "../outside",
    "dots after a folder": "sub/../../outside",
    "absolute": "{outside}",
    "link": "folder-link",
    "relative link": "relative-link",
    "link to the folder above": "up/outside",
    "chain": "chain-folder",
    "absolute link to a folder inside": "back-folder",
    "magic link": "magic/outside",
}
FILE_TOOLS: dict[str, dict[str, Any]] = {
    "read_file": {},
    "write_file": {"content": "overwritten"},
    "edit_file": {"old_string": SECRET, "new_string": "overwritten"},
    "edit_file_lines": {"start_line": 1, "end_line": 1, "new_content": "overwritten"},
    "insert_after": {"anchor_text": SECRET, "content": "overwritten"},
    "append_file": {"content": "overwritten"},
    "ast_grep": {"action": "rewrite", "pattern": "$A", "rewrite": "overwritten", "lang": "python"},
    "grep_search": {"pattern": "."},
}
WRITERS = ["write_file", "edit_file", "edit_file_lines", "insert_after", "append_file"]
FOLDER_TOOLS: dict[str, dict[str, Any]] = {
    "list_directory": {"recursive": True},
    "glob_search": {"pattern": "**"},
    "grep_search": {"pattern": "."},
    "ast_grep": {"action": "search", "pattern": "$A", "lang": "python"},
    "bash": {"command": "cat secret.txt"},
}


@pytest.fixture
def traps(root: Path, outside: Path) -> Path:
    (root / "sub").mkdir()
    (root / "sub" / "inside.txt").write_text("inside\n")
    (root / "file-link").symlink_to(outside / "secret.txt")
    (root / "folder-link").symlink_to(outside)
    (root / "relative-link").symlink_to("../outside")
    (root / "up").symlink_to("..")
    (root / "chain-1").symlink_to("chain-2")
    (root / "chain-2").symlink_to("file-link")
    (root / "chain-folder").symlink_to("relative-link")
    (root / "back-file").symlink_to(root / "sub" / "inside.txt")
    (root / "back-folder").symlink_to(root / "sub")
    (root / "magic").symlink_to(f"/proc/{os.getpid()}/cwd/..")
    return root


@pytest.fixture(params=["openat2", "walk"])
def guarded(request: pytest.FixtureRequest, traps: Path, bench: Bench) -> Bench:
    """A bench over the traps; `walk` is what a kernel without openat2 gets."""
    if request.param == "walk":
        bench.workspace._openat2 = False
    else:
        assert bench.workspace._openat2
    return bench


@pytest.mark.parametrize("place", OUT_FILES.values(), ids=OUT_FILES)
@pytest.mark.parametrize("tool", FILE_TOOLS)
def test_no_tool_follows_a_path_out_to_a_file(guarded: Bench, outside: Path, tool: str, place: str) -> None:
    before = tree(outside), tree(guarded.root)
    path = place.format(outside=outside, root=guarded.root)
    error = guarded.refused(tool, path=path, **FILE_TOOLS[tool])
    assert SECRET not in error
    assert (tree(outside), tree(guarded.root)) == before


@pytest.mark.parametrize("place", OUT_FOLDERS.values(), ids=OUT_FOLDERS)
@pytest.mark.parametrize("tool", FOLDER_TOOLS)
def test_no_tool_follows_a_path_out_to_a_folder(guarded: Bench, outside: Path, tool: str, place: str) -> None:
    path = place.format(outside=outside, root=guarded.root)
    where = "workdir" if tool == "bash" else "path"
    error = guarded.refused(tool, **{where: path}, **FOLDER_TOOLS[tool])
    assert SECRET not in error
    assert "secret.txt" not in error


@pytest.mark.parametrize("place", OUT_FOLDERS.values(), ids=OUT_FOLDERS)
@pytest.mark.parametrize("tool", ["glob_search", "grep_search"])
def test_the_search_without_ripgrep_stays_inside_too(
    guarded: Bench, outside: Path, hide: Hide, tool: str, place: str
) -> None:
    hide("rg")
    path = place.format(outside=outside, root=guarded.root)
    assert SECRET not in guarded.refused(tool, path=path, **FOLDER_TOOLS[tool])


@pytest.mark.parametrize("ripgrep", [pytest.param(True, marks=needs_rg), False], ids=["rg", "walk"])
def test_a_search_of_the_whole_workspace_does_not_step_into_links(
    traps: Path, bench: Bench, hide: Hide, ripgrep: bool
) -> None:
    if not ripgrep:
        hide("rg")
    assert bench.ok("glob_search", pattern="**")["files"] == ["sub/inside.txt"]
    assert bench.ok("grep_search", pattern=".")["results"] == ["sub/inside.txt:1:inside"]


@pytest.mark.parametrize(
    "path",
    [
        "../outside/new.txt",
        "{outside}/new.txt",
        "folder-link/new.txt",
        "up/outside/new.txt",
        "dangling",
        "up/new/a.txt",
    ],
)
def test_no_new_file_or_folder_is_made_outside(guarded: Bench, outside: Path, path: str) -> None:
    (guarded.root / "dangling").symlink_to(outside / "new.txt")
    beside = sorted(outside.parent.iterdir())
    guarded.refused("write_file", path=path.format(outside=outside), content="x")
    assert tree(outside) == {"secret.txt": SECRET.encode()}
    assert sorted(outside.parent.iterdir()) == beside


@pytest.mark.parametrize("path", ["sub/inside.txt", "sub/../sub/inside.txt", "no/../sub/./inside.txt"])
def test_an_absolute_path_inside_is_taken_as_relative(guarded: Bench, path: str) -> None:
    absolute = f"{guarded.root}/{path}"
    assert guarded.ok("read_file", path=absolute)["content"].endswith("inside")
    guarded.ok("write_file", path=absolute, content="written\n")
    assert (guarded.root / "sub" / "inside.txt").read_text() == "written\n"
    assert guarded.ok("list_directory", path=f"{guarded.root}/sub")["count"] == 1


def test_links_that_stay_inside_are_followed_and_kept(bench: Bench) -> None:
    (bench.root / "a").mkdir()
    target = bench.root / "a" / "target.txt"
    target.write_text("one\n")
    (bench.root / "link").symlink_to("a/target.txt")
    (bench.root / "folder").symlink_to("a")
    (bench.root / "a" / "up").symlink_to("../link")
    assert bench.ok("read_file", path="link")["content"] == "     1\tone"
    bench.ok("write_file", path="link", content="two\n")
    bench.ok("edit_file", path="a/up", old_string="two", new_string="three")
    bench.ok("write_file", path="folder/new/deep.txt", content="deep\n")
    assert target.read_text() == "three\n"
    assert (bench.root / "link").readlink() == Path("a/target.txt")
    assert (bench.root / "a" / "up").readlink() == Path("../link")
    assert (bench.root / "folder").readlink() == Path("a")
    assert (bench.root / "a" / "new" / "deep.txt").read_text() == "deep\n"
    assert bench.ok("list_directory", path="folder")["entries"][0]["path"] == "folder/new"


def test_without_openat2_no_link_is_followed_at_all(guarded: Bench) -> None:
    guarded.workspace._openat2 = False
    (guarded.root / "link").symlink_to("sub/inside.txt")
    guarded.refused("read_file", path="link")
    guarded.refused("write_file", path="link", content="x")
    assert (guarded.root / "sub" / "inside.txt").read_text() == "inside\n"
    assert guarded.ok("read_file", path="sub/inside.txt")["content"].endswith("inside")
    guarded.ok("write_file", path="sub/deep/new.txt", content="new")
    assert (guarded.root / "sub" / "deep" / "new.txt").read_text() == "new"


@pytest.fixture
def odd(bench: Bench) -> Iterator[Bench]:
    """Things that are no regular files."""
    os.mkfifo(bench.root / "fifo")
    (bench.root / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(bench.root / "socket"))
        yield bench


@pytest.mark.parametrize("tool", ["read_file", *WRITERS])
@pytest.mark.parametrize("name", ["fifo", "socket", "folder", ".", "folder/", "folder/.", "folder/.."])
def test_what_is_no_file_is_refused_at_once(odd: Bench, tool: str, name: str) -> None:
    odd.refused(tool, path=name, **FILE_TOOLS[tool])
    assert stat.S_ISFIFO((odd.root / "fifo").stat().st_mode)
    assert (odd.root / "folder").is_dir()


@needs_root
@pytest.mark.parametrize("tool", ["read_file", *WRITERS])
def test_a_device_is_refused(bench: Bench, tool: str) -> None:
    os.mknod(bench.root / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    bench.refused(tool, path="zero", **FILE_TOOLS[tool])
    assert stat.S_ISCHR((bench.root / "zero").stat().st_mode)


@pytest.mark.parametrize("ripgrep", [pytest.param(True, marks=needs_rg), False], ids=["rg", "walk"])
def test_listing_and_searching_pass_by_what_is_no_file(odd: Bench, hide: Hide, ripgrep: bool) -> None:
    if not ripgrep:
        hide("rg")
    (odd.root / "plain").write_text("plain\n")
    assert [entry["name"] for entry in odd.ok("list_directory")["entries"]] == ["folder", "fifo", "plain", "socket"]
    assert odd.ok("glob_search", pattern="*")["files"] == ["plain"]
    assert odd.ok("grep_search", pattern=".*")["results"] == ["plain:1:plain"]


PROTECTED = [
    ".git/config",
    ".git/hooks/pre-commit",
    ".git/new/file",
    ".git",
    "sub/.git/config",
    "sub/.git",
    "new/.git/config",
    ".GIT/config",
    "sub/.Git",
    "./.git/config",
    "sub/../.git/config",
    "{root}/.git/config",
    "git-link/config",
    "git-link/new/file",
    "config-link",
    "pawan.toml",
    "./pawan.toml",
    "sub/../pawan.toml",
    "{root}/pawan.toml",
    "PAWAN.toml",
    "settings-link",
    "here/pawan.toml",
    "here/.git/config",
]


@pytest.mark.parametrize("existing", [True, False], ids=["existing", "new"])
@pytest.mark.parametrize("path", PROTECTED)
def test_files_of_git_and_our_own_settings_are_not_written(bench: Bench, path: str, existing: bool) -> None:
    (bench.root / "sub").mkdir()
    (bench.root / "git-link").symlink_to(".git")
    (bench.root / "config-link").symlink_to(".git/config")
    (bench.root / "settings-link").symlink_to("pawan.toml")
    (bench.root / "here").symlink_to(".")
    if existing:
        for folder in (bench.root / ".git", bench.root / "sub" / ".git"):
            (folder / "hooks").mkdir(parents=True)
            (folder / "config").write_text("[core]\n")
        (bench.root / "pawan.toml").write_text("[core]\n")
    before = sorted(bench.root.rglob("*")), tree(bench.root)
    path = path.format(root=bench.root)
    bench.refused("write_file", path=path, content="[core]\n\thooksPath = evil\n")
    bench.refused("edit_file", path=path, old_string="[core]", new_string="[evil]")
    bench.refused("edit_file_lines", path=path, start_line=1, end_line=1, new_content="[evil]")
    bench.refused("insert_after", path=path, anchor_text="[core]", content="[evil]")
    bench.refused("append_file", path=path, content="[evil]")
    assert (sorted(bench.root.rglob("*")), tree(bench.root)) == before


def test_the_git_file_of_a_worktree_is_not_written(bench: Bench) -> None:
    (bench.root / ".git").write_text("gitdir: /elsewhere\n")
    assert "git" in bench.refused("write_file", path=".git", content="gitdir: evil\n")
    assert "git" in bench.refused("edit_file", path=".git", old_string="elsewhere", new_string="evil")
    assert (bench.root / ".git").read_text() == "gitdir: /elsewhere\n"


@pytest.mark.parametrize("bare", [".bare", "{root}/.bare"])
def test_a_repository_that_a_git_file_leads_to_is_not_written(root: Path, bare: str) -> None:
    (root / ".bare" / "worktrees" / "w").mkdir(parents=True)
    (root / ".bare" / "worktrees" / "w" / "commondir").write_text("../..\n")
    (root / ".git").write_text(f"gitdir: {bare.format(root=root)}/worktrees/w\n")
    with contextlib.closing(Workspace(root)) as made:
        for path in (".bare/hooks/post-checkout", ".bare/config", ".bare/worktrees/w/HEAD"):
            with pytest.raises(ToolError):
                made.write(path, b"evil")
        made.write(".barely", b"fine")
    assert sorted(os.listdir(root)) == [".bare", ".barely", ".git"]


def test_a_folder_that_is_git_s_by_a_link_is_not_written(root: Path) -> None:
    (root / "store" / "hooks").mkdir(parents=True)
    (root / ".git").symlink_to("store")
    with contextlib.closing(Workspace(root)) as made:
        for path in (".git/config", ".git/hooks/pre-commit", "store/hooks/pre-commit", "store/config"):
            with pytest.raises(ToolError):
                made.write(path, b"evil")
        made.write("stored", b"fine")
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*")) == [".git", "store", "store/hooks", "stored"]


@pytest.mark.parametrize("text", ["gitdir: ../outside", "gitdir: /elsewhere", "gitdir: .", "gitdir:", "", "\xff\0"])
def test_a_git_file_that_leads_nowhere_inside_protects_nothing_more(root: Path, text: str) -> None:
    (root / ".git").write_text(text)
    with contextlib.closing(Workspace(root)) as made:
        made.write("file", b"fine")


@pytest.mark.parametrize(
    "path", ["sub/pawan.toml", ".github/workflows/ci.yml", ".gitignore", "sub/.gitattributes", "git/a"]
)
def test_what_only_looks_protected_may_be_written(bench: Bench, path: str) -> None:
    bench.ok("write_file", path=path, content="fine\n")
    assert (bench.root / path).read_text() == "fine\n"


def test_protected_files_may_be_read(bench: Bench) -> None:
    (bench.root / ".git").mkdir()
    (bench.root / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    assert "refs/heads/main" in bench.ok("read_file", path=".git/HEAD")["content"]


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o755, 0o444])
def test_an_overwritten_file_keeps_its_mode_and_nothing_else_is_left(bench: Bench, mode: int) -> None:
    path = bench.root / "script.sh"
    path.write_text("old\n")
    path.chmod(mode)
    bench.ok("write_file", path="script.sh", content="new\n")
    bench.ok("edit_file", path="script.sh", old_string="new", new_string="newer")
    bench.ok("edit_file_lines", path="script.sh", anchor_text="newer", new_content="newest")
    bench.ok("insert_after", path="script.sh", anchor_text="newest", content="more")
    bench.ok("append_file", path="script.sh", content="end")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert tree(bench.root) == {"script.sh": b"newest\nmore\nend\n"}


@needs_root
@pytest.mark.parametrize("mode", [0o640, 0o4755])
def test_an_overwritten_file_keeps_its_owner_and_group(bench: Bench, mode: int) -> None:
    path = bench.root / "script.sh"
    path.write_text("old\n")
    os.chown(path, 1234, 5678)
    path.chmod(mode)
    bench.ok("write_file", path="script.sh", content="new\n")
    bench.ok("edit_file", path="script.sh", old_string="new", new_string="newer")
    bench.ok("append_file", path="script.sh", content="end")
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 5678, mode)
    bench.ok("write_file", path="other.sh", content="new\n")
    assert (bench.root / "other.sh").stat().st_uid == os.geteuid()


@needs_root
def test_a_file_whose_owner_cannot_be_kept_is_written_and_runs_as_nobody_else(bench: Bench) -> None:
    bench.root.chmod(0o777)
    path = bench.root / "script.sh"
    path.write_text("old\n")
    path.chmod(0o6777)
    with as_nobody():
        bench.workspace.write("script.sh", b"new\n")
    status = path.stat()
    assert path.read_text() == "new\n"
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (65534, 0o777)


def test_a_write_replaces_the_file_so_that_an_open_reader_keeps_the_old_one(bench: Bench) -> None:
    path = bench.root / "data"
    path.write_text("old")
    with path.open() as reader:
        bench.ok("write_file", path="data", content="new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_a_failed_write_leaves_neither_a_part_nor_a_temporary_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bench.root / "data").write_text("old")
    (bench.root / "folder").mkdir()
    with pytest.raises(ToolError, match="not a regular file"):
        bench.workspace.write("folder", b"x" * 100_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(ToolError, match="File too large"):
            bench.workspace.write("data", b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert tree(bench.root) == {"data": b"old"}


def test_missing_folders_are_made(bench: Bench) -> None:
    bench.ok("write_file", path="a/b/c/d.txt", content="deep")
    assert tree(bench.root) == {"a/b/c/d.txt": b"deep"}


@pytest.mark.parametrize(
    "name",
    ["plain", "with space", "näme", "🦀" * 63, "x" * 255, "-rf", "new\nline", "$(id)", ".hidden", "...", "~"],
    ids=lambda name: ascii(name[:8]),
)
def test_any_name_that_a_file_may_have_can_be_written_and_read(bench: Bench, name: str) -> None:
    bench.ok("write_file", path=name, content="text")
    assert bench.ok("read_file", path=name)["content"] == "     1\ttext"
    assert [os.fsdecode(found) for found in os.listdir(bench.root)] == [name]


@pytest.mark.parametrize("tool", ["read_file", *WRITERS, "list_directory", "glob_search", "grep_search", "ast_grep"])
@pytest.mark.parametrize(
    "path", ["a\0b", "\ud800", "x" * 256, "x/" * 3000, "file/below", "\0"], ids=lambda path: ascii(path[:8])
)
def test_a_path_that_cannot_be_is_a_clear_error(bench: Bench, tool: str, path: str) -> None:
    (bench.root / "file").write_text("text")
    arguments = {**FILE_TOOLS, **FOLDER_TOOLS}[tool]
    error = bench.refused(tool, path=path, **arguments)
    assert len(error) < 5000
    assert tree(bench.root) == {"file": b"text"}


def test_a_missing_file_is_a_kind_of_tool_error_and_has_no_stamp(workspace: Workspace) -> None:
    with pytest.raises(MissingError, match="no/such does not exist"):
        workspace.read("no/such")
    assert workspace.stamp("no/such") is None


def test_a_file_over_the_limit_is_refused_with_a_way_out(bench: Bench) -> None:
    with (bench.root / "big.txt").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    error = bench.refused("read_file", path="big.txt")
    assert str(MAX_FILE_BYTES) in error
    assert "grep_search" in error


RACED: dict[str, tuple[str, dict[str, Any]]] = {
    "read": ("read_file", {"path": "folder/file"}),
    "write": ("write_file", {"path": "folder/file", "content": "inside"}),
    "write a new file": ("write_file", {"path": "folder/new/file", "content": "inside"}),
    "edit": ("edit_file", {"path": "folder/file", "old_string": "side", "new_string": "-side"}),
    "list": ("list_directory", {"path": "folder"}),
    "list all": ("list_directory", {"path": ".", "recursive": True}),
    "glob": ("glob_search", {"path": "folder", "pattern": "*"}),
    "glob all": ("glob_search", {"pattern": "**/*"}),
    "grep": ("grep_search", {"path": "folder", "pattern": "."}),
    "grep all": ("grep_search", {"pattern": "."}),
}


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("least", [300, 20_000])
@pytest.mark.parametrize("openat2", [True, False], ids=["openat2", "walk"])
def test_a_folder_swapped_for_a_link_while_it_is_used_never_leads_out(
    bench: Bench, outside: Path, hide: Hide, openat2: bool, least: int
) -> None:
    hide("rg")
    assert bench.workspace._openat2
    bench.workspace._openat2 = openat2
    folder, link = bench.root / "folder", bench.root / "link"
    folder.mkdir()
    (folder / "file").write_text("inside")
    (outside / "file").write_text(SECRET)
    link.symlink_to(outside)
    before = tree(outside), sorted(os.listdir(outside))
    met = dict.fromkeys(RACED, 0)
    missed = dict.fromkeys(RACED, 0)

    async def main(swaps: list[int]) -> None:
        deadline = time.monotonic() + 90
        while swaps[0] < least or min(*met.values(), *missed.values()) < 5:
            assert time.monotonic() < deadline, f"{swaps} swaps, met {met}, missed {missed}"
            for name, (tool, arguments) in RACED.items():
                bench.context.seen.clear()  # what a write cut in its middle has left is no file of somebody else's
                outcome = await bench.run(tool, **arguments)
                assert SECRET not in outcome.text
                assert "secret.txt" not in outcome.text
                seen = outcome.success and ("all" not in name or "folder/file" in outcome.text)
                (met if seen else missed)[name] += 1

    with swapping(folder, link) as swaps:
        asyncio.run(main(swaps))
    assert (tree(outside), sorted(os.listdir(outside))) == before
    assert set(os.listdir(bench.root)) == {"folder", "link"}


def test_a_folder_swapped_for_a_link_while_it_is_listed_is_not_entered(bench: Bench, outside: Path, hide: Hide) -> None:
    hide("rg")
    folder, link = bench.root / "folder", bench.root / "link"
    folder.mkdir()
    (folder / "inside.txt").write_text("inside")
    link.symlink_to(outside)
    entered = passed_by = 0
    with swapping(folder, link):
        deadline = time.monotonic() + 30
        while min(entered, passed_by) < 10 and time.monotonic() < deadline:
            for tool, arguments in (("list_directory", {"recursive": True}), ("glob_search", {"pattern": "*.txt"})):
                text = bench.call(tool, **arguments).text
                assert "secret.txt" not in text
                entered += "inside.txt" in text
                passed_by += "inside.txt" not in text
    assert min(entered, passed_by) >= 10, "it was always the same, so this showed nothing"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home" / "user"
    path.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(path))
    return path


@pytest.mark.parametrize(
    ("place", "part"),
    [
        ("/", "may not be /"),
        ("{home}", "may not be"),
        ("{home}/project/..", "may not be"),
        ("{link}", "may not be"),
        ("{home}/..", "one within the other"),
        ("{home}/.pawan", "one within the other"),
        ("{home}/.pawan/tmp", "one within the other"),
        ("{home}/no", "does not exist"),
        ("{home}/file", "no folder"),
    ],
)
def test_a_workspace_that_would_hand_out_too_much_is_refused(home: Path, tmp_path: Path, place: str, part: str) -> None:
    (home / ".pawan" / "tmp").mkdir(parents=True)
    (home / "project").mkdir()
    (home / "file").touch()
    link = tmp_path / "link"
    link.symlink_to(home)
    with pytest.raises(ConfigError, match=part):
        check_place(Path(place.format(home=home, link=link)), [home / ".pawan"])


def test_a_private_folder_behind_a_link_counts_where_it_really_is(home: Path) -> None:
    project = home / "project"
    (project / "state").mkdir(parents=True)
    (home / ".pawan").symlink_to(project / "state")
    with pytest.raises(ConfigError, match="one within the other"):
        check_place(project, [home / ".pawan"])


def test_a_project_in_the_home_is_a_good_workspace(home: Path) -> None:
    (home / "project").mkdir()
    check_place(home / "project", [home / ".pawan", home / ".config" / "pawan"])


def test_a_missing_folder_is_no_workspace(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        Workspace(tmp_path / "no")
