"""The document of a running daemon, put to the test by schemathesis: requests right and wrong, alone and in chains."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from pawand.web.openapi import OPERATIONS
from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer, Reply, chunk

COMMAND = Path(sys.executable).parent / "schemathesis"
# Headers, parameters and fields that nobody knows are passed over, as docs/api.md says: they are no mistake.
CONFIG = "[generation]\nallow-extra-parameters = false\n"
OPTIONS = (
    "--checks=all",
    "--exclude-path=/sessions/{id}/events",  # it has no end; tests/web/test_openapi.py reads what it sends
    "--generation-database=none",
    "--seed=1",
    "--request-timeout=20",
    "--no-color",
)
NO_AUTH = "ignored_auth"  # this machine needs no token; tests/web/test_access.py has the whole table
FAILURES = [
    fake.refusal(400, "not so"),
    fake.refusal(503, "later", retry_after="0"),
    fake.text(""),
    fake.text(""),  # it is asked twice before that counts
    Reply([chunk({"content": "half of an ans"})], cut=True),
    Reply([b"<html>"], content_type="text/html"),
]


def check(pawand: harness.Process, folder: Path, *options: str) -> None:
    (folder / "schemathesis.toml").write_text(CONFIG)
    settings = ("--config-file", str(folder / "schemathesis.toml"))
    command = [str(COMMAND), *settings, "run", f"{pawand.url}/openapi.json", *OPTIONS, *options]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    # All but the events, and but the document itself, which it leaves out on its own.
    assert f"Selected: {len(OPERATIONS) - 2}/" in ran.stdout


@pytest.mark.slow
def test_every_answer_is_one_that_the_document_names(tmp_path: Path, env: dict[str, str]) -> None:
    with (
        OpenAIServer(lambda _: fake.text("Hello")) as upstream,
        harness.serve(tmp_path / "w", tmp_path / "s", env=env | {"OPENAI_API_URL": upstream.url}) as pawand,
    ):
        check(pawand, tmp_path, f"--exclude-checks={NO_AUTH}", "--max-examples=15")
    log = pawand.log_text()
    assert "ERROR" not in log
    assert log.count("turn done") > 50


@pytest.mark.slow
def test_so_is_every_failure(tmp_path: Path, env: dict[str, str]) -> None:
    """The provider fails in every way, and half of the time the store."""
    replies = itertools.cycle(FAILURES)
    options = (f"--exclude-checks={NO_AUTH},not_a_server_error", "--phases=coverage,fuzzing", "--max-examples=8")
    with (
        OpenAIServer(lambda _: next(replies)) as upstream,
        harness.serve(
            tmp_path / "w", tmp_path / "s", env=env | {"OPENAI_API_URL": upstream.url}, config="max_retries = 0\n"
        ) as pawand,
    ):
        check(pawand, tmp_path, *options)
        (tmp_path / "s" / "sessions").rename(tmp_path / "s" / "away")
        check(pawand, tmp_path, *options)
        (tmp_path / "s" / "away").rename(tmp_path / "s" / "sessions")
    log = pawand.log_text()
    assert "ERROR" not in log
    for code in ("provider", "empty_answer", "storage"):
        assert f"code={code}" in log
