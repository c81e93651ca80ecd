"""`pawand config` as a user runs it."""

from __future__ import annotations

import difflib
import json
import os
import subprocess
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pawand import config
from pawand.cli.toml_edit import inline, put
from tests import harness

EXAMPLE = Path(__file__).parents[2] / "etc" / "pawan.toml.example"


@pytest.fixture
def user_file(_own_home: Path) -> Path:
    file = _own_home / ".config" / "pawan" / "pawan.toml"
    file.parent.mkdir(parents=True)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the command is called: a workspace."""
    made = tmp_path / "w"
    made.mkdir()
    return made


def run(folder: Path, *arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    environ = harness.environment(Path(os.environ["HOME"]), folder.parent / "s", **env)
    command = [str(harness.COMMAND), "config", *arguments]
    return subprocess.run(
        command, env=environ, cwd=folder, input=stdin, capture_output=True, text=True, timeout=30, check=False
    )


def set_(folder: Path, *arguments: str, stdin: str = "", **env: str) -> str:
    """What it says on standard error."""
    answer = run(folder, "set", *arguments, stdin=stdin, **env)
    assert answer.returncode == 0, answer.stderr
    return answer.stderr


def diff(before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


# --- set ------------------------------------------------------------------------------------------


def test_set_changes_one_line_of_the_example(folder: Path, user_file: Path) -> None:
    for key, value, line in [
        ("model", "some/model", '+model = "some/model"'),
        ("server.port", "3400", "+port = 3400"),
        ("limits.turns", "4", "+turns = 4"),
        ("fallback_models", '["a", "b"]', '+fallback_models = ["a", "b"]'),
    ]:
        user_file.write_text(EXAMPLE.read_text())
        set_(folder, key, value)
        assert diff(EXAMPLE.read_text(), user_file.read_text()) == [line]
        above = user_file.read_text().partition(line.removeprefix("+"))[0].splitlines()[-1]
        assert above.startswith(f"# {key.rpartition('.')[2]} = ")
    before = user_file.read_text()
    set_(folder, "fallback_models", '["c"]')
    assert diff(before, user_file.read_text()) == ['-fallback_models = ["a", "b"]', '+fallback_models = ["c"]']


def test_every_setting_of_the_example_goes_below_its_line() -> None:
    """Through the function below the command: a process for each would take long."""
    text = EXAMPLE.read_text()
    tables = {line.strip("[]\n") for line in text.splitlines() if line.startswith("[")}
    for path, value in config.leaves(config.Config()).items():
        if (len(path) > 1 and path[0] not in tables) or path == ("cloud",):
            continue  # its table is a comment, too
        after = put(text, path, inline("x" if value is None else value))
        [line] = diff(text, after)
        lines = after.splitlines()
        at = next(n for n, (a, b) in enumerate(zip(text.splitlines(), lines, strict=False)) if a != b)
        assert line == f"+{lines[at]}"
        assert lines[at - 1].startswith(f"# {path[-1]} = ")


def test_a_missing_file_is_made_for_its_owner_alone(folder: Path, _own_home: Path) -> None:
    answer = run(folder, "set", "server.port", "3400")
    file = _own_home / ".config" / "pawan" / "pawan.toml"
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, f"server.port = 3400  # {file}\n", "")
    assert file.read_text() == "[server]\nport = 3400\n"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [entry.name for entry in file.parent.iterdir()] == ["pawan.toml"]


def test_mode_owner_and_link_stay(folder: Path, user_file: Path, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "pawan.toml"
    real.parent.mkdir()
    real.write_text("# mine\nmodel = 'a'")
    real.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(real, 1234, 4321)
    owner = (real.stat().st_uid, real.stat().st_gid)
    user_file.symlink_to(real)
    set_(folder, "model", "b")
    assert user_file.is_symlink()
    assert real.read_text() == '# mine\nmodel = "b"'
    assert real.stat().st_mode & 0o777 == 0o640
    assert (real.stat().st_uid, real.stat().st_gid) == owner


def test_a_link_that_leads_nowhere_yet_is_followed(folder: Path, user_file: Path, tmp_path: Path) -> None:
    user_file.symlink_to(tmp_path / "dotfiles" / "pawan.toml")
    set_(folder, "model", "b")
    assert (tmp_path / "dotfiles" / "pawan.toml").read_text() == 'model = "b"\n'
    user_file.unlink()
    user_file.symlink_to(user_file)
    answer = run(folder, "set", "model", "b")
    assert (answer.returncode, "cannot be read" in answer.stderr) == (2, True)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("server.port", "abc", "`server.port` is 'abc': expected `int`"),
        ("server.port", "99999", "<= 65535"),
        ("server.prot", "1", "did you mean server.port"),
        ("mcp.fs.comand", "x", "did you mean mcp.fs.command"),
        ("temprature", "1", "did you mean temperature"),
        ("nothing.like.it", "1", "`pawand config show` lists all"),
        ("provider", "openia", "expected one of nvidia, openai"),
        ("server", "5", "is there already; set its values one by one, like server.agent_id"),
        ("sandbox", "5", "expected `object`"),
        ("server", "{ port = 1 }", "is there already; set its values one by one, like server.agent_id"),
        ("cloud.provider", "nvidia", "object missing required field `model`"),
        ("mcp.fs.args", '["x"]', "has neither `command` nor `url`"),
        ("permissions.bash", "perhaps", "expected one of allow, prompt, deny"),
        ("a b", "1", "is no key"),
        ("a = 1\nb", "1", "is no key"),
        ("", "1", "is no key"),
        ("server.", "1", "is no key"),
        ("model", b"\xff", "no UTF-8"),
    ],
)
def test_what_pawand_would_refuse_is_not_written(
    folder: Path, user_file: Path, key: str, value: str, words: str
) -> None:
    text = "# mine\nmodel = 'a'\n[server]\nagent_id = 'x'\n"
    user_file.write_text(text)
    answer = run(folder, "set", key, value)
    assert answer.returncode == 2
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr
    assert (user_file.read_text(), answer.stdout) == (text, "")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a = 1\nb = [\n", "not valid TOML"),
        (b"a = 1\nb == 2\n", "line 2"),
        (b"\xff", "not UTF-8 text (byte 0)"),
        (b"server = 5\n", "`server`"),
        (b"max_tokens = 'many'\n", "`max_tokens` is 'many'"),
        (b"[[x]]\n[y]\n[[x]]\n[server]\nport = 1\n", "change `server.port` in an editor"),
    ],
)
def test_a_broken_file_is_left_alone(folder: Path, user_file: Path, data: bytes, words: str) -> None:
    user_file.write_bytes(data)
    answer = run(folder, "set", "server.port", "3400")
    assert (answer.returncode, user_file.read_bytes()) == (2, data)
    assert words in answer.stderr
    assert str(user_file) in answer.stderr


def test_what_is_no_file_is_left_alone(folder: Path, user_file: Path) -> None:
    os.mkfifo(user_file)
    answer = run(folder, "set", "server.port", "3400")
    assert (answer.returncode, "cannot be read" in answer.stderr) == (2, True)


def test_a_table_at_once(folder: Path, user_file: Path) -> None:
    set_(folder, "cloud", '{ provider = "nvidia", model = "x" }')
    set_(folder, "mcp.fs", '{ command = "fs", args = ["a"] }')
    set_(folder, "cloud.model", "y")
    assert tomllib.loads(user_file.read_text()) == {
        "cloud": {"provider": "nvidia", "model": "y"},
        "mcp": {"fs": {"command": "fs", "args": ["a"]}},
    }


def test_a_secret_comes_from_standard_input_and_is_not_shown(folder: Path, user_file: Path) -> None:
    answer = run(folder, "set", "peers.bob.token", "-", stdin="0123456789abcdef0123\n")
    assert answer.returncode == 0
    assert "0123" not in answer.stdout + answer.stderr
    assert user_file.read_text() == '[peers.bob]\ntoken = "0123456789abcdef0123"\n'
    shown = run(folder, "show").stdout + run(folder, "show", "--json").stdout
    assert "0123" not in shown
    assert 'peers.bob.token = "***"' in shown
    assert run(folder, "get", "peers.bob.token").stdout == "0123456789abcdef0123\n"


def test_a_secret_where_others_can_read_it_is_told_of(folder: Path, user_file: Path) -> None:
    told = f"others can read {user_file}, which holds "
    user_file.write_text("temperature = 1.0\n")
    user_file.chmod(0o644)
    assert told not in run(folder, "set", "temperature", "0.5").stderr
    for arguments in (["peers.a.token", "0123456789abcdef"], ["peers.b", '{ token = "0123456789abcdef" }']):
        assert f"note: {told}a secret now: chmod 600 {user_file}" in run(folder, "set", *arguments).stderr
    environ = harness.environment(Path(os.environ["HOME"]), folder / "state")
    command = [str(harness.COMMAND), "doctor"]
    shown = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, timeout=60).stdout
    assert f"! settings   {told}secrets\n" in shown
    user_file.chmod(0o600)
    assert told not in run(folder, "set", "peers.a.token", "0123456789abcdefg").stderr


def test_standard_input_may_have_several_lines(folder: Path, user_file: Path) -> None:
    set_(folder, "system_prompt", "-", stdin="Be careful.\nBe brief.\n\n")
    assert tomllib.loads(user_file.read_text()) == {"system_prompt": "Be careful.\nBe brief.\n"}
    assert run(folder, "get", "system_prompt").stdout == "Be careful.\nBe brief.\n\n"


def test_set_says_what_wins(folder: Path, user_file: Path) -> None:
    assert set_(folder, "model", "a", PAWAN_MODEL="b") == "note: PAWAN_MODEL in the environment wins\n"
    (folder / "pawan.toml").write_text("model = 'c'\n")
    assert set_(folder, "model", "a") == f"note: {folder}/pawan.toml wins\n"
    (folder.parent / "more.toml").write_text("provider = 'ollama'\n")
    explicit = str(folder.parent / "more.toml")
    said = set_(folder, "base_url", "http://localhost:1/v1", PAWAND_CONFIG=explicit)
    assert said == "note: `base_url` does not count: a later file or the environment sets another provider\n"
    assert set_(folder, "provider", "openai", PAWAND_CONFIG=explicit) == f"note: {explicit} wins\n"
    assert set_(folder, "provider", "nim", "--file", explicit, PAWAND_CONFIG=explicit) == ""
    assert "nim" in Path(explicit).read_text()
    assert run(folder, "get", "provider", PAWAND_CONFIG=explicit).stdout == "nvidia\n"


def test_set_in_a_workspace_warns_as_the_daemon_does(folder: Path, user_file: Path) -> None:
    file = folder / "pawan.toml"
    said = set_(folder, "server.port", "3400", "--file", "pawan.toml")
    assert said == (
        f"note: {file}: `server` is ignored: a workspace file may not set it; "
        f"put it into {user_file} or pass the file with --config\n"
    )
    assert set_(folder, "temperature", "0.5", "--file", "pawan.toml") == ""
    assert set_(folder, "permissions.bash", "deny", "--file", "pawan.toml") == ""
    assert file.read_text() == 'temperature = 0.5\n[server]\nport = 3400\n\n[permissions]\nbash = "deny"\n'
    assert run(folder, "get", "server.port").stdout == "3300\n"
    assert json.loads(run(folder, "get", "permissions.bash", "--json").stdout) == {
        "key": "permissions.bash", "value": "deny", "source": str(file),
    }  # fmt: skip


def test_set_in_a_file_that_is_not_read_says_so(folder: Path, user_file: Path) -> None:
    said = set_(folder, "server.port", "1", "--file", "other.toml")
    assert said == "note: pawand reads this file only where it is told to: --config other.toml\n"
    assert (folder / "other.toml").read_text() == "[server]\nport = 1\n"
    assert not user_file.exists()


def test_settings_of_the_terminal_program_may_be_set(folder: Path, user_file: Path) -> None:
    assert "`tui` is a setting of the pawan terminal program" in set_(folder, "tui.theme", "dark")
    assert user_file.read_text() == '[tui]\ntheme = "dark"\n'
    assert run(folder, "set", "tui", "5").returncode == 2
    assert user_file.read_text() == '[tui]\ntheme = "dark"\n'


def test_a_fault_that_was_there_is_told_and_does_not_hinder(folder: Path, user_file: Path) -> None:
    said = set_(folder, "model", "a", PAWAN_MAX_TOKENS="many")
    assert "note: pawand does not start with these settings: PAWAN_MAX_TOKENS" in said
    assert user_file.read_text() == 'model = "a"\n'


def test_set_says_when_a_running_daemon_takes_it(tmp_path: Path, env: dict[str, str], folder: Path) -> None:
    with harness.serve(folder, tmp_path / "s", env=env) as pawand:
        pid = pawand.process.pid
        assert set_(folder, "max_tokens", "99") == f"note: the running pawand takes it after: kill -HUP {pid}\n"
        assert set_(folder, "server.agent_id", "x") == (
            f"note: the running pawand takes it at its next start (pid {pid} runs now)\n"
        )
        pawand.process.send_signal(1)
        harness.until(lambda: "max_tokens" in pawand.log_text(), "the settings are read again")


def test_many_at_once_lose_nothing(folder: Path, user_file: Path) -> None:
    keys = ["model", "max_tokens", "server.port", "limits.turns", "permissions.bash", "peers.a.address"]
    values = ["a", "1", "2", "3", "deny", "http://x"]
    threads = [
        threading.Thread(target=set_, args=(folder, key, value)) for key, value in zip(keys, values, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    written = config.parse_toml(user_file)
    assert written == {
        "model": "a", "max_tokens": 1, "server": {"port": 2}, "limits": {"turns": 3},
        "permissions": {"bash": "deny"}, "peers": {"a": {"address": "http://x"}},
    }  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take the right to write away from itself like this")
def test_a_folder_that_cannot_be_written_exits_1(folder: Path, user_file: Path) -> None:
    user_file.parent.rmdir()
    user_file.parent.write_text("a file in the way")
    answer = run(folder, "set", "model", "a")
    assert (answer.returncode, "cannot be used" in answer.stderr) == (1, True)


# --- show, get, path ------------------------------------------------------------------------------


def test_show_has_every_setting_and_its_source(folder: Path, user_file: Path, tmp_path: Path) -> None:
    user_file.write_text("model = 'a'\ntemperature = 0.5\n[mcp.fs]\ncommand = 'x'\nenv = {KEY = 'hidden-1'}\n")
    (folder / "pawan.toml").write_text("temperature = 0.25\n")
    (tmp_path / "more.toml").write_text(
        "[server]\nport = 9\n[eruka]\napi_key = 'hidden-2'\n"
        "[mcp.web]\nurl = 'https://x/y?key=hidden-3'\nheaders = {A = 'hidden-4'}\n"
    )
    answer = run(folder, "show", "--config", str(tmp_path / "more.toml"), "--json", PAWAN_MODEL="b")
    assert "hidden" not in answer.stdout
    rows = {row["key"]: (row["value"], row["source"]) for row in json.loads(answer.stdout)}
    assert {".".join(path) for path in config.leaves(config.Config())} <= set(rows)
    assert rows["model"] == ("b", "PAWAN_MODEL")
    assert rows["temperature"] == (0.25, str(folder / "pawan.toml"))
    assert rows["server.port"] == (9, str(tmp_path / "more.toml"))
    assert rows["mcp.fs.env.KEY"] == ("***", str(user_file))
    assert rows["mcp.web.headers.A"][0] == rows["eruka.api_key"][0] == "***"
    assert rows["mcp.web.url"][0] == "https://x/y?***"
    assert rows["max_tokens"] == (8192, "default")
    assert rows["provider"] == (None, "default")
    text = run(folder, "show", "--config", str(tmp_path / "more.toml"), PAWAN_MODEL="b").stdout
    assert f"temperature = 0.25  # {folder}/pawan.toml\n" in text
    assert 'model = "b"  # PAWAN_MODEL\n' in text
    assert "max_tokens = 8192\n" in text
    assert "# provider is not set\n" in text
    assert "hidden" not in text
    assert tomllib.loads(text)["server"]["port"] == 9
    elsewhere = run(tmp_path, "show", "--workspace", str(folder), "--json")
    assert {row["key"]: row["value"] for row in json.loads(elsewhere.stdout)}["temperature"] == 0.25


def test_show_warns_and_steers_no_terminal(folder: Path, user_file: Path) -> None:
    (folder / "pawan.toml").write_text('model = "\\u001b[31m\\u202e"\nmodle = 1\n')
    answer = run(folder, "show")
    assert "did you mean `model`?" in answer.stderr
    assert 'model = "\\u001b[31m"' in answer.stdout
    assert run(folder, "get", "model").stdout == "[31m\n"


def test_show_of_wrong_settings_exits_2(folder: Path, user_file: Path) -> None:
    user_file.write_text("max_tokens = 'many'\n")
    for command in (["show"], ["get", "model"]):
        answer = run(folder, *command)
        assert (answer.returncode, answer.stdout) == (2, "")
        assert "`max_tokens` is 'many'" in answer.stderr


@pytest.mark.parametrize(
    ("key", "code", "printed"),
    [
        ("server.port", 0, "3400\n"),
        ("server.host", 0, '["127.0.0.1", "::1"]\n'),
        ("model", 0, "it's\n"),
        ("reasoning_mode", 0, "true\n"),
        ("temperature", 0, "1.0\n"),
        ("mcp.fs", 0, '{ command = "x", args = [], enabled = true, sandbox = true, network = false }\n'),
        ("permissions", 0, '{ bash = "deny" }\n'),
        ("permissions.'bash'", 0, "deny\n"),
        ("provider", 1, ""),
        ("cloud.model", 1, ""),
        ("mcp.other", 1, ""),
        ("mcp.other.command", 1, ""),
        ("modle", 2, ""),
        ("mcp.other.comand", 2, ""),
        ("model.x", 2, ""),
    ],
)
def test_get(folder: Path, user_file: Path, key: str, code: int, printed: str) -> None:
    user_file.write_text(
        "model = \"it's\"\n[server]\nport = 3400\n[mcp.fs]\ncommand = 'x'\n[permissions]\nbash = 'deny'\n"
    )
    answer = run(folder, "get", key)
    assert (answer.returncode, answer.stdout) == (code, printed)
    if code == 1:
        assert answer.stderr == f"{key} is not set\n"
        assert json.loads(run(folder, "get", key, "--json").stdout) == {"key": key, "value": None, "source": "default"}


def test_get_json_has_the_source(folder: Path, user_file: Path) -> None:
    user_file.write_text("[server]\nport = 3400\n")
    found: Any = json.loads(run(folder, "get", "server.port", "--json").stdout)
    assert found == {"key": "server.port", "value": 3400, "source": str(user_file)}


def test_path_lists_the_files_in_order(folder: Path, user_file: Path, tmp_path: Path) -> None:
    user_file.write_text("")
    rows = json.loads(run(folder, "path", "--config", "~/x.toml", "--json").stdout)
    assert [(row["role"], row["path"], row["exists"], row["written"]) for row in rows] == [
        ("system", "/etc/pawan/pawan.toml", Path("/etc/pawan/pawan.toml").exists(), False),
        ("user", str(user_file), True, True),
        ("workspace", str(folder / "pawan.toml"), False, False),
        ("--config", str(Path.home() / "x.toml"), False, False),
    ]
    text = run(tmp_path, "path", "--workspace", str(folder), PAWAND_CONFIG=str(user_file)).stdout.splitlines()
    assert text[1] == f"{user_file}  (user: read; `pawand config set` writes it)"
    assert text[2] == f"{folder}/pawan.toml  (workspace: not there)"
    assert text[3] == f"{user_file}  (--config: read)"
