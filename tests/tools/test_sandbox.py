"""What a command can reach from inside bubblewrap, and what is said where there is none."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pawand import config
from pawand.tools.sandbox import Sandbox
from pawand.tools.workspace import Workspace
from tests.tools.conftest import SECRET, Bench, Hide, MakeBench, needs_bwrap, needs_git, needs_root, swapping, tree

pytestmark = needs_bwrap


@pytest.mark.parametrize(
    "place",
    [
        "/usr/made",
        "/etc/made",
        "/opt/made",
        "/usr/local/bin/made",
        "/boot/made",
        "/var/made",
        "/srv/made",
        "/made",
        "/home/made",
    ],
)
def test_nothing_is_written_to_the_system(caged: Bench, place: str) -> None:
    caged.bash(f"mkdir -p $(dirname {place}); echo x > {place}")
    assert not Path(place).exists()


@pytest.mark.parametrize(
    "command",
    ["echo x >> /etc/hostname", "rm -f /etc/hostname", "chmod 777 /etc", "mount -o remount,rw /etc", "umount /etc"],
)
def test_the_system_cannot_be_changed(caged: Bench, command: str) -> None:
    before = Path("/etc/hostname").read_bytes() if Path("/etc/hostname").exists() else b""
    assert not caged.bash(command)["success"]
    assert (Path("/etc/hostname").read_bytes() if before else b"") == before


def test_the_workspace_is_writable_and_what_is_beside_it_is_not_there(caged: Bench, outside: Path) -> None:
    assert caged.out("echo made > file; mkdir -p a/b; cat file") == "made\n"
    assert tree(caged.root) == {"file": b"made\n"}
    assert not caged.bash(f"cat {outside}/secret.txt")["success"]
    caged.bash(f"mkdir -p {outside}; echo x > {outside}/made; echo x > ../made; rm -rf {outside}/*")
    assert tree(outside) == {"secret.txt": SECRET.encode()}
    assert not (caged.root.parent / "made").exists()


def test_links_out_of_the_workspace_lead_nowhere(caged: Bench, outside: Path, shown_place: Path) -> None:
    (shown_place / "file").write_text("system\n")
    (caged.root / "link").symlink_to(outside)
    (caged.root / "system").symlink_to(shown_place)
    assert not caged.bash("cat link/secret.txt")["success"]
    assert caged.out("cat system/file") == "system\n"
    assert not caged.bash("echo x > system/file")["success"]
    assert not caged.bash("echo x > link/made")["success"]


@needs_git
@pytest.mark.parametrize("kind", ["no repository", "a repository", "a worktree", "a worktree inside", "hooks alone"])
def test_a_command_gets_no_open_file_but_its_own_three(
    kind: str, root: Path, outside: Path, make_bench: MakeBench
) -> None:
    """One that leads to a folder of the mounts outside would lead on to all of the machine."""
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "init.defaultBranch=main", "-C"]
    main = root / "inner" if kind == "a worktree inside" else root if kind == "a repository" else outside / "main"
    if "repository" in kind or "worktree" in kind:
        subprocess.run(["git", "init", "-q", main], check=True)
        subprocess.run([*git, main, "commit", "-q", "--allow-empty", "-m", "m"], check=True)
    if "worktree" in kind:
        subprocess.run([*git, main, "worktree", "add", "-q", root / "tree"], check=True)
        (root / ".git").write_text((root / "tree" / ".git").read_text())
    if kind == "hooks alone":
        (root / ".git" / "hooks").mkdir(parents=True)
    if kind == "no repository":
        assert not (root / ".git").exists()
    bench = make_bench("require")
    found = bench.out(
        "python3 -c \"import os; print([n for n in range(3, 1000) if os.path.exists(f'/proc/self/fd/{n}')])\""
    )
    assert found == "[]\n"
    assert SECRET not in bench.bash("cat /proc/self/fd/*/../../outside/secret.txt")["stdout"]


@pytest.fixture
def shown_home(shown_place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home within what the sandbox shows: only hiding it hides it."""
    home = shown_place / "user"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "id_ed25519").write_text(SECRET)
    (home / ".cargo" / "bin").mkdir(parents=True)
    (home / ".cargo" / "bin" / "tool").write_text("#!/bin/sh\necho tool runs\n")
    (home / ".cargo" / "bin" / "tool").chmod(0o755)
    (home / ".cargo" / "credentials.toml").write_text(SECRET)
    monkeypatch.setenv("HOME", str(home))
    return home


def test_the_home_is_hidden_but_for_toolchains(shown_home: Path, make_bench: MakeBench) -> None:
    bench = make_bench("require")
    assert bench.out("ls -A ~") == ".cargo\n"
    assert bench.out("ls -A ~/.cargo; ~/.cargo/bin/tool") == "bin\ntool runs\n"
    found = bench.bash(f"grep -r {SECRET[:8]} {shown_home.parent}")
    assert found["exit_code"] == 1, found
    bench.out("echo x > ~/made; cat ~/made")
    assert not (shown_home / "made").exists()
    assert not bench.bash("echo x > ~/.cargo/bin/tool")["success"]


def test_a_home_behind_a_link_is_hidden_too(
    shown_home: Path, make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = shown_home.parent / "link"
    link.symlink_to(shown_home)
    monkeypatch.setenv("HOME", str(link))
    bench = make_bench("require")
    assert bench.out("~/.cargo/bin/tool; ls -A ~") == "tool runs\n.cargo\n"
    for place in (shown_home, link):
        assert SECRET not in bench.bash(f"cat {place}/.ssh/id_ed25519")["stdout"]
    bench.out("echo x > ~/made")
    assert not (shown_home / "made").exists()


def test_a_link_in_the_system_may_be_named_in_the_settings(
    shown_place: Path, tmp_path: Path, make_bench: MakeBench
) -> None:
    kit = tmp_path / "kit"
    kit.mkdir()
    (kit / "file").write_text("kit\n")
    (shown_place / "link").symlink_to(kit)
    bench = make_bench("require", read_only_paths=[shown_place / "link"])
    assert bench.out(f"cat {shown_place}/link/file") == "kit\n"


def test_a_workspace_in_the_home_is_the_only_thing_seen_of_it(shown_home: Path, tmp_path: Path) -> None:
    project = shown_home / "project"
    project.mkdir()
    (project / "file").write_text("mine\n")
    workspace = Workspace(project)
    bench = Bench(workspace, Sandbox.probe(config.Sandbox(), workspace, tmp_path / "scratch", []))
    assert bench.out("cat file; ls -A ~") == "mine\n.cargo\nproject\n"
    workspace.close()


def test_private_folders_are_hidden(shown_place: Path, make_bench: MakeBench) -> None:
    state = shown_place / "state"
    state.mkdir()
    (state / "token").write_text(SECRET)
    (shown_place / "beside").write_text("shown\n")
    bench = make_bench("require", hidden=[state, shown_place / "not-there"])
    assert bench.out(f"cat {shown_place}/beside; ls -A {state}") == "shown\n"


@pytest.mark.parametrize("shown", ["read_only_paths", "writable_paths"])
@pytest.mark.parametrize("place", ["the folder above", "the folder itself", "behind a link"])
def test_no_setting_shows_a_private_folder(tmp_path: Path, make_bench: MakeBench, shown: str, place: str) -> None:
    data = tmp_path / "data"
    state = data / "state"
    state.mkdir(parents=True)
    (state / "token").write_text(SECRET)
    (data / "beside").write_text("shown\n")
    hidden = state
    if place == "behind a link":
        hidden = tmp_path / "link"
        hidden.symlink_to(state)
    paths = [state if place == "the folder itself" else data]
    bench = make_bench("require", hidden=[hidden], **{shown: paths})
    assert SECRET not in bench.bash(f"cat {state}/token {hidden}/token")["stdout"]
    if place != "the folder itself":
        assert bench.out(f"cat {data}/beside") == "shown\n"


def test_paths_of_the_settings_are_shown_and_writable(tmp_path: Path, make_bench: MakeBench) -> None:
    kit, cache = tmp_path / "kit", tmp_path / "cache"
    for folder in (kit, cache):
        folder.mkdir()
        (folder / "file").write_text(f"{folder.name}\n")
    bench = make_bench("require", read_only_paths=[kit, tmp_path / "no"], writable_paths=[cache, tmp_path / "no-too"])
    assert bench.out(f"cat {kit}/file {cache}/file") == "kit\ncache\n"
    assert not bench.bash(f"echo x > {kit}/file")["success"]
    bench.out(f"echo new > {cache}/file")
    assert (cache / "file").read_text() == "new\n"
    assert (kit / "file").read_text() == "kit\n"
    assert not (tmp_path / "no-too").exists()


def test_a_path_in_the_home_may_be_shown_by_name(shown_home: Path, make_bench: MakeBench) -> None:
    (shown_home / "sdk").mkdir()
    (shown_home / "sdk" / "file").write_text("sdk\n")
    bench = make_bench("require", read_only_paths=[Path("~/sdk")])
    assert bench.out("cat ~/sdk/file") == "sdk\n"
    assert not bench.bash("cat ~/.ssh/id_ed25519")["success"]


def test_showing_what_is_above_the_home_does_not_show_the_home(
    tmp_path: Path, make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "homes" / "user"
    home.mkdir(parents=True)
    (home / "secret").write_text(SECRET)
    (tmp_path / "homes" / "shared").write_text("shared\n")
    monkeypatch.setenv("HOME", str(home))
    bench = make_bench("require", read_only_paths=[tmp_path / "homes"])
    assert bench.out(f"cat {home.parent}/shared; ls -A ~") == "shared\n"


@needs_root
def test_files_of_root_alone_are_not_readable(caged: Bench) -> None:
    private = [
        path
        for path in Path("/etc").rglob("*")
        if path.is_file() and not path.is_symlink() and not path.stat().st_mode & stat.S_IROTH
    ]
    assert Path("/etc/shadow") in private
    assert Path("/etc/shadow").stat().st_size > 0
    for path in private:
        assert caged.bash(f"cat {path}")["stdout"] == ""
    assert not caged.bash("cat /etc/shadow")["success"]
    assert caged.out("head -c 5 /etc/passwd") == "root:"


CONNECT = (
    "python3 -c \"import socket; s = socket.create_connection(('127.0.0.1', {port}), 3); print(s.recv(10).decode())\""
)


@pytest.fixture
def port() -> Iterator[int]:
    """A server on loopback that greets."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server.getsockname()[1]


def test_there_is_no_network(caged: Bench, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 3):
        pass
    result = caged.bash(f"python3 -c \"import socket; socket.create_connection(('127.0.0.1', {port}), 3)\"")
    assert "ConnectionRefusedError" in result["stderr"]
    assert caged.out("tail -n +3 /proc/net/dev | cut -d: -f1").split() == ["lo"]
    assert caged.out("tail -n +2 /proc/net/route") == ""


def test_the_network_may_be_configured(make_bench: MakeBench, port: int) -> None:
    bench = make_bench("require", network=True)
    assert (
        bench.out(f"python3 -c \"import socket; socket.create_connection(('127.0.0.1', {port}), 3); print('in')\"")
        == "in\n"
    )


def test_an_abstract_socket_is_out_of_reach(caged: Bench) -> None:
    name = f"pawand-{secrets.token_hex(6)}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        code = f"import socket; socket.socket(socket.AF_UNIX).connect('\\0{name}')"
        assert "ConnectionRefusedError" in caged.bash(f'python3 -c "{code}"')["stderr"]


def test_other_processes_are_not_seen(caged: Bench) -> None:
    marker = f"1000{secrets.randbelow(10**12):012d}"
    with subprocess.Popen(["sleep", marker]) as sleeper:
        try:
            assert marker not in caged.out("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
            assert int(caged.out("ls -d /proc/[0-9]* | wc -l")) < 12
        finally:
            sleeper.kill()


def test_no_namespace_can_be_made_inside(caged: Bench) -> None:
    assert not caged.bash("unshare --user --map-root-user true")["success"]


def test_there_are_no_disks_in_dev(caged: Bench) -> None:
    assert caged.out("find /dev -type b") == ""
    assert not caged.bash("ls /sys/class")["success"]
    assert caged.out("echo x > /dev/null; head -c 3 /dev/zero | wc -c") == "3\n"


def test_bwrap_itself_was_started_with_a_clean_environment(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    seen = make_bench("require").out("tr '\\0' '\\n' < /proc/1/environ")
    assert "TERM=dumb" in seen
    assert "SOME_TOKEN" not in seen


def test_tmp_is_private_to_a_session_and_kept_between_its_commands(workspace: Workspace, tmp_path: Path) -> None:
    sandbox = Sandbox.probe(config.Sandbox(), workspace, tmp_path / "scratch", [])
    one, other = Bench(workspace, sandbox, session_id="one"), Bench(workspace, sandbox, session_id="other")
    name = f"pawand-{secrets.token_hex(6)}"
    one.out(f"echo mine > /tmp/{name}")
    assert one.out(f"cat $TMPDIR/{name}") == "mine\n"
    assert not other.bash(f"cat /tmp/{name}")["success"]
    assert not Path(f"/tmp/{name}").exists()
    assert stat.S_IMODE((tmp_path / "scratch" / "one").stat().st_mode) == 0o700
    sandbox.forget("one")
    assert not (tmp_path / "scratch" / "one").exists()
    assert not one.bash(f"cat /tmp/{name}")["success"]


def test_what_an_earlier_daemon_left_in_the_scratch_folder_is_removed(make_bench: MakeBench, tmp_path: Path) -> None:
    old = tmp_path / "state" / "tmp" / "old-session"
    old.mkdir(parents=True)
    (old / "file").write_text("old")
    make_bench("require")
    assert not old.exists()


def test_python_runs(caged: Bench) -> None:
    assert caged.out("python3 -c 'print(6 * 7)'") == "42\n"


# --- git ------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    done = subprocess.run(["git", *arguments], cwd=folder, env=env, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def repository(root: Path) -> Path:
    (Path.home() / ".gitconfig").write_text(
        "[user]\n\tname = Ada Lovelace\n\temail = ada@example.org\n[init]\n\tdefaultBranch = main\n"
    )
    git(root, "init", "--quiet")
    (root / ".git" / "hooks").mkdir(exist_ok=True)
    (root / "file").write_text("one\n")
    return root


@needs_git
def test_commits_work_and_carry_the_user_s_name(repository: Path, make_bench: MakeBench) -> None:
    bench = make_bench("require")
    bench.out("git add file && git commit --quiet -m first && git checkout --quiet -b topic")
    assert (
        git(repository, "log", "--format=%an %ae %cn %ce %s")
        == "Ada Lovelace ada@example.org Ada Lovelace ada@example.org first\n"
    )
    assert git(repository, "branch", "--show-current") == "topic\n"


@needs_git
@pytest.mark.parametrize(
    "command",
    [
        "echo evil > .git/hooks/pre-commit",
        "git config core.hooksPath /tmp",
        "echo evil >> .git/config",
        "mv .git/hooks .git/old",
        "rm -rf .git/hooks",
        "rm -f .git/config",
        "ln -sf /tmp .git/hooks/link",
        "umount .git/hooks",
        "mount -o remount,rw .git/config",
    ],
)
def test_hooks_and_settings_of_git_are_read_only(repository: Path, make_bench: MakeBench, command: str) -> None:
    before = tree(repository / ".git")
    result = make_bench("require").bash(command)
    assert not result["success"], result
    assert tree(repository / ".git") == before


@needs_git
@pytest.mark.slow
@pytest.mark.parametrize("name", ["config", "hooks"])
def test_a_part_of_git_swapped_for_a_link_shows_nothing_of_the_machine(
    repository: Path, make_bench: MakeBench, shown_place: Path, outside: Path, name: str
) -> None:
    """What is mounted is what was there when it was looked at, wherever its name leads afterwards."""
    (outside / "inner.txt").write_text(SECRET)
    link, target = repository / ".git" / "link", repository / ".git" / name
    link.symlink_to(outside / "secret.txt" if name == "config" else outside)
    bench = make_bench("auto")

    async def main() -> None:
        for _ in range(10):
            calls = (bench.run("bash", command=f"cat .git/{name} .git/{name}/*; true") for _ in range(20))
            for outcome in await asyncio.gather(*calls):
                assert SECRET not in outcome.text

    with swapping(target, link) as swaps:
        asyncio.run(main())
    assert swaps[0] > 100


def test_the_git_file_of_a_worktree_is_read_only(repository: Path, make_bench: MakeBench) -> None:
    (repository / ".git").rename(repository / "real")
    (repository / ".git").write_text("gitdir: real\n")
    bench = make_bench("require")
    assert bench.out("git status --short file") == "?? file\n"
    assert not bench.bash("echo 'gitdir: evil' > .git")["success"]
    assert not bench.bash("rm -f .git")["success"]
    assert (repository / ".git").read_text() == "gitdir: real\n"


def test_the_repository_that_a_git_file_leads_to_is_read_only_where_it_counts(repository: Path, tmp_path: Path) -> None:
    (repository / ".git").rename(repository / "real")
    (repository / ".git").write_text("gitdir: real\n")
    workspace = Workspace(repository)
    made = Bench(workspace, Sandbox.probe(config.Sandbox(mode="require"), workspace, tmp_path / "other", []))
    assert made.out("git status --short file") == "?? file\n"
    assert not made.bash("echo '[core]' >> real/config")["success"]
    assert not made.bash("echo evil > real/hooks/post-checkout")["success"]
    workspace.close()


@pytest.mark.parametrize("linked", [".git/hooks", ".git", ".git/config"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_target_of_a_link_in_the_place_of_git_s_is_not_mounted(
    caged: Bench, outside: Path, linked: str, kind: str
) -> None:
    (outside / "hooks").mkdir()
    (outside / "hooks" / "secret.txt").write_text(SECRET)
    (outside / "config").write_text(SECRET)
    link = caged.root / linked
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside if kind == "folder" else outside / "secret.txt")
    result = caged.bash("cat .git .git/* .git/*/*; ls -lR .git/")
    assert SECRET not in result["stdout"]
    assert caged.out("echo works") == "works\n"


# --- virtual environments -------------------------------------------------------------------------


def plant_venv(root: Path, text: str) -> None:
    (root / ".venv").mkdir()
    (root / ".venv" / "pyvenv.cfg").write_text(text)


def test_the_word_of_a_stranger_s_venv_shows_nothing(tmp_path: Path, root: Path, make_bench: MakeBench) -> None:
    folder = tmp_path / "private" / "bin"
    folder.mkdir(parents=True)
    (folder / "python3").write_text("#!/bin/sh\n")
    (folder / "python3").chmod(0o755)
    (folder.parent / "secret").write_text(SECRET)
    plant_venv(root, f"home = {folder}\n")
    assert not make_bench("require").bash(f"cat {folder.parent}/secret")["success"]


@pytest.mark.parametrize("kind", ["fifo", "binary", "link out", "folder", "empty"])
def test_a_strange_venv_does_not_hinder_the_start(root: Path, outside: Path, make_bench: MakeBench, kind: str) -> None:
    file = root / ".venv" / "pyvenv.cfg"
    file.parent.mkdir()
    match kind:
        case "fifo":
            os.mkfifo(file)
        case "binary":
            file.write_bytes(b"home = \xff\0\n")
        case "link out":
            file.symlink_to(outside / "secret.txt")
        case "folder":
            file.mkdir()
        case _:
            file.write_text("home\n")

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError("the start hangs")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(5)
    try:
        assert make_bench("require").out("echo works") == "works\n"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


# --- modes ----------------------------------------------------------------------------------------


def test_the_status_says_bwrap(caged: Bench) -> None:
    assert (caged.sandbox.status.word, caged.sandbox.status.reason) == ("bwrap", "")
    assert caged.sandbox.usable


def test_off_is_off(make_bench: MakeBench, outside: Path) -> None:
    bench = make_bench("off")
    assert bench.sandbox.status.word == "off"
    assert "mode is off" in bench.sandbox.status.reason
    assert bench.sandbox.usable
    assert bench.out(f"cat {outside}/secret.txt") == SECRET


def test_without_bwrap_auto_goes_on_and_says_so(make_bench: MakeBench, hide: Hide) -> None:
    hide("bwrap")
    bench = make_bench("auto")
    assert bench.sandbox.status.word == "unavailable"
    assert "bubblewrap is not installed" in bench.sandbox.status.reason
    assert bench.out("echo works") == "works\n"


def test_without_bwrap_require_starts_nothing_and_says_why(make_bench: MakeBench, hide: Hide) -> None:
    hide("bwrap")
    bench = make_bench("require")
    assert bench.sandbox.status.word == "unavailable"
    assert not bench.sandbox.usable
    error = bench.refused("bash", command="touch made")
    assert "mode is require" in error
    assert "bubblewrap is not installed" in error
    assert tree(bench.root) == {}
    bench.ok("write_file", path="file", content="files still work")


def test_with_bwrap_require_is_like_auto(make_bench: MakeBench) -> None:
    bench = make_bench("require")
    assert bench.sandbox.status.word == "bwrap"
    assert bench.out("echo works") == "works\n"


@pytest.mark.parametrize("mode", ["auto", "require"])
def test_a_bwrap_that_does_not_work_is_as_none_and_its_words_are_told(
    make_bench: MakeBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    fake = tmp_path / "bin" / "bwrap"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    bench = make_bench("auto" if mode == "auto" else "require")
    assert bench.sandbox.status.word == "unavailable"
    assert "setting up uid map: Permission denied" in bench.sandbox.status.reason
    if mode == "require":
        assert "Permission denied" in bench.refused("bash", command="true")
    else:
        assert bench.out("echo works") == "works\n"
