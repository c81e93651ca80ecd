"""Full collections wait for a quiet moment, but not for ever."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest

from pawand import garbage

MANY = 50


@contextmanager
def full_collections() -> Iterator[list[dict[str, Any]]]:
    made: list[dict[str, Any]] = []

    def note(phase: str, info: dict[str, Any]) -> None:
        if phase == "stop" and info["generation"] == 2:
            made.append(info)

    gc.callbacks.append(note)
    try:
        yield made
    finally:
        gc.callbacks.remove(note)


@asynccontextmanager
async def collecting(busy: Callable[[], bool]) -> AsyncIterator[None]:
    task = asyncio.create_task(garbage.collect_when_quiet(busy))
    await asyncio.sleep(0)
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def until_made(made: list[dict[str, Any]]) -> None:
    for _ in range(500):
        if made:
            return
        await asyncio.sleep(0.01)
    pytest.fail("no full collection was made")


def make_due() -> None:
    for _ in range(MANY):
        gc.collect(1)


def test_they_are_made_when_they_are_due_and_nobody_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "LOOK_SECS", 0.01)
    before = gc.get_threshold()
    is_busy = True

    async def test(made: list[dict[str, Any]]) -> None:
        nonlocal is_busy
        async with collecting(lambda: is_busy):
            make_due()
            await asyncio.sleep(0.1)
            assert not made
            is_busy = False
            await until_made(made)
            await asyncio.sleep(0.1)
            assert len(made) == 1, "it is not due again"

    gc.collect()
    with full_collections() as made:
        asyncio.run(test(made))
    assert gc.get_threshold() == before


def test_they_do_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "LOOK_SECS", 0.01)
    monkeypatch.setattr(garbage, "LONGEST_SECS", 0.05)

    async def test(made: list[dict[str, Any]]) -> None:
        async with collecting(lambda: True):
            make_due()
            await until_made(made)

    gc.collect()
    with full_collections() as made:
        asyncio.run(test(made))


def test_what_a_start_makes_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "LOOK_SECS", 0.01)

    async def test(made: list[dict[str, Any]]) -> None:
        async with collecting(lambda: False):
            with garbage.none_meanwhile():
                make_due()
                kept = [[number] for number in range(100_000)]
                await asyncio.sleep(0.1)
                assert not gc.isenabled()
            assert gc.isenabled()
            assert not made
            assert gc.get_freeze_count() > len(kept)

    gc.collect()
    try:
        with full_collections() as made:
            asyncio.run(test(made))
    finally:
        gc.unfreeze()


def test_a_start_that_takes_long_does_not_do_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "LONGEST_START_SECS", 0.05)

    async def test() -> None:
        with garbage.none_meanwhile():
            await asyncio.sleep(0.2)
            assert gc.isenabled()

    try:
        asyncio.run(test())
    finally:
        gc.unfreeze()
