"""The event log: every reader gets every event in order, or is told that it has lost its place."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pawand.turns.log import EventLog
from pawand.wire import Token, ToolStart
from tests.harness import parse_frames

ROOMY = 1 << 20


def never() -> None:
    raise AssertionError("the cursor was lost")


def token(text: str) -> Token:
    return Token(content=text, iteration=1)


def filled(count: int, ring_bytes: int = ROOMY) -> EventLog:
    log = EventLog(ring_bytes)
    for number in range(1, count + 1):
        assert log.append(token(str(number))) == number
    return log


def contents(frames: bytes) -> list[str]:
    return [data["content"] for _, _, data in parse_frames(frames.decode())]


def numbers(frames: bytes) -> list[int]:
    return [int(id.rpartition("-")[2]) for id, _, _ in parse_frames(frames.decode())]


# --- frames ---------------------------------------------------------------------------------------


def test_a_frame_is_id_event_and_data() -> None:
    log = EventLog(ROOMY)
    log.append(ToolStart(name="bash", id="c1", arguments={"command": "ls"}, iteration=2))
    log.append(token("é"))
    assert log.follow(1, never).take().decode() == (
        f'id: {log.epoch}-1\nevent: tool_start\ndata: {{"name":"bash","id":"c1",'
        '"arguments":{"command":"ls"},"iteration":2}\n\n'
        f'id: {log.epoch}-2\nevent: token\ndata: {{"content":"é","iteration":1}}\n\n'
    )
    assert log.last == 2


@pytest.mark.parametrize("text", ["a\nb\n\nc", "a\r\nb\r", "\u2028\u2029\x85\x0b\x0c", "data: x\n\nevent: done", "\0"])
def test_a_frame_is_one_line_of_data_whatever_the_text_holds(text: str) -> None:
    log = EventLog(ROOMY)
    log.append(token(text))
    frame = log.follow(1, never).take()
    assert frame.count(b"\n") == 4
    assert b"\r" not in frame
    assert frame.endswith(b"\n\n")
    assert contents(frame) == [text]


def test_epochs_differ() -> None:
    assert len({EventLog(ROOMY).epoch for _ in range(50)}) == 50


# --- reading --------------------------------------------------------------------------------------


def test_an_empty_log() -> None:
    log = EventLog(ROOMY)
    assert (log.last, log.position(f"{log.epoch}-0"), log.followed) == (0, 1, False)
    cursor = log.follow(1, never)
    assert (cursor.take(), cursor.ended, log.followed) == (b"", False, True)
    cursor.close()
    assert not log.followed


def test_cursors_read_all_in_order_each_from_its_own_place() -> None:
    log = filled(3)
    first, second, third = log.follow(1, never), log.follow(3, never), log.follow(4, never)
    assert [contents(cursor.take()) for cursor in (first, second, third)] == [["1", "2", "3"], ["3"], []]
    log.append(token("4"))
    assert contents(third.take()) == ["4"]
    log.append(token("5"))
    assert [contents(cursor.take()) for cursor in (first, second, third)] == [["4", "5"], ["4", "5"], ["5"]]
    assert first.take() == b""


def test_a_cursor_may_stop_at_an_end() -> None:
    log = filled(5)
    cursor = log.follow(2, never)
    assert numbers(cursor.take(3)) == [2, 3]
    assert cursor.take(3) == b""
    assert numbers(cursor.take(99)) == [4, 5]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda log: f"{log.epoch}-{log.last}", 6),
        (lambda log: f"{log.epoch}-4", 5),
        (lambda log: f"{log.epoch}-2", 3),
        (lambda log: f"{log.epoch}-1", None),
        (lambda log: f"{log.epoch}-0", None),
        (lambda log: f"{log.epoch}-6", None),
        (lambda log: f"{log.epoch}-{10**18}", None),
        (lambda log: f"{log.epoch}-{'9' * 5000}", None),
        (lambda log: f"{log.epoch}-", None),
        (lambda log: f"{log.epoch}--4", None),
        (lambda log: f"{log.epoch}-+4", None),
        (lambda log: f"{log.epoch}- 4", None),
        (lambda log: f"{log.epoch}-٤", None),
        (lambda log: f"{log.epoch}-²", None),
        (lambda log: log.epoch, None),
        (lambda log: f"{EventLog(ROOMY).epoch}-4", None),
        (lambda log: f"x{log.epoch}-4", None),
        (lambda log: "4", None),
        (lambda log: "", None),
        (lambda log: "-4", None),
    ],
    ids=lambda value: str(value) if not callable(value) else "",
)
def test_the_position_after_an_id(make: Callable[[EventLog], str], expected: int | None) -> None:
    log = filled(5)
    size = len(log.follow(5, never).take())
    log = filled(5, ring_bytes=3 * size)
    assert [number for number in range(-1, 9) if log.holds(number)] == [3, 4, 5, 6]
    assert log.position(make(log)) == expected


# --- the ring -------------------------------------------------------------------------------------


class Reader:
    """A cursor that counts how often it was told that it is lost."""

    def __init__(self, log: EventLog, position: int) -> None:
        self.losses = 0
        self.cursor = log.follow(position, self._count)

    def _count(self) -> None:
        self.losses += 1


def test_the_ring_leaves_a_lagging_cursor_behind_and_never_a_current_one() -> None:
    size = len(filled(1).follow(1, never).take())
    log = filled(1, ring_bytes=3 * size)
    lagging, next_to_last, current = Reader(log, 1), Reader(log, 2), Reader(log, 1)
    seen = contents(current.cursor.take())
    for text in "23456789":
        log.append(token(text))
        seen += contents(current.cursor.take())
        assert lagging.losses == (1 if text >= "4" else 0)
        assert next_to_last.losses == (1 if text >= "5" else 0)
    assert seen == list("123456789")
    assert (current.losses, current.cursor.ended) == (0, False)
    assert (lagging.cursor.take(), lagging.cursor.ended, lagging.cursor.lost) == (b"", True, True)
    lagging.cursor.close()
    assert lagging.losses == 1


def test_an_event_that_is_larger_than_the_ring_is_kept_until_the_next() -> None:
    log = EventLog(100)
    cursor, slow = Reader(log, 1), Reader(log, 1)
    log.append(token("x" * 1000))
    assert contents(cursor.cursor.take()) == ["x" * 1000]
    log.append(token("y" * 1000))
    assert contents(cursor.cursor.take()) == ["y" * 1000]
    assert (cursor.losses, slow.losses) == (0, 1)


@pytest.mark.parametrize("position", [0, 1, 7, 100])
def test_following_from_where_nothing_is_held_is_lost_at_once(position: int) -> None:
    size = len(filled(1).follow(1, never).take())
    log = filled(5, ring_bytes=3 * size)
    reader = Reader(log, position)
    assert (reader.losses, reader.cursor.take(), reader.cursor.ended, log.followed) == (1, b"", True, False)
