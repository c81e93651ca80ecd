"""A session store on a disk that hangs: what is asked about it, and everything else, is answered all the same.

No file system can be made to hang in a test without a program in the kernel's way, so the store's own look hangs here.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tornado.ioloop import IOLoop

from pawand.daemon import Parts
from pawand.sessions.store import SessionStore
from pawand.web import store_look
from pawand.web.store_look import StoreLook
from tests.web.conftest import Fetch, until

MANY = 50
"""More than the default executor has threads."""


class HangingStore(SessionStore):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.looks = 0
        self.works = threading.Event()

    def fault(self) -> str | None:
        self.looks += 1
        assert self.works.wait(60)
        return super().fault()


@pytest.fixture
def hanging(io_loop: IOLoop, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingStore]:
    monkeypatch.setattr(store_look, "STORE_SECS", 0.3)
    store = HangingStore(parts.plan.sessions)
    parts.services.store_look = StoreLook(store, lambda: 0)
    yield store
    store.works.set()
    io_loop.run_sync(lambda: _works(parts.services.store_look), timeout=15)


async def _works(look: StoreLook) -> None:
    while await look.fault() is not None:
        pass


@pytest.mark.gen_test
async def test_a_hung_disk_costs_one_look_however_many_ask(fetch: Fetch, hanging: HangingStore) -> None:
    reason = f"the session store {hanging.folder} does not answer"
    for path, status in (("/health", 200), ("/ready", 503)):
        answers = await asyncio.gather(*(fetch(path) for _ in range(MANY)))
        assert {answer.code for answer in answers} == {status}
        assert [json.loads(answer.body)["reasons"] for answer in answers] == [[reason]] * MANY
    assert hanging.looks == 1
    for path in ("/metrics", "/agents", "/openapi.json", "/sessions"):
        assert (await fetch(path, request_timeout=10)).code == 200
    hanging.works.set()
    async with asyncio.timeout(15):
        while (await fetch("/ready")).code != 200:
            pass


@pytest.mark.gen_test
async def test_who_comes_while_a_look_hangs_does_not_wait(fetch: Fetch, hanging: HangingStore) -> None:
    clock = asyncio.get_running_loop().time
    await fetch("/ready")
    began = clock()
    answers = [await fetch("/ready") for _ in range(10)]
    assert {answer.code for answer in answers} == {503}
    assert clock() - began < 10 * store_look.STORE_SECS / 2


@pytest.mark.gen_test
async def test_a_look_that_works_is_shared_and_made_anew_for_later_callers(fetch: Fetch, hanging: HangingStore) -> None:
    asking = [asyncio.create_task(fetch("/ready")) for _ in range(5)]
    await until(lambda: hanging.looks, "somebody looks")
    hanging.works.set()
    assert {answer.code for answer in await asyncio.gather(*asking)} == {200}
    before = hanging.looks
    hanging.folder.rename(hanging.folder.with_name("moved"))
    async with asyncio.timeout(2 * store_look.KEPT_SECS):
        while (await fetch("/ready")).code == 200:
            pass
    hanging.folder.with_name("moved").rename(hanging.folder)
    assert (await fetch("/ready")).code == 200
    assert hanging.looks > before


@pytest.mark.gen_test
async def test_many_who_ask_at_once_all_get_their_own_answer(fetch: Fetch) -> None:
    async def ask() -> list[int]:
        return [(await fetch("/health")).code for _ in range(20)]

    assert await asyncio.gather(*(ask() for _ in range(8))) == [[200] * 20] * 8
