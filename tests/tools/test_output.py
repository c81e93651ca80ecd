"""The one policy for long text: how much is kept, from where, and that it says so."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pawand.tools.output import HEAD_BYTES, TAIL_BYTES, HeadTail, clean, clip, fit, preview

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=400),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=20), inner, max_size=8),
    max_leaves=60,
)
LONG = st.builds(lambda text, times: text * times, st.text(min_size=1, max_size=40), st.integers(1, 3000))


def kept(pieces: list[bytes]) -> str:
    stream = HeadTail()
    for piece in pieces:
        stream.feed(piece)
    return stream.text()


@pytest.mark.parametrize("size", [0, 1, HEAD_BYTES, HEAD_BYTES + 1, HEAD_BYTES + TAIL_BYTES])
@pytest.mark.parametrize("step", [1000, 7, 10**6])
def test_a_stream_that_fits_is_kept_whole(size: int, step: int) -> None:
    data = bytes(ord("a") + number % 26 for number in range(size))
    assert kept([data[at : at + step] for at in range(0, size, step)]) == data.decode()


@pytest.mark.parametrize("step", [1000, 65536, 10**7])
@pytest.mark.parametrize("size", [HEAD_BYTES + TAIL_BYTES + 1, 1_000_000])
def test_of_a_longer_stream_head_and_tail_are_kept(size: int, step: int) -> None:
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    head, note, tail = kept([data[at : at + step] for at in range(0, size, step)]).split("\n")
    assert head == data[:HEAD_BYTES].decode()
    assert tail == data[-TAIL_BYTES:].decode()
    assert note == f"[… {size - HEAD_BYTES - TAIL_BYTES} bytes left out …]"


def test_a_character_cut_in_two_leaves_no_broken_half() -> None:
    text = kept(["🦀".encode() * 50_000, b"x", "🦀".encode() * 50_000])
    assert "\ufffd" not in text
    assert text.startswith("🦀")
    assert text.endswith("🦀")


def test_binary_output_becomes_text() -> None:
    assert kept([b"a\xff\0b\x1b[0m"]) == "a\ufffd\u2400b\x1b[0m"


def test_a_character_that_comes_in_two_pieces_is_one() -> None:
    crab = "🦀".encode()
    assert kept([crab[:1], crab[1:3], crab[3:]]) == "🦀"


def test_clean_leaves_what_every_reader_takes() -> None:
    assert clean("a\0b\ud800c\udcffé🦀\n\t") == "a\u2400b?c?é🦀\n\t"


def test_clip_cuts_at_line_ends_and_says_how_much() -> None:
    text = "".join(f"line {number}\n" for number in range(1000))
    lines = clip(text, 900, "read the rest with sed").splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("[…"))
    assert lines[:at] == [f"line {number}" for number in range(at)]
    assert lines[at + 1 :] == [f"line {number}" for number in range(1000 - (len(lines) - at - 1), 1000)]
    missing = len(text) - sum(len(line) + 1 for line in lines[:at] + lines[at + 1 :])
    assert lines[at] == f"[… {missing} characters left out; read the rest with sed …]"
    assert len(lines) - at > 20
    assert at > 40


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 10, 499])
def test_clip_cuts_a_single_line_too(limit: int) -> None:
    text = clip("x" * 500, limit)
    assert "left out" in text
    assert text.count("x") <= limit


@settings(max_examples=150, deadline=None)
@given(text=LONG | st.text(), limit=st.integers(0, 3000))
def test_clip_stays_about_within_the_limit(text: str, limit: int) -> None:
    result = clip(text, limit)
    if len(text) <= limit:
        assert result == text
    else:
        assert len(result) <= limit + 60
        assert "characters left out" in result


@settings(max_examples=150, deadline=None)
@given(result=JSON, limit=st.integers(500, 4000))
@example(result={f"key {number:015}": {f"{inner}": None for inner in range(5)} for number in range(12)}, limit=500)
def test_any_result_fits(result: Any, limit: int) -> None:
    fitted = fit(result, limit)
    encoded = fitted.encode() if isinstance(fitted, str) else msgspec.json.encode(fitted)
    if len(msgspec.json.encode(result)) <= limit:
        assert fitted == result
    elif isinstance(fitted, str) and not isinstance(result, str):
        assert len(fitted) <= limit
        assert "left out" in fitted or json.loads(fitted) == result
    else:
        assert len(encoded) <= limit
        json.loads(msgspec.json.encode(fitted))


@settings(max_examples=50, deadline=None)
@given(fields=st.dictionaries(st.sampled_from("abcdef"), LONG, min_size=1), limit=st.integers(9000, 20_000))
def test_a_result_of_long_texts_keeps_its_fields_and_uses_the_room(fields: dict[str, str], limit: int) -> None:
    size = len(msgspec.json.encode(fields))
    fitted = fit(fields, limit)
    assert isinstance(fitted, dict)
    assert list(fitted) == list(fields)
    assert len(msgspec.json.encode(fitted)) <= limit
    if size > limit:
        assert len(msgspec.json.encode(fitted)) > limit / 3, "far more was cut than had to be"


@pytest.mark.parametrize("letter", ["x", "é", "ж", "字", "🦀", '"', "\\", "\x01"])
def test_a_text_in_any_script_is_cut_no_shorter_than_needed(letter: str) -> None:
    text = "".join(letter * 40 + "\n" for _ in range(2000))
    fitted = fit({"success": True, "stdout": text, "stderr": ""}, 8000)
    assert fitted["success"] is True
    assert 5000 < len(msgspec.json.encode(fitted)) <= 8000
    assert "left out" in fitted["stdout"]


def test_the_longest_field_is_cut_and_the_others_are_not() -> None:
    fitted = fit({"path": "p" * 300, "content": "line\n" * 5000, "exit_code": 3}, 2000)
    assert fitted["path"] == "p" * 300
    assert fitted["exit_code"] == 3
    assert "characters left out" in fitted["content"]


def test_a_list_keeps_its_beginning_and_counts_the_rest() -> None:
    items = [{"name": f"entry {number}"} for number in range(1000)]
    fitted = fit({"entries": items, "count": 1000}, 3000)
    *shown, note = fitted["entries"]
    assert shown == items[: len(shown)]
    assert note == f"[… {1000 - len(shown)} more left out …]"
    assert len(msgspec.json.encode(fitted)) <= 3000
    assert len(shown) > 50


def test_a_long_text_deep_down_takes_no_long_time() -> None:
    result: Any = "x" * 3_000_000
    for _ in range(150):
        result = {"a": [result, 1]}
    started = time.process_time()
    assert len(msgspec.json.encode(fit(result, 8000))) < 9000
    assert time.process_time() - started < 1


def test_of_many_results_the_short_ones_stay_and_the_long_ones_share_the_room() -> None:
    long, short = {"content": "line\n" * 4000}, {"success": True}
    fitted = fit({"results": [long, *[short] * 10, long, *[short] * 10, long]}, 8000)
    assert len(fitted["results"]) == 23
    assert [row for row in fitted["results"] if row == short] == [short] * 20
    sizes = [len(row["content"]) for row in fitted["results"] if "content" in row]
    assert len(sizes) == 3
    assert min(sizes) > 1500
    assert len(msgspec.json.encode(fitted)) <= 8000


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("plain", "plain"),
        ({"success": True, "content": "the text", "path": "p"}, "the text"),
        ({"error": "went wrong", "content": "the text"}, "went wrong"),
        ({"success": True, "diff": "--- a", "path": "p"}, "--- a"),
        ({"stdout": "", "stderr": "e"}, '{"stdout":"","stderr":"e"}'),
        ({"results": ["a:1:x", "b:2:y"], "count": 2}, "a:1:x\nb:2:y"),
        ({"files": ["a"], "count": 1}, '{"files":["a"],"count":1}'),
        (["a", "b"], "a\nb"),
        (3, "3"),
        (None, "null"),
        ({"content": "x" * 200}, "x" * 200),
        ({"content": "x" * 201}, "x" * 199 + "…"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_preview(result: Any, text: str) -> None:
    assert preview(result) == text


@settings(max_examples=80, deadline=None)
@given(result=JSON)
def test_a_preview_is_always_short(result: Any) -> None:
    assert len(preview(result)) <= 200
