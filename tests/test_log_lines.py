"""What the daemon writes into its log: a line for each turn and request, as text and as JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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
