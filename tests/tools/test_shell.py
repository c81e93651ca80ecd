"""`bash`: what a command gets, what the model gets of it, and that nothing of it is left; started in both ways."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pawand.redact import Redactor
from tests.tools.conftest import Bench, MakeBench, needs_bwrap, poll, reached, running

BOTH = [pytest.param("auto", marks=needs_bwrap), "off"]


@pytest.fixture
def marker() -> str:
    """A number of seconds to sleep that only this test uses: it is found in the list of processes."""
    return f"1000{secrets.randbelow(10**12):012d}"


def gone(marker: str) -> bool:
    """Whether nothing of it is left; what is dying already may take a moment."""
    return poll(lambda: not running(marker), 1)


def resident() -> int:
    """Bytes of memory that this process uses."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("command", "status", "stdout", "stderr"),
    [
        ("true", 0, "", ""),
        ("echo hello", 0, "hello\n", ""),
        ("echo out; echo err >&2; exit 3", 3, "out\n", "err\n"),
        ("printf 'no newline'", 0, "no newline", ""),
        ("kill -9 $$", 137, "", ""),
        ("kill -TERM $$", 143, "", ""),
        ("echo 'ünï 🦀' | cat", 0, "ünï 🦀\n", ""),
        ("printf 'a\\xff\\xfe\\0b'", 0, "a\ufffd\ufffd\u2400b", ""),
        ("[[ a == a ]] && echo bash", 0, "bash\n", ""),
        ("false | true; echo ${PIPESTATUS[0]}", 0, "1\n", ""),
        ("cat", 0, "", ""),
        ("read line || echo end of input", 0, "end of input\n", ""),
        ("echo one; exec echo two", 0, "one\ntwo\n", ""),
        ("test -t 0 || test -t 1 || test -t 2 || echo no terminal", 0, "no terminal\n", ""),
    ],
)
def test_a_command_is_run_and_told(shell_bench: Bench, command: str, status: int, stdout: str, stderr: str) -> None:
    result = shell_bench.bash(command, description="to see")
    assert result == {
        "success": status == 0,
        "exit_code": status,
        "stdout": stdout,
        "stderr": stderr,
        "command": command,
        "description": "to see",
    }


def test_a_command_that_is_not_there(shell_bench: Bench) -> None:
    result = shell_bench.bash("no-such-program")
    assert result["exit_code"] == 127
    assert "no-such-program" in result["stderr"]


@pytest.mark.parametrize("workdir", ["sub", "./sub/", "{root}/sub", "link"])
def test_a_command_runs_in_its_folder(shell_bench: Bench, workdir: str) -> None:
    (shell_bench.root / "sub").mkdir()
    (shell_bench.root / "link").symlink_to("sub")
    result = shell_bench.bash("pwd -P; echo x > made", workdir=workdir.format(root=shell_bench.root))
    assert result["stdout"] == f"{shell_bench.root}/sub\n"
    assert (shell_bench.root / "sub" / "made").read_text() == "x\n"


def test_without_a_folder_a_command_runs_in_the_workspace(shell_bench: Bench) -> None:
    assert shell_bench.out("pwd") == f"{shell_bench.root}\n"


@pytest.mark.parametrize(
    ("workdir", "part"),
    [("no/such", "does not exist"), ("file", "no folder"), ("fifo", "no folder"), ("/etc", "outside")],
)
def test_a_folder_that_is_none_is_refused(shell_bench: Bench, workdir: str, part: str) -> None:
    (shell_bench.root / "file").touch()
    os.mkfifo(shell_bench.root / "fifo")
    assert part in shell_bench.refused("bash", command="pwd", workdir=workdir)


@pytest.mark.parametrize(
    ("command", "part"),
    [("echo \0", "NUL"), (": " + "x" * 10**6, "too long"), ("echo \ud800", "text")],
    ids=["nul", "long", "half"],
)
def test_a_command_that_cannot_be_started_is_refused(shell_bench: Bench, command: str, part: str) -> None:
    assert part in shell_bench.refused("bash", command=command)


@pytest.mark.parametrize(
    "arguments",
    [{"command": ""}, {"command": "a", "timeout_secs": 0}, {"command": "a", "timeout_secs": 3601}],
    ids=repr,
)
def test_arguments_have_bounds(bench: Bench, arguments: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="wrong arguments for bash"):
        bench.call("bash", **arguments)


def test_a_command_that_takes_no_notice_of_term_is_killed_after_its_time(shell_bench: Bench, marker: str) -> None:
    command = f"trap '' TERM; echo ready; (trap '' TERM; sleep {marker}) & while :; do sleep {marker}; done"
    started = time.monotonic()
    result = shell_bench.bash(command, timeout_secs=1)
    assert gone(marker)
    assert 1 <= time.monotonic() - started < 6
    assert result["timed_out"] is True
    assert result["success"] is False
    assert result["exit_code"] != 0
    assert result["stdout"] == "ready\n"
    assert "killed after 1 s" in result["error"]


async def cancel(bench: Bench, command: str, *, times: int = 1) -> None:
    """Cancel the call once the command said that it is up."""
    task = asyncio.create_task(bench.run("bash", command=command))
    await reached(lambda: bool(bench.emitted))
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0.05)
    with pytest.raises(asyncio.CancelledError):
        await task


def test_term_comes_first_so_that_a_command_can_clean_up(shell_bench: Bench, marker: str) -> None:
    command = f"trap 'echo cleaned up > trace; exit' TERM; sleep {marker} & echo up; wait"
    asyncio.run(cancel(shell_bench, command))
    assert (shell_bench.root / "trace").read_text() == "cleaned up\n"
    assert gone(marker)


FORKING = """
import signal, subprocess, sys, threading, time

def child():
    def told(number, frame):
        open("trace", "w").write("told")
        sys.exit()
    signal.signal(signal.SIGTERM, told)
    print("up", flush=True)
    time.sleep(60)

if sys.argv[1:]:
    child()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
thread = threading.Thread(target=lambda: subprocess.run([sys.executable, __file__, "child"]))
thread.start()
thread.join()
"""


def test_term_reaches_the_child_of_a_thread(shell_bench: Bench) -> None:
    (shell_bench.root / "forking.py").write_text(FORKING)
    asyncio.run(cancel(shell_bench, "python3 forking.py"))
    assert (shell_bench.root / "trace").read_text() == "told"


STAYING = {
    "background": "sleep {marker} & echo started",
    "nohup": "nohup sleep {marker} > /dev/null 2>&1 & echo started",
    "setsid": "setsid nohup sleep {marker} > /dev/null 2>&1 < /dev/null & disown; echo started",
    "double fork": "(setsid sh -c 'trap \"\" TERM HUP; sleep {marker} & sleep {marker}' &) ; echo started",
    "deaf": "bash -c 'trap \"\" TERM HUP INT; sleep {marker}; sleep {marker}' & echo started",
    "many": "for n in $(seq 50); do setsid sleep {marker} & done; echo started",
}


@pytest.mark.parametrize("command", STAYING.values(), ids=STAYING)
def test_what_is_left_in_the_background_neither_hangs_the_call_nor_lives_on(
    shell_bench: Bench, marker: str, command: str
) -> None:
    started = time.monotonic()
    result = shell_bench.bash(command.format(marker=marker))
    assert gone(marker)
    assert time.monotonic() - started < 4
    assert result["success"], result
    assert result["stdout"] == "started\n"


def test_a_server_in_the_background_serves_while_the_command_runs(shell_bench: Bench) -> None:
    (shell_bench.root / "page").write_text("served\n")
    command = (
        "python3 -m http.server --bind 127.0.0.1 0 > log 2>&1 &\n"
        "until port=$(grep -o 'port [0-9]*' log | cut -d' ' -f2) && [ -n \"$port\" ]; do sleep 0.05; done\n"
        "python3 -c \"import urllib.request as r; print(r.urlopen('http://127.0.0.1:$port/page').read().decode())\""
    )
    (shell_bench.root / "log").touch()
    assert shell_bench.out(command.replace("python3 -m", "python3 -u -m")) == "served\n\n"


@contextlib.contextmanager
def memory_watch() -> Iterator[list[int]]:
    """The memory in use every few milliseconds."""
    seen: list[int] = [resident()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("mode", BOTH)
def test_a_flood_of_output_takes_little_memory_and_keeps_both_ends(make_bench: MakeBench, mode: Any) -> None:
    bench = make_bench(mode, max_result_chars=10**6)
    command = "echo begin; head -c 200000000 /dev/zero | tr '\\0' x; echo; echo end; echo complaint >&2"
    with memory_watch() as memory:
        result = bench.bash(command)
    assert result["success"]
    assert result["stdout"].startswith("begin\nxxx")
    assert result["stdout"].endswith("xxx\nend\n")
    assert f"[… {200_000_000 + 11 - 64 * 1024} bytes left out …]" in result["stdout"]
    assert len(result["stdout"]) < 66 * 1024
    assert result["stderr"] == "complaint\n"
    assert max(len(text) for text in bench.emitted) <= 4096 + len("[…]\n")
    assert len(memory) > 20
    assert max(memory) - memory[0] < 40 * 1024 * 1024


def test_both_streams_are_drained(shell_bench: Bench) -> None:
    result = shell_bench.bash(
        "head -c 3000000 /dev/zero | tr '\\0' e >&2; echo out; head -c 3000000 /dev/zero | tr '\\0' f >&2"
    )
    assert result["success"]
    assert result["stdout"] == "out\n"
    assert result["stderr"].startswith("eee")


def test_a_result_is_cut_to_the_limit(shell_bench: Bench) -> None:
    outcome = shell_bench.call("bash", command="seq 100000")
    assert len(outcome.text) <= shell_bench.context.max_result_chars
    assert outcome.content["stdout"].startswith("1\n2\n3\n")
    assert outcome.content["stdout"].endswith("99999\n100000\n")


def test_output_is_passed_on_in_order(shell_bench: Bench) -> None:
    shell_bench.bash("for n in 1 2 3; do echo $n; sleep 0.12; done")
    assert "".join(shell_bench.emitted) == "1\n2\n3\n"
    assert len(shell_bench.emitted) >= 2


def test_a_character_written_in_halves_is_passed_on_whole(shell_bench: Bench) -> None:
    shell_bench.bash("printf '\\xf0\\x9f'; sleep 0.15; printf '\\xa6\\x80'; sleep 0.15; printf 'end\\xf0'")
    assert "".join(shell_bench.emitted) == "🦀end\ufffd"


def test_live_output_that_is_too_much_is_cut_and_says_so(shell_bench: Bench) -> None:
    shell_bench.bash("echo first; sleep 0.15; seq 100000")
    assert shell_bench.emitted[0] == "first\n"
    assert shell_bench.emitted[-1].endswith("99999\n100000\n")
    assert "[…]\n" in "".join(shell_bench.emitted)


KEY = "nvapi-0123456789abcdef"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (f"echo key={KEY}!", "key=[redacted]!\n"),
        (f"echo {KEY}{KEY}", "[redacted][redacted]\n"),
        (f"printf {KEY[:9]}; sleep 0.15; printf '{KEY[9:]} end'", "[redacted] end"),
        (f"printf {KEY[:9]}; sleep 0.15; printf end", f"{KEY[:9]}end"),
        (f"printf {KEY[:9]}", KEY[:9]),
    ],
)
def test_secrets_are_masked_also_when_they_come_in_pieces(shell_bench: Bench, command: str, shown: str) -> None:
    bench = Bench(shell_bench.workspace, shell_bench.sandbox, redactor=Redactor([KEY]))
    assert bench.bash(command)["stdout"] == shown
    assert "".join(bench.emitted) == shown


@pytest.mark.parametrize("at", [16 * 1024, 200_000 - 48 * 1024])
def test_no_half_of_a_secret_is_left_where_output_is_cut(shell_bench: Bench, at: int) -> None:
    bench = Bench(shell_bench.workspace, shell_bench.sandbox, redactor=Redactor([KEY]), max_result_chars=10**6)
    before = at - len(KEY) // 2
    (bench.root / "output").write_text("x" * before + KEY + "x" * (200_000 - before - len(KEY)))
    outcome = bench.call("bash", command="cat output")
    assert "left out" in outcome.text
    assert "nvapi" not in outcome.text
    assert "89abcdef" not in outcome.text


class Signal(list[str]):
    """Live output; makes the file that the command waits for when `text` was passed on."""

    def __init__(self, text: str, file: Path) -> None:
        super().__init__()
        self._text = text
        self._file = file

    def append(self, piece: str) -> None:
        super().append(piece)
        if self._text in "".join(self):
            self._file.touch()


@pytest.mark.parametrize(
    "command", ["echo first; sleep 0.02; echo second", "echo first second", "echo first; echo second >&2"]
)
def test_output_is_passed_on_while_the_command_waits(shell_bench: Bench, command: str) -> None:
    shell_bench.emitted = Signal("second", shell_bench.root / "seen")
    result = shell_bench.bash(f"{command}; until [ -e seen ]; do sleep 0.05; done", timeout_secs=5)
    assert result["success"], "the second word was held back until the end"


def test_nothing_is_passed_on_after_the_end(shell_bench: Bench) -> None:
    async def main() -> int:
        outcome = await shell_bench.run("bash", command="echo first; sleep 0.02; echo second")
        assert outcome.success
        count = len(shell_bench.emitted)
        await asyncio.sleep(0.25)
        return count

    assert asyncio.run(main()) == len(shell_bench.emitted)
    assert "".join(shell_bench.emitted) == "first\nsecond\n"


ALLOWED = {
    *("LANG", "LANGUAGE", "TZ", "USER", "LOGNAME", "NO_COLOR", "CARGO_HOME", "RUSTUP_HOME", "PYENV_ROOT"),
    *("PATH", "HOME", "SHELL", "TERM", "TMPDIR", "GIT_TERMINAL_PROMPT", "PAGER", "GIT_PAGER"),
    *("PWD", "OLDPWD", "SHLVL", "_"),
}


@pytest.mark.parametrize("mode", BOTH)
def test_the_environment_is_an_allow_list(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    value = f"nvapi-{secrets.token_hex(16)}"
    for name in (
        "NVIDIA_API_KEY",
        "OPENAI_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "SSH_AUTH_SOCK",
        "LD_PRELOAD_",
        "BASH_ENV",
        "PYTHONPATH_X",
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    bench = make_bench(mode)
    environment = dict(line.split("=", 1) for line in bench.out("env").splitlines())
    assert set(environment) - ALLOWED == {"LC_TIME"}
    assert environment["HOME"] == str(Path.home())
    assert environment["PATH"] == os.environ["PATH"]
    assert environment["TERM"] == "dumb"
    seen = bench.bash("cat /proc/*/environ | tr '\\0' '\\n'", timeout_secs=10)["stdout"]
    assert "TERM=dumb" in seen
    assert value not in seen


def test_cancelling_kills_the_tree(shell_bench: Bench, marker: str) -> None:
    command = f"(setsid sleep {marker} &) ; sleep {marker} & echo up; while :; do sleep {marker}; done"
    asyncio.run(cancel(shell_bench, command))
    assert gone(marker)


def test_cancelling_again_while_the_command_takes_its_leave_waits_for_its_end(shell_bench: Bench, marker: str) -> None:
    command = f"trap 'sleep 0.2; echo left > trace; exit' TERM; echo up; while :; do sleep {marker}; done"
    asyncio.run(cancel(shell_bench, command, times=3))
    assert gone(marker)
    assert (shell_bench.root / "trace").read_text() == "left\n"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_cancelled_flood_leaves_no_file_open(shell_bench: Bench) -> None:
    async def main() -> None:
        before = open_files()
        for _ in range(3):
            await cancel(shell_bench, "echo up; exec yes")
            shell_bench.emitted.clear()
        assert open_files() <= before

    asyncio.run(main())


def test_cancelling_at_any_moment_of_the_start_leaves_nothing(shell_bench: Bench, marker: str) -> None:
    async def main() -> None:
        for tries in range(60):
            task = asyncio.create_task(shell_bench.run("bash", command=f"sleep {marker} & sleep {marker}"))
            await asyncio.sleep(tries / 2000)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await asyncio.to_thread(poll, lambda: not running(marker))

    asyncio.run(main())


def test_commands_run_side_by_side(shell_bench: Bench) -> None:
    async def main() -> list[bool]:
        waits = "until [ -e go ]; do sleep 0.02; done"
        calls = [shell_bench.run("bash", command=waits, timeout_secs=5) for _ in range(3)]
        outcomes = await asyncio.gather(*calls, shell_bench.run("bash", command="sleep 0.1; touch go"))
        return [outcome.success for outcome in outcomes]

    assert asyncio.run(main()) == [True] * 4


PARENT = """
import asyncio, sys
from pathlib import Path
from pawand import config
from pawand.tools.sandbox import Sandbox
from pawand.tools.workspace import Workspace

async def main(root, mode, marker):
    workspace = Workspace(Path(root))
    sandbox = Sandbox.probe(config.Sandbox(mode=mode), workspace, Path(root).parent / "scratch", [])
    command = f"trap '' TERM; (setsid sleep {marker} &) ; echo up; while :; do sleep {marker}; done"
    async with sandbox.start(["bash", "-c", command], session_id="s") as process:
        print((await process.stdout.readline()).decode(), end="", flush=True)
        await process.wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("mode", BOTH)
def test_nothing_outlives_a_daemon_that_was_killed(root: Path, marker: str, mode: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(root), mode, marker], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        assert len(running(marker)) > 1
        parent.kill()
    assert poll(lambda: not running(marker)), running(marker)
