"""What the daemon writes into its log: a line for each turn and request, as text and as JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

from pawand import logs
from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer


def lines(pawand: harness.Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in pawand.log_text().splitlines()]


def test_as_json_what_a_line_says_is_in_fields_too(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    upstream.script = [
        fake.calls(("list_directory", {})),
        fake.text("secret answer"),
        fake.refusal(400, f"not with {harness.API_KEY}"),
    ]
    flags = ("--log-format", "json", "--log-level", "debug")
    with harness.serve(tmp_path / "w", tmp_path / "s", *flags, env=env) as pawand:
        done = pawand.call("POST", "/chat", {"message": "secret question", "session_id": "s"})[1]
        assert pawand.call("POST", "/chat", {"message": "again", "session_id": "s", "model": "other"})[0] == 500
        assert pawand.call("GET", f"/sessions/{harness.API_KEY}")[0] == 404
    found, text = lines(pawand), pawand.log_text()
    [good] = [line for line in found if line["message"].startswith("turn done")]
    assert {"time", "level", "logger"} <= set(good)
    assert (good["session"], good["turn"], good["model"]) == ("s", done["turn_id"], harness.MODEL)
    assert (good["outcome"], good["iterations"], good["tool_calls"], good["tokens"]) == ("stop", 2, 1, 30)
    assert 0 < good["first_token_secs"] <= good["total_secs"] < 60
    [bad] = [line for line in found if line["message"].startswith("turn failed")]
    assert (bad["session"], bad["model"], bad["outcome"], bad["level"]) == ("s", "other", "provider", "warning")
    assert "first_token_secs" not in bad
    requests = [(line["method"], line["path"], line["status"], line["level"]) for line in found if "status" in line]
    assert requests == [
        ("POST", "/chat", 200, "debug"),
        ("POST", "/chat", 500, "info"),
        ("GET", "/sessions/[redacted]", 404, "debug"),
    ]
    assert all(line["duration_ms"] >= 0 for line in found if "status" in line)
    for word in ("secret question", "secret answer", harness.API_KEY):
        assert word not in text


def test_as_text_the_lines_are_what_they_were(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    upstream.script = [fake.text("a"), fake.refusal(400, "no")]
    with harness.serve(tmp_path / "w", tmp_path / "s", "--log-level", "debug", env=env) as pawand:
        pawand.call("POST", "/chat", {"message": "m", "session_id": "s"})
        pawand.call("POST", "/chat", {"message": "m", "session_id": "s"})
    text = pawand.log_text()
    when, turn = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", r"turn=[0-9a-f-]{36}"
    assert re.search(
        rf"^{when}INFO    turn done session=s {turn} model=test-model iterations=1 tool_calls=0 tokens=15 "
        r"first_token=\d+\.\d{3}s total=\d+\.\d{3}s$",
        text,
        re.MULTILINE,
    )
    assert re.search(
        rf"^{when}WARNING turn failed session=s {turn} model=test-model code=provider total=\d+\.\d{{3}}s: "
        r"the provider answered 400: no$",
        text,
        re.MULTILINE,
    )
    assert re.search(rf"^{when}DEBUG   POST /chat 200 \d+\.\dms$", text, re.MULTILINE)
    assert re.search(rf"^{when}INFO    POST /chat 500 \d+\.\dms$", text, re.MULTILINE)


def test_what_others_wrote_begins_no_line_and_steers_no_terminal(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    forged = "2026-04-14 12:00:00 INFO    all is well"
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "pawan.toml").write_text(f'"a\\n{forged}\\u001b[2J\\u009b\\u202e" = 1\n')
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        pass
    text = pawand.log_text()
    assert f"`a\\n{forged}\\x1b[2J\\x9b\\u202e`" in text
    assert not [line for line in text.splitlines() if line.startswith(forged)]
    assert text.replace("\n", "").isprintable()


def test_a_traceback_keeps_its_lines() -> None:
    try:
        raise ValueError("one\n\x1b[2Jtwo")
    except ValueError:
        record = logging.LogRecord("n", logging.ERROR, "f", 1, "it failed:\n%s", ("x\ty",), sys.exc_info())
    first, *rest = logs.TextFormatter().format(record).split("\n")
    assert first.endswith(r" ERROR   it failed:\nx\ty")
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-2:] == ["ValueError: one", r"\x1b[2Jtwo"]
