"""The event loop is watched, and its passes stay short however much work there is."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pawand.event_loop import AWAKE_SECS, HOLD_SECS, MAX_EVENTS, SLICE_SECS, HoldWatch, Pace

PIECE_SECS = SLICE_SECS / 2


def run(test: Callable[[HoldWatch], Awaitable[Any]]) -> HoldWatch:
    watch = HoldWatch()

    async def within() -> None:
        async with asyncio.timeout(20):
            await test(watch)

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(watch)) as runner:
        runner.run(within())
    return watch


def work(secs: float) -> None:
    end = time.perf_counter() + secs
    while time.perf_counter() < end:
        pass


# --- HoldWatch ------------------------------------------------------------------------------------


def test_who_holds_the_loop_is_seen() -> None:
    async def test(_: HoldWatch) -> None:
        await asyncio.sleep(0.01)
        time.sleep(0.12)  # noqa: ASYNC251 - on purpose
        await asyncio.sleep(0.01)

    watch = run(test)
    assert 0.12 <= watch.longest < 1
    assert sum(watch.counts[HOLD_SECS.index(0.25) :]) == 1
    assert watch.total >= watch.longest


@pytest.mark.parametrize("secs", [0.0, AWAKE_SECS + 0.2], ids=["at once", "later"])
@pytest.mark.parametrize("event", [False, True], ids=["nothing to do", "an event"])
def test_a_thread_that_holds_the_interpreter_is_seen_though_the_loop_sleeps(*, event: bool, secs: float) -> None:
    ours, theirs = os.pipe()
    took = 0.0

    def hold() -> None:
        nonlocal took
        time.sleep(secs + 0.02)  # until the loop sleeps
        began = time.perf_counter()
        ctypes.PyDLL(None).usleep(300_000)  # which gives the interpreter to nobody
        took = time.perf_counter() - began

    async def test(watch: HoldWatch) -> None:
        loop = asyncio.get_running_loop()
        watch.busy = lambda: True
        if event:
            loop.add_reader(ours, loop.remove_reader, ours)
        await asyncio.to_thread(hold)

    with subprocess.Popen(["sleep", f"{secs + 0.1}"], stdout=theirs):  # its end is the event
        os.close(theirs)
        watch = run(test)
    os.close(ours)
    assert took >= 0.3
    assert watch.longest > took / 2


def test_a_loop_that_has_been_quiet_is_let_sleep() -> None:
    async def test(watch: HoldWatch) -> None:
        await asyncio.sleep(AWAKE_SECS + 0.2)
        before = sum(watch.counts)
        await asyncio.sleep(1.0)
        assert sum(watch.counts) - before < 10

    run(test)


def test_sleep_is_no_hold() -> None:
    async def test(_: HoldWatch) -> None:
        await asyncio.sleep(0.5)

    watch = run(test)
    assert watch.total < 0.3


def test_more_events_than_a_pass_takes_are_all_seen_in_turn() -> None:
    count = 3 * MAX_EVENTS

    async def test(watch: HoldWatch) -> None:
        loop = asyncio.get_running_loop()
        pairs = [socket.socketpair() for _ in range(count)]
        read: list[int] = []
        done = asyncio.Event()

        def take(number: int) -> None:
            pairs[number][0].recv(1)
            read.append(number)
            if len(read) == 2 * count:
                done.set()

        for number, (ours, _) in enumerate(pairs):
            loop.add_reader(ours, take, number)
        passes = sum(watch.counts)
        for _, theirs in pairs:
            theirs.send(b"ab")
        await done.wait()
        assert sum(watch.counts) - passes >= 2 * count / MAX_EVENTS
        assert set(read[:count]) == set(range(count))  # each gets its first turn before any has its second
        for ours, theirs in pairs:
            loop.remove_reader(ours)
            ours.close()
            theirs.close()

    run(test)


def test_a_descriptor_that_lives_on_in_a_copy_does_not_stop_the_loop() -> None:
    async def test(_: HoldWatch) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = os.pipe()
        copy = os.dup(ours)  # as a child would have it
        loop.add_reader(ours, lambda: None)
        os.close(ours)
        loop.remove_reader(ours)
        os.write(theirs, b"x")  # the kernel tells of it still
        await asyncio.sleep(0.05)
        os.close(copy)
        os.close(theirs)

    run(test)


# --- Pace -----------------------------------------------------------------------------------------


def test_streams_with_much_to_do_leave_room_for_others() -> None:
    streams, pieces = 40, 10

    async def test(watch: HoldWatch) -> None:
        pace = Pace()
        passes = sum(watch.counts)

        async def stream() -> None:
            for _ in range(pieces):
                await pace.breathe()
                work(PIECE_SECS)

        await asyncio.gather(*(stream() for _ in range(streams)))
        # Each pass may take a piece more than fits, but not a piece of every stream.
        assert sum(watch.counts) - passes > streams * pieces * PIECE_SECS / SLICE_SECS / 4

    run(test)


def test_streams_go_on_in_the_order_in_which_they_came() -> None:
    async def test(_: HoldWatch) -> None:
        pace = Pace()
        order: list[int] = []

        async def stream(number: int) -> None:
            await pace.breathe()
            order.append(number)
            work(PIECE_SECS)

        await asyncio.gather(*(stream(number) for number in range(50)))
        assert order == list(range(50))

    run(test)


def test_small_pieces_go_many_at_a_time() -> None:
    streams = 2000

    async def test(watch: HoldWatch) -> None:
        pace = Pace()
        passes = sum(watch.counts)
        await asyncio.gather(*(pace.breathe() for _ in range(streams)))
        assert sum(watch.counts) - passes < streams / 10

    run(test)


def test_who_is_cancelled_while_it_waits_holds_nobody_up() -> None:
    async def test(_: HoldWatch) -> None:
        pace = Pace()
        went: list[int] = []

        async def stream(number: int) -> None:
            await pace.breathe()
            work(PIECE_SECS)
            went.append(number)

        tasks = [asyncio.create_task(stream(number)) for number in range(40)]
        await asyncio.sleep(0)
        for task in tasks[10:30]:
            task.cancel()
        await asyncio.wait(tasks)
        assert {*range(10), *range(30, 40)} <= set(went)
        await pace.breathe()  # and it lets in who comes later

    run(test)
