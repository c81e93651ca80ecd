"""What asyncio leaves to its users: a time limit for many short waits, threads for one kind of work."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from pawand.aio import Watchdog, Workers, uninterrupted


def run(test: Callable[[], Awaitable[Any]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(10):
            await test()

    asyncio.run(within())


def test_it_barks_when_nothing_happens_for_too_long_and_can_be_fed_again() -> None:
    async def test() -> None:
        watchdog = Watchdog(0.05)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await watchdog.wait(asyncio.Event().wait())
            watchdog.feed(0.05)
        assert await watchdog.wait(asyncio.sleep(0, "quick")) == "quick"
        watchdog.close()

    run(test)


def test_one_that_is_fed_in_time_is_silent() -> None:
    async def test() -> None:
        watchdog = Watchdog(0.2)
        began = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() - began < 0.6:
            await watchdog.wait(asyncio.sleep(0.02))
            watchdog.feed(0.2)
        watchdog.close()

    run(test)


def test_it_can_be_given_less_time_than_it_had() -> None:
    async def test() -> None:
        watchdog = Watchdog(60)
        await watchdog.wait(asyncio.sleep(0))
        watchdog.feed(0.05)
        with pytest.raises(TimeoutError):
            await watchdog.wait(asyncio.Event().wait())

    run(test)


def test_time_that_passes_between_waits_counts() -> None:
    async def test() -> None:
        watchdog = Watchdog(0.05)
        await watchdog.wait(asyncio.sleep(0))
        await asyncio.sleep(0.1)
        with pytest.raises(TimeoutError):
            await watchdog.wait(asyncio.Event().wait())

    run(test)


def test_what_goes_wrong_goes_through() -> None:
    async def fail() -> None:
        raise KeyError("mine")

    async def test() -> None:
        watchdog = Watchdog(5)
        with pytest.raises(KeyError):
            await watchdog.wait(fail())
        task = asyncio.create_task(watchdog.wait(asyncio.Event().wait()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        watchdog.close()

    run(test)


def test_its_cancellation_is_taken_back_whatever_the_work_makes_of_it() -> None:
    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise KeyError("mine") from None

    async def test() -> None:
        watchdog = Watchdog(0.02)
        with pytest.raises(KeyError):
            await watchdog.wait(stubborn())
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(test)


def test_who_is_cancelled_in_the_moment_of_the_bark_is_cancelled() -> None:
    async def test() -> None:
        watchdog = Watchdog(0.02)

        async def wait() -> None:
            await watchdog.wait(asyncio.Event().wait())

        task = asyncio.create_task(wait())
        asyncio.get_running_loop().call_later(0.02, task.cancel)
        await asyncio.sleep(0)
        await asyncio.wait([task])
        assert task.cancelled() or isinstance(task.exception(), TimeoutError)
        assert task.cancelling() <= 1

    for _ in range(20):
        run(test)


# --- uninterrupted --------------------------------------------------------------------------------


@pytest.mark.parametrize("cancelled", [True, False], ids=["who was cancelled", "what failed"])
def test_it_leaves_nothing_for_a_collection(*, cancelled: bool) -> None:
    class Kept:
        pass

    async def test() -> None:
        gate = asyncio.Event()

        async def work() -> None:
            await gate.wait()
            if not cancelled:
                raise ValueError

        async def wait(kept: Kept) -> None:
            await uninterrupted(work())

        kept = Kept()
        gone = weakref.ref(kept)
        task = asyncio.create_task(wait(kept))
        del kept
        await asyncio.sleep(0)
        if cancelled:
            task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        gate.set()
        with suppress(asyncio.CancelledError, ValueError):
            await task
        assert task.cancelled() is cancelled
        del task
        await asyncio.sleep(0)  # the step that was woken by an exception holds it
        assert gone() is None

    gc.disable()
    try:
        run(test)
    finally:
        gc.enable()


# --- Workers --------------------------------------------------------------------------------------


def test_so_many_work_at_once_and_no_more() -> None:
    async def test() -> None:
        workers = Workers("test", 2)
        go = threading.Event()
        began: list[int] = []

        def work(number: int) -> int:
            began.append(number)
            go.wait(5)
            return number

        tasks = [asyncio.create_task(workers.do(work, number)) for number in range(6)]
        await asyncio.sleep(0.2)
        assert sorted(began) == [0, 1]
        go.set()
        assert await asyncio.gather(*tasks) == list(range(6))
        workers.close()

    run(test)


@pytest.mark.parametrize("give_up", [False, True])
def test_what_waits_at_the_end_is_done_unless_it_is_given_up(*, give_up: bool) -> None:
    async def test() -> None:
        workers = Workers("test", 1)
        gate = threading.Event()
        running = asyncio.create_task(workers.do(gate.wait, 5))
        waiting = asyncio.create_task(workers.do(lambda: "done"))
        await asyncio.sleep(0.01)
        workers.close(give_up=give_up)
        gate.set()
        assert await running
        if give_up:
            with pytest.raises(asyncio.CancelledError):
                await waiting
        else:
            assert await waiting == "done"
        with pytest.raises(RuntimeError):
            await workers.do(lambda: None)

    run(test)
