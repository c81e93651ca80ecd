"""One table of what a command may try, run in bubblewrap and without it, and a home with real toolchains."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pawand import config
from pawand.tools.sandbox import Sandbox
from pawand.tools.workspace import Workspace
from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.tools.conftest import SECRET, Bench, Hide, MakeBench, needs_bwrap, poll, running, tree

ROOT = os.geteuid() == 0
STILL, LOST = True, False
NAMESPACES = ("user", "pid", "ipc", "uts", "net", "mnt", "cgroup")
CONNECT = "python3 -c \"import socket; socket.create_connection(('{}', {}), 3); print('OUT')\""

# What is tried, and whether it is held back without bubblewrap too. In it, all is. A command gets out when it says
# OUT, changes the folder outside, or leaves a process behind.
PROBES = {
    "read beside the workspace": ("grep -q {secret} {outside}/secret.txt && echo OUT", LOST),
    "read through a link": ("ln -s {outside} link; grep -q {secret} link/secret.txt && echo OUT", LOST),
    "write beside the workspace": ("mkdir -p {outside}; echo x > {outside}/made", LOST),
    "write through a link": ("ln -s {outside} link; echo x > link/made", LOST),
    "delete beside the workspace": ("rm -rf {outside}/*", LOST),
    "rename out of the workspace": ("echo x > made; mkdir -p {outside}; mv made {outside}/", LOST),
    "link out of the workspace": ("echo x > made; ln made {outside}/made", LOST),
    "read the home": ("grep -rq {secret} ~/.ssh && echo OUT", LOST),
    "read what only root may": ("grep -q : /etc/shadow && echo OUT", not ROOT),
    "capabilities": ("grep -q 'CapEff:.0*$' /proc/self/status || echo OUT", not ROOT),
    "new privileges": ("grep -q 'NoNewPrivs:.1' /proc/self/status || echo OUT", LOST),
    "a server of this machine": (CONNECT.format("127.0.0.1", "{port}"), LOST),
    "an abstract socket": (
        "python3 -c \"import socket; socket.socket(socket.AF_UNIX).connect('\\0{name}'); print('OUT')\"",
        LOST,
    ),
    "the list of processes": ("grep -q {sleeper} /proc/[0-9]*/cmdline && echo OUT", LOST),
    "the environment of another process": ("grep -qa {secret} /proc/[0-9]*/environ && echo OUT", LOST),
    "signal another process": ("kill -0 {process} && echo OUT", LOST),
    "the temporary folder of all": ("[ -e {shared} ] && echo OUT", LOST),
    "shared memory": ("[ -e /dev/shm/{name} ] && echo OUT", LOST),
    "/run": ('[ "$(ls -A /run)" ] && echo OUT', LOST),
    "/sys": ("[ -e /sys/class ] && echo OUT", LOST),
    "git's hooks": ("echo x > .git/hooks/pre-commit && echo OUT", LOST),
    "git's settings": ("echo x >> .git/config && echo OUT", LOST),
    **{f"the {name} namespace": (f"[ -e /proc/self/ns/{name} ] && [ $(readlink /proc/self/ns/{name}) = {{{name}}} ] "
                                 "&& echo OUT", LOST) for name in NAMESPACES},
    "its own environment": ("env | grep -q {secret} && echo OUT", STILL),
    "the daemon's open files": ("ls -l /proc/self/fd | grep -q {held} && echo OUT", STILL),
    "a folder that is open": ("for n in $(seq 3 99); do [ -d /proc/$$/fd/$n/. ] && echo OUT; done", STILL),
    "a terminal": ("(echo x > /dev/tty) 2> /dev/null && echo OUT", STILL),
    "a process left behind": ("(setsid sh -c 'trap \"\" TERM HUP; sleep {marker}; sleep {marker}' &)", STILL),
    "the end of what runs it": ("(setsid sleep {marker} &); kill -9 $PPID; sleep 0.1", STILL),
}  # fmt: skip


@pytest.fixture(params=[pytest.param("bwrap", marks=needs_bwrap), "absent"])
def probed(request: pytest.FixtureRequest, make_bench: MakeBench, hide: Hide, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    if request.param == "absent":
        hide("bwrap")
    bench = make_bench("auto")
    assert bench.sandbox.status.word == ("bwrap" if request.param == "bwrap" else "unavailable")
    return bench


@pytest.fixture
def bait(root: Path, outside: Path) -> Iterator[dict[str, object]]:
    """What the probes look for; the names of the table's gaps."""
    (Path.home() / ".ssh").mkdir()
    (Path.home() / ".ssh" / "id_ed25519").write_text(SECRET)
    (root / ".git" / "hooks").mkdir(parents=True)
    (root / ".git" / "config").touch()
    name, sleeper = f"pawand-{secrets.token_hex(6)}", f"1000{secrets.randbelow(10**12):012d}"
    shared, memory, held = Path("/tmp", name), Path("/dev/shm", name), outside.parent / f"held-{name}"
    for file in (shared, memory):
        file.touch()
    filled: dict[str, object] = {
        "secret": SECRET,
        "outside": outside,
        "name": name,
        "sleeper": f"[{sleeper[0]}]{sleeper[1:]}",
    }
    filled |= {"marker": f"1000{secrets.randbelow(10**12):012d}", "shared": shared, "held": held.name}
    filled |= {space: os.readlink(f"/proc/self/ns/{space}") for space in NAMESPACES}
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
        held.open("w"),
        subprocess.Popen(["sleep", sleeper], env={"KEY": SECRET}) as process,
    ):
        abstract.bind(f"\0{name}")
        abstract.listen()
        yield filled | {"port": server.getsockname()[1], "process": process.pid}
        process.kill()
    shared.unlink()
    memory.unlink()


@pytest.mark.parametrize("name", PROBES)
def test_what_is_held_back_with_bwrap_and_without(
    probed: Bench, bait: dict[str, object], outside: Path, name: str
) -> None:
    command, without = PROBES[name]
    if name == "/run" and not os.listdir("/run"):
        pytest.skip("there is nothing in /run")
    for gap, value in bait.items():
        command = command.replace(f"{{{gap}}}", str(value))
    result = probed.bash(command)
    left = not poll(lambda: not running(str(bait["marker"])), 1)
    got_out = "OUT" in result["stdout"] or tree(outside) != {"secret.txt": SECRET.encode()} or left
    assert got_out == (probed.sandbox.status.word != "bwrap" and without is LOST), result


# --- a home with toolchains -----------------------------------------------------------------------

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
PRIVATE = [
    *(".ssh/id_ed25519", ".aws/credentials", ".netrc", ".config/gh/hosts.yml", ".bash_history", ".gnupg/key"),
    *(".cargo/credentials.toml", ".git-credentials", ".npmrc", ".pypirc", ".docker/config.json", ".kube/config"),
    *(".local/share/keyrings/login.keyring", ".local/state/file", ".mozilla/firefox/key4.db", "Documents/letter.txt"),
]


def copy_interpreter(prefix: Path) -> None:
    """The running interpreter's own prefix, without the packages that were installed into it."""
    base = Path(sys.base_prefix)
    library = f"lib/python{VERSION}"
    left_out = shutil.ignore_patterns("site-packages", "test", "__pycache__", "config-*", "idlelib", "*.a")
    shutil.copytree(base / library, prefix / library, ignore=left_out, symlinks=True)
    (prefix / library / "site-packages").mkdir()
    for file in base.glob(f"lib/libpython{VERSION}*.so*"):
        shutil.copy2(file, prefix / "lib", follow_symlinks=False)
    (prefix / "bin").mkdir()
    shutil.copy2(base / "bin" / f"python{VERSION}", prefix / "bin")
    for name in ("python", "python3"):
        (prefix / "bin" / name).symlink_to(f"python{VERSION}")


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home as pyenv, uv and cargo leave it, with secrets, and `project` in it with a venv of pyenv's and of uv's."""
    home = tmp_path_factory.mktemp("settled")
    pyenv = home / ".pyenv" / "versions" / VERSION
    uv = home / ".local" / "share" / "uv" / "python" / f"cpython-{VERSION}-linux"
    copy_interpreter(pyenv)
    shutil.copytree(pyenv, uv, symlinks=True)
    script(home / ".pyenv" / "shims" / "python", f'exec "{pyenv}/bin/python" "$@"')
    script(home / ".cargo" / "bin" / "cargo", "echo cargo runs")
    (home / ".local" / "bin").mkdir()
    (home / ".local" / "bin" / "python-of-uv").symlink_to(uv / "bin" / f"python{VERSION}")
    for name in PRIVATE:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(SECRET)
    for python, name in ((pyenv / "bin" / "python", ".venv"), (uv / "bin" / "python", "venv")):
        subprocess.run([python, "-I", "-m", "venv", home / "project" / name], check=True, capture_output=True)
    return home


@pytest.fixture
def at_home(settled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("HOME", str(settled))
    places = [settled / ".pyenv" / "shims", settled / ".local" / "bin", settled / ".cargo" / "bin"]
    monkeypatch.setenv("PATH", ":".join([*map(str, places), os.environ["PATH"]]))
    workspace = Workspace(settled / "project")
    yield Bench(workspace, Sandbox.probe(config.Sandbox(mode="require"), workspace, tmp_path / "scratch", []))
    workspace.close()


IMPORT = "-c 'import ssl, json, sqlite3, sys; print(sys.base_prefix)'"


@needs_bwrap
@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (f"python {IMPORT}", "{home}/.pyenv/versions/{version}\n"),
        (f"~/.pyenv/versions/{VERSION}/bin/python3 {IMPORT}", "{home}/.pyenv/versions/{version}\n"),
        (f".venv/bin/python {IMPORT}", "{home}/.pyenv/versions/{version}\n"),
        (f"python-of-uv {IMPORT}", "{home}/.local/share/uv/python/cpython-{version}-linux\n"),
        (f"venv/bin/python {IMPORT}", "{home}/.local/share/uv/python/cpython-{version}-linux\n"),
        (".venv/bin/pip --version | cut -d' ' -f1", "pip\n"),
        ("venv/bin/pip --version | cut -d' ' -f1", "pip\n"),
        (". .venv/bin/activate && python -c 'import sys; print(sys.prefix)'", "{home}/project/.venv\n"),
        ("cargo", "cargo runs\n"),
        ("ls -A ~", ".cargo\n.local\n.pyenv\nproject\n"),
        ("ls -A ~/.cargo ~/.local ~/.local/share | sort -u | tail -n +2 | tr '\\n' ' '", None),
    ],
)
def test_toolchains_of_the_home_run(at_home: Bench, command: str, answer: str | None) -> None:
    out = at_home.out(command)
    if answer is None:
        assert not {"credentials.toml", "keyrings", "state"} & set(out.split())
        assert {"bin", "uv"} <= set(out.split())
    else:
        assert out == answer.format(home=Path.home(), version=VERSION)


@needs_bwrap
@pytest.mark.slow
def test_nothing_private_of_the_home_is_seen_beside_its_toolchains(at_home: Bench) -> None:
    places = " ".join(f"~/{name}" for name in PRIVATE)
    assert at_home.out(f"for file in {places}; do [ -e $file ] && echo $file; done; true") == ""
    assert at_home.bash(f"grep -rl {SECRET} ~")["exit_code"] == 1
    for place in (f".pyenv/versions/{VERSION}/bin/python", ".local/bin/new", ".cargo/bin/cargo", ".pyenv/shims/python"):
        assert not at_home.bash(f"echo x > ~/{place}")["success"]


# --- the daemon -----------------------------------------------------------------------------------

REACH = "; ".join(CONNECT.format(host, "{port}") for host in ("127.0.0.1", "::1"))


def tried(pawand: harness.Process, upstream: OpenAIServer, command: str) -> str:
    """What the model gets of a command that it runs in this daemon."""
    command = command.replace("{port}", pawand.url.rpartition(":")[2].strip("/"))
    command = command.replace("{pid}", str(pawand.process.pid))
    assert not callable(upstream.script)
    upstream.script = [*upstream.script, fake.calls(("bash", {"command": command})), fake.text("done")]
    assert pawand.call("POST", "/chat", {"message": "try it", "session_id": secrets.token_hex(4)})[0] == 200
    answer = upstream.requests[-1]["messages"][-1]
    assert answer["role"] == "tool"
    return str(answer["content"])


def key_in(place: str) -> str:
    """A command that looks for the daemon's key without having it in its own arguments."""
    return f'grep -qa "$(printf %s%s {harness.API_KEY[:9]} {harness.API_KEY[9:]})" /proc/{{pid}}/{place} && echo OUT'


@needs_bwrap
def test_a_command_in_bwrap_cannot_reach_the_daemon(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        health = pawand.call("GET", "/health")[1]
        assert (health["status"], health["sandbox"]) == ("ok", "bwrap")
        result = tried(pawand, upstream, REACH)
        assert result.count("ConnectionRefusedError") + result.count("Cannot assign requested address") == 2, result
        assert "OUT" not in result.replace("'OUT'", "")
        assert "No such file" in tried(pawand, upstream, f"{key_in('environ')}; cat /proc/{{pid}}/mem")


def test_without_bwrap_health_says_so_and_what_still_holds(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str], path_without: Callable[[str], str]
) -> None:
    env |= {"PATH": path_without("bwrap")}
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        health = pawand.call("GET", "/health")[1]
        assert (health["status"], health["sandbox"]) == ("ok", "unavailable")
        assert any("bubblewrap is not installed" in reason for reason in health["reasons"])
        assert "OUT" in tried(pawand, upstream, REACH).replace("'OUT'", "")
        assert '"stdout":""' in tried(pawand, upstream, key_in("environ")).replace(": ", ":")
        if not ROOT:
            assert "Permission denied" in tried(pawand, upstream, "cat /proc/{pid}/mem /proc/{pid}/environ")
    assert "commands run without a sandbox" in pawand.log_text()


def test_where_a_sandbox_is_required_and_missing_health_is_degraded_and_nothing_runs(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str], path_without: Callable[[str], str]
) -> None:
    env |= {"PATH": path_without("bwrap")}
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config='[sandbox]\nmode = "require"\n') as pawand:
        health = pawand.call("GET", "/health")[1]
        assert (health["status"], health["sandbox"]) == ("degraded", "unavailable")
        assert any("mode is require" in reason for reason in health["reasons"])
        assert pawand.call("GET", "/ready") == (503, {"ready": False, "reasons": health["reasons"]})
        assert "mode is require" in tried(pawand, upstream, "touch made")
    assert not (tmp_path / "w" / "made").exists()
