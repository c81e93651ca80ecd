"""Readers that wait for an event log: woken once for all that came, and let go when nothing will come."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from pawand.turns.log import Cursor, EventLog
from tests.turns.test_log import ROOMY, Reader, contents, filled, never, token


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(10):
            await test()

    asyncio.run(limited())


async def asleep(task: asyncio.Task[Any]) -> None:
    """Give the task every chance to go on, and see that it does not."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()


def test_a_wait_ends_once_for_all_that_came_together() -> None:
    async def test() -> None:
        log = filled(1)
        cursor = log.follow(1, never)
        batches: list[list[str]] = []

        async def read() -> None:
            while not cursor.ended:
                await cursor.wait()
                batches.append(contents(cursor.take()))

        task = asyncio.create_task(read())
        await asleep(task)
        for text in "234":
            log.append(token(text))
        await asleep(task)
        log.append(token("5"))
        await asleep(task)
        assert batches == [["1"], ["2", "3", "4"], ["5"]]
        log.append(token("6"))
        log.close()
        await task
        assert batches == [["1"], ["2", "3", "4"], ["5"], ["6"]]

    run(test)


def test_a_closed_log_ends_its_readers_after_the_rest() -> None:
    async def test() -> None:
        log = filled(2)
        cursor, last, done = log.follow(1, never), log.follow(2, never), log.follow(3, never)
        waiting = asyncio.create_task(done.wait())
        await asleep(waiting)
        log.close()
        await waiting
        assert (cursor.ended, last.ended, done.ended, cursor.lost) == (False, False, True, False)
        await cursor.wait()
        assert contents(cursor.take()) == ["1", "2"]
        assert cursor.ended
        await cursor.wait()

    run(test)


@pytest.mark.parametrize("end", [Cursor.close, Cursor.lose], ids=["closed", "lost"])
def test_a_reader_that_is_ended_stops_waiting(end: Callable[[Cursor], None]) -> None:
    async def test() -> None:
        log = EventLog(ROOMY)
        cursor = Reader(log, 1).cursor
        waiting = asyncio.create_task(cursor.wait())
        await asleep(waiting)
        end(cursor)
        await waiting
        assert cursor.ended
        assert not log.followed

    run(test)


def test_a_reader_that_gave_up_waiting_reads_on() -> None:
    async def test() -> None:
        log = EventLog(ROOMY)
        cursor = log.follow(1, never)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await cursor.wait()
        log.append(token("1"))
        await cursor.wait()
        assert contents(cursor.take()) == ["1"]

    run(test)


def test_a_silent_log_keeps_nothing_of_readers_that_have_gone() -> None:
    async def test() -> None:
        log = EventLog(ROOMY)

        async def visit() -> weakref.ref[Cursor]:
            cursor = log.follow(1, never)
            with suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await cursor.wait()
            cursor.close()
            return weakref.ref(cursor)

        gone = await asyncio.create_task(visit())
        gc.collect()
        assert gone() is None

    run(test)
