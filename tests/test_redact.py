"""Known secrets never leave, whole or in pieces, and nothing else is changed."""

from __future__ import annotations

import io
import logging
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawand.redact import MASK, LogFilter, Redactor

KEY = "SK-0123456789"
LONGER = KEY + "-TAIL"
INNER = "0123456789"


@pytest.mark.parametrize(
    ("secrets", "text", "expected"),
    [
        ([], f"key {KEY}", f"key {KEY}"),
        ([KEY], "nothing here", "nothing here"),
        ([KEY], f"{KEY}{KEY} and {KEY}", f"{MASK}{MASK} and {MASK}"),
        ([KEY], KEY.lower(), KEY.lower()),
        ([KEY], KEY[:-1], KEY[:-1]),
        ([KEY, LONGER], f"{LONGER} {KEY}", f"{MASK} {MASK}"),
        ([INNER, KEY], f"{KEY} {INNER}", f"{MASK} {MASK}"),
        (["a.c*(e)[]", KEY], "a.c*(e)[] abc*(e)[]", f"{MASK} abc*(e)[]"),
        (["redacted]", KEY], KEY, MASK),
        (["", "test", "none"], "test none", "test none"),
        ([KEY], "Bearer abcdefgh12345678", "Bearer abcdefgh12345678"),
    ],
)
def test_exactly_the_secrets_are_replaced(secrets: list[str], text: str, expected: str) -> None:
    assert Redactor(secrets).text(text) == expected


def test_every_string_of_a_value_is_redacted_and_the_value_left_alone() -> None:
    value: dict[str, Any] = {f"a {KEY}": [f"x{KEY}", 1, None, {"b": [KEY, True, 2.5]}], "c": "plain"}
    assert Redactor([KEY]).value(value) == {f"a {MASK}": [f"x{MASK}", 1, None, {"b": [MASK, True, 2.5]}], "c": "plain"}
    assert value["c"] == "plain"
    assert value[f"a {KEY}"][0] == f"x{KEY}"


@pytest.mark.parametrize(
    ("secret", "value", "expected"),
    [
        ('a"b\\c\n0123', ['a"b\\c\n0123'], [MASK]),
        ("n0123456", ["\n0123456", "n0123456"], ["\n0123456", MASK]),
        ("12345678", [12345678, "12345678"], [12345678, MASK]),
        (KEY, KEY, MASK),
        (KEY, {}, {}),
    ],
)
def test_a_value_is_redacted_by_its_strings_not_by_its_encoding(secret: str, value: Any, expected: Any) -> None:
    assert Redactor([secret]).value(value) == expected


def test_a_value_may_be_nested_as_deeply_as_it_can_be_read() -> None:
    depth = 900
    value = msgspec.json.decode("[" * depth + f'"{KEY}"' + "]" * depth)
    assert msgspec.json.encode(Redactor([KEY]).value(value)).decode() == "[" * depth + f'"{MASK}"' + "]" * depth


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Bearer abc.DEF-123~x", f"Authorization: Bearer {MASK}"),
        ("bearer   abcdefgh, ApiKey 12345678", f"bearer {MASK}, ApiKey {MASK}"),
        ("Bearer short", "Bearer short"),
        ("a standard-bearer", "a standard-bearer"),
        (f"got {KEY}", f"got {MASK}"),
        (f"Bearer {KEY}", f"Bearer {MASK}"),
    ],
)
def test_logs_lose_bearer_tokens_of_others_too(text: str, expected: str) -> None:
    assert Redactor([KEY]).log(text) == expected


def streamed(redactor: Redactor, pieces: list[str]) -> list[str]:
    stream = redactor.stream()
    return [*map(stream.feed, pieces), stream.flush()]


@pytest.mark.parametrize("secrets", [[KEY], [KEY, LONGER], [LONGER, INNER], [INNER, KEY, LONGER]])
@pytest.mark.parametrize("secret", [KEY, LONGER])
def test_a_secret_is_caught_wherever_it_is_split(secrets: list[str], secret: str) -> None:
    redactor = Redactor(secrets)
    text = f"«{secret}»"
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            output = streamed(redactor, [text[:first], text[first:second], text[second:]])
            assert "".join(output) == redactor.text(text)


def test_nothing_of_a_secret_is_sent_before_it_is_known_to_be_none() -> None:
    redactor = Redactor([KEY])
    assert streamed(redactor, ["now ", *KEY, " end"]) == ["now ", *[""] * (len(KEY) - 1), MASK, " end", ""]
    assert streamed(redactor, ["SK-", "0123", "X"]) == ["", "", "SK-0123X", ""]
    assert streamed(redactor, ["SK-", "012"]) == ["", "", "SK-012"]
    assert streamed(redactor, ["SSK", "K-S", "K-"]) == ["S", "SKK-", "", "SK-"]


def test_a_stream_without_a_secret_is_not_delayed() -> None:
    assert streamed(Redactor([KEY]), ["to", "ken", " by", " token"]) == ["to", "ken", " by", " token", ""]
    assert streamed(Redactor([]), [KEY[:3], KEY[3:]]) == [KEY[:3], KEY[3:], ""]


SECRETS = st.lists(st.text("ab", min_size=8, max_size=11), min_size=1, max_size=3)


@given(secrets=SECRETS, data=st.data())
def test_a_stream_ends_up_as_the_whole_text_would(secrets: list[str], data: st.DataObject) -> None:
    parts = st.sampled_from([*secrets, *(s[:-1] for s in secrets), *(s[1:] for s in secrets), "a", "b", " "])
    text = "".join(data.draw(st.lists(parts, max_size=6)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])]
    redactor = Redactor(secrets)
    output = "".join(streamed(redactor, pieces))
    assert output == redactor.text(text)
    assert not any(secret in output for secret in secrets)


# --- log records ----------------------------------------------------------------------------------


def logged(call: str) -> str:
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.addFilter(LogFilter(Redactor([KEY])))
    logger = logging.Logger("test_redact")
    logger.addHandler(handler)
    try:
        raise ValueError(f"refused {KEY}")
    except ValueError as error:
        match call:
            case "message":
                logger.warning("key " + KEY + " of 100%")
            case "arguments":
                logger.warning("key %s, %r, %d", KEY, {"Authorization": "Bearer abcdefgh12345678"}, 3)
            case "error":
                logger.warning("failed: %s", error)
            case "traceback":
                logger.exception("failed")
    return output.getvalue()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("message", f"key {MASK} of 100%\n"),
        ("arguments", f"key {MASK}, {{'Authorization': 'Bearer {MASK}'}}, 3\n"),
        ("error", f"failed: refused {MASK}\n"),
    ],
)
def test_log_lines_are_redacted_when_they_are_whole(call: str, expected: str) -> None:
    assert logged(call) == expected


def test_tracebacks_are_redacted() -> None:
    text = logged("traceback")
    assert text.startswith("failed\nTraceback (most recent call last):\n")
    assert text.endswith(f"ValueError: refused {MASK}\n")
    assert KEY not in text
