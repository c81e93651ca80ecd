"""`pawand logs`, and the log file that the daemon keeps."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pawand import logs
from tests import harness
from tests.cli.background import Shell, shell
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.harness import until


@pytest.fixture
def sh(tmp_path: Path, env: dict[str, str]) -> Iterator[Shell]:
    with shell(tmp_path, env) as made:
        yield made


def test_logs_shows_the_last_lines(sh: Shell) -> None:
    sh.ok("start", "--log-level", "debug")
    for _ in range(60):
        sh.call("GET", "/health")
    until(lambda: sh.log.read_text().count("GET /health 200") >= 61, "all is logged")
    lines = sh.log.read_text().splitlines(keepends=True)
    assert len(lines) > 60
    assert sh.ok("logs") == "".join(lines[-50:])
    assert sh.ok("logs", "-n", "3") == "".join(lines[-3:])
    assert sh.ok("logs", "-n", "0") == ""
    assert sh.ok("logs", "-n", "10000") == "".join(lines)
    sh.ok("stop")
    assert sh.ok("logs", "-n", "1").endswith("INFO    stopping\n")  # what it said last, above all


def test_logs_that_were_rotated_just_now_show_what_was_before(sh: Shell) -> None:
    sh.log.parent.mkdir(parents=True)
    Path(f"{sh.log}.1").write_text("one\ntwo\nthree\n")
    sh.log.write_text("four\x1b[2J\nfive \u202e\n")
    assert sh.ok("logs", "-n", "4") == "two\nthree\nfour[2J\nfive \n"
    assert sh.ok("logs", "-n", "1") == "five \n"


def test_logs_follows_over_a_rotation_until_ctrl_c(sh: Shell) -> None:
    sh.log.parent.mkdir(parents=True)
    sh.log.write_text("old\nfirst\n")
    with sh.popen("logs", "-f", "-n", "1") as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "first\n"
            with sh.log.open("a") as log:
                log.write("second\n")
                log.flush()
                assert child.stdout.readline() == "second\n"
                sh.log.rename(f"{sh.log}.1")
                log.write("last words\n")
            sh.log.write_text("third\n")
            assert [child.stdout.readline() for _ in range(2)] == ["last words\n", "third\n"]
            child.send_signal(signal.SIGINT)
            assert child.wait(10) == 130
        finally:
            child.kill()


def test_without_a_log_it_says_what_to_do(sh: Shell) -> None:
    done = sh.run("logs")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"pawand: there is no log {sh.log}: `pawand start` makes it")
    sh.log.mkdir(parents=True)
    assert f"{sh.log} cannot be read: Is a directory" in sh.run("logs").stderr


def test_one_in_a_terminal_has_its_log_there(tmp_path: Path, env: dict[str, str]) -> None:
    with shell(tmp_path, env) as sh, harness.serve(tmp_path / "w", tmp_path / "s", env=env):
        done = sh.run("logs")
    assert (done.returncode, "logs to where `pawand serve` was started" in done.stderr) == (1, True)


def test_serve_logs_to_a_file_too(tmp_path: Path, env: dict[str, str]) -> None:
    file = tmp_path / "deep" / "my.log"
    flags = ["--log-file", "../deep/my.log"]
    with shell(tmp_path, env) as sh, harness.serve(tmp_path / "w", tmp_path / "s", *flags, env=env) as pawand:
        assert f"on {pawand.url}" in file.read_text()
        assert f"on {pawand.url}" in sh.ok("logs")
        assert sh.json("status")["log_file"] == f"{tmp_path}/w/../deep/my.log"
        assert pawand.log_text() == ""
    assert file.read_text().endswith("stopping\n")


@pytest.mark.parametrize(("manager", "flag"), [({}, []), ({"MANAGERPID": "7"}, ["--user"])])
def test_those_of_systemd_are_in_the_journal(
    tmp_path: Path, env: dict[str, str], manager: dict[str, str], flag: list[str]
) -> None:
    journal = tmp_path / "bin" / "journalctl"
    journal.parent.mkdir()
    journal.write_text('#!/bin/sh\nprintf "%s " "$@"\n')
    journal.chmod(0o755)
    prefix = ("sh", "-c", 'SYSTEMD_EXEC_PID=$$ exec "$@"', "sh")
    with (
        shell(tmp_path, env) as sh,
        harness.serve(tmp_path / "w", tmp_path / "s", env={**env, **manager}, prefix=prefix),
    ):
        sh.env["PATH"] = f"{journal.parent}:{sh.env['PATH']}"
        assert sh.ok("logs", "-f", "-n", "7").split() == [*flag, "-n", "7", "-f", "-u", "pawand.service"]
        journal.unlink()
        sh.env["PATH"] = f"{journal.parent}:{Path(sys.executable).parent}"
        done = sh.run("logs")
        assert done.returncode == 1
        assert " -n 50 -u pawand.service" in done.stderr


def test_no_key_is_in_the_file(sh: Shell, upstream: OpenAIServer) -> None:
    upstream.script = [fake.refusal(400, f"your key {harness.API_KEY} is bad: Bearer {harness.API_KEY}")]
    sh.ok("start", "--log-level", "debug")
    assert sh.call("POST", "/chat", {"message": f"use {harness.API_KEY}"})[0] == 500
    sh.ok("stop")
    text = sh.log.read_text()
    assert "your key [redacted] is bad" in text
    assert harness.API_KEY not in text


# --- the file itself ------------------------------------------------------------------------------


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[logs.LogFile]:
    made = logs.open_file(tmp_path / "new" / "x.log")
    yield made
    made.close()


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, "x", 1, text, None, None)


def test_the_file_is_rotated_and_some_are_kept(log_file: logs.LogFile) -> None:
    assert (log_file.maxBytes, logs.KEPT_FILES) == (10 * 1024 * 1024, 5)
    log_file.maxBytes = 40
    for number in range(20):
        log_file.emit(record(f"line number {number:10}"))
    folder = Path(log_file.baseFilename).parent
    assert sorted(os.listdir(folder)) == ["x.log", *(f"x.log.{n}" for n in range(1, 6))]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert (folder / "x.log").read_text().endswith("19\n")
    assert (folder / "x.log.1").read_text().endswith("18\n")


def test_standard_error_goes_along_where_it_is_the_log_already(tmp_path: Path) -> None:
    code = (
        "import logging, sys\nfrom pathlib import Path\nfrom pawand import logs\n"
        "logs.set_up('info', 'text', Path(sys.argv[1]))\n"
        "logging.getLogger().handlers[0].maxBytes = 100\n"
        "for n in range(9): logging.info('a line of the log %s', n)\n"
        "raise RuntimeError('the end')\n"
    )
    file = tmp_path / "x.log"
    with file.open("ab") as output:
        child = subprocess.run([sys.executable, "-c", code, str(file)], stdout=output, stderr=output, check=False)
    assert child.returncode == 1
    assert "RuntimeError: the end" in file.read_text()
    assert "a line of the log 8" in file.read_text()
    elsewhere = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
    assert "RuntimeError: the end" in elsewhere.stderr
