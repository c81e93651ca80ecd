"""Shell completion as bash does it: the script is sourced, its function is called, its answer is read."""

from __future__ import annotations

import json
import os
import resource
import shlex
import statistics
import subprocess
from pathlib import Path

import pytest

from tests import harness

MAX_SECS = 0.15


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "w").mkdir()
    return tmp_path / "w"


def environ(folder: Path, **more: str) -> dict[str, str]:
    found = harness.environment(Path(os.environ["HOME"]), folder.parent / "s", **more)
    return found | {"PATH": f"{harness.COMMAND.parent}:{found['PATH']}"}


def offered(folder: Path, *words: str, **more: str) -> list[str]:
    """What bash offers for the last of the words; nothing may be said on standard error."""
    script = f"""
        source <(pawand completion bash) || exit
        complete -p pawand | grep -q -- '-F _pawand_completion' || exit
        COMP_WORDS=(pawand {shlex.join(words)})
        COMP_CWORD={len(words)}
        _pawand_completion pawand
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    command = ["bash", "--norc", "-c", script]
    answer = subprocess.run(
        command, env=environ(folder, **more), cwd=folder, capture_output=True, text=True, timeout=30, check=True
    )
    assert answer.stderr == ""
    return answer.stdout.split()


def sessions(folder: Path, *ids: str) -> None:
    """Files of sessions; the last one is the newest."""
    made = folder.parent / "s" / "sessions"
    made.mkdir(parents=True, exist_ok=True)
    for number, id in enumerate(ids):
        (made / f"{id}.json").write_text("{}")
        os.utime(made / f"{id}.json", (1_000_000 + number, 1_000_000 + number))


def test_commands_and_options(folder: Path) -> None:
    assert {"serve", "status", "chat", "sessions", "config", "completion"} <= set(offered(folder, ""))
    assert offered(folder, "comp") == ["completion"]
    assert offered(folder, "sessions", "e") == ["export"]
    assert offered(folder, "config", "") == ["get", "path", "set", "show"]
    assert offered(folder, "sessions", "prune", "--d") == ["--dry-run"]
    assert offered(folder, "sessions", "export", "--format", "") == ["markdown", "json"]
    assert offered(folder, "completion", "") == ["bash", "zsh", "fish"]


@pytest.mark.parametrize("command", [["show"], ["delete"], ["delete", "a-1"], ["fork"], ["export"], ["fork", "--json"]])
def test_session_ids_the_newest_first(folder: Path, command: list[str]) -> None:
    sessions(folder, "a-1", "b-1", "a-2")
    (folder.parent / "s" / "sessions" / "-no.json").write_text("{}")
    (folder.parent / "s" / "sessions" / "a-3.journal").write_text("")
    assert offered(folder, "sessions", *command, "") == ["a-2", "b-1", "a-1"]
    (folder.parent / "s" / "sessions" / "b-0.json").symlink_to("nowhere")
    assert offered(folder, "sessions", *command, "a") == ["a-2", "a-1"]


def test_chat_continues_a_session(folder: Path) -> None:
    sessions(folder, "a-1")
    assert offered(folder, "chat", "--session", "") == ["a-1"]


def test_of_many_sessions_the_newest_fifty(folder: Path) -> None:
    sessions(folder, *(f"s{number}" for number in range(120)))
    assert offered(folder, "sessions", "show", "") == [f"s{number}" for number in range(119, 69, -1)]
    assert offered(folder, "sessions", "show", "s11") == [*(f"s{number}" for number in range(119, 109, -1)), "s11"]


def test_the_folder_of_sessions_that_is_configured(folder: Path) -> None:
    other = folder.parent / "elsewhere"
    other.mkdir()
    (other / "mine.json").write_text("{}")
    file = Path(os.environ["HOME"]) / ".config" / "pawan" / "pawan.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f"[sessions]\ndir = {json.dumps(str(other))}\n")
    assert offered(folder, "sessions", "show", "") == ["mine"]
    file.write_text("broken = [")
    assert offered(folder, "sessions", "show", "") == []
    assert offered(folder, "config", "get", "server.p") == ["server.port"]


def test_no_sessions_are_no_error(folder: Path) -> None:
    assert offered(folder, "sessions", "show", "") == []


def test_keys_of_settings(folder: Path) -> None:
    (folder.parent / "c.toml").write_text("[mcp.fs]\ncommand = 'x'\n")
    config = str(folder.parent / "c.toml")
    assert offered(folder, "config", "get", "server.p") == ["server.port"]
    assert offered(folder, "config", "set", "max_t") == ["max_tokens", "max_tool_iterations"]
    assert offered(folder, "config", "get", "mcp.", PAWAND_CONFIG=config) == ["mcp.fs.command"]


def test_peers_of_the_settings(folder: Path) -> None:
    config = folder.parent / "c.toml"
    config.write_text("[peers.build]\naddress = 'a'\n[peers.bench]\naddress = 'b'\n")
    assert offered(folder, "chat", "--peer", "b", PAWAND_CONFIG=str(config)) == ["bench", "build"]
    config.write_text("[")
    assert offered(folder, "chat", "--peer", "b", PAWAND_CONFIG=str(config)) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(folder: Path, shell: str) -> None:
    command = [str(harness.COMMAND), "completion", shell]
    answer = subprocess.run(command, env=environ(folder), capture_output=True, text=True, timeout=30, check=True)
    assert f"_PAWAND_COMPLETE={shell}_complete" in answer.stdout
    line = {"COMP_WORDS": "pawand sessions pr", "COMP_CWORD": "pr" if shell == "fish" else "2"}
    asked = environ(folder, _PAWAND_COMPLETE=f"{shell}_complete", **line)
    said = subprocess.run(command[:1], env=asked, capture_output=True, text=True, timeout=30, check=True)
    assert "prune" in said.stdout
    assert "export" not in said.stdout
    assert answer.stderr == ""
    wrong = subprocess.run([*command[:2], "tcsh"], env=environ(folder), capture_output=True, timeout=30, check=False)
    assert wrong.returncode == 2


def test_help_says_how_to_install_it(folder: Path) -> None:
    command = [str(harness.COMMAND), "completion", "--help"]
    shown = subprocess.run(command, env=environ(folder), capture_output=True, text=True, timeout=30, check=True).stdout
    assert "bash: pawand completion bash > ~/.local/share/bash-completion/completions/pawand" in shown
    for shell in ("zsh", "fish"):
        assert f"{shell}: " in shown


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    "words", [[""], ["s"], ["sessions", "show", ""], ["config", "set", "server."], ["sessions", "prune", "--"]]
)
def test_it_takes_no_time(folder: Path, words: list[str]) -> None:
    sessions(folder, *(f"s{number}" for number in range(1000)))
    line = {"COMP_WORDS": " ".join(["pawand", *words]), "COMP_CWORD": str(len(words))}
    env = environ(folder, _PAWAND_COMPLETE="bash_complete", **line)
    secs = [cpu_secs(env, folder) for _ in range(7)]
    assert statistics.median(secs) < MAX_SECS, secs


def cpu_secs(env: dict[str, str], folder: Path) -> float:
    """What the whole process took of a processor; it waits for nothing, and what else the machine does is left out."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([str(harness.COMMAND)], env=env, cwd=folder, stdout=subprocess.DEVNULL, timeout=30, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
