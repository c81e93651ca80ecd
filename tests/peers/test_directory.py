"""The directory: who of the Aegis file is who of mDNS, what they are called, and who answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pawand import config, wire
from pawand.peers.aegis import AegisFile
from pawand.peers.announcement import Neighbour
from pawand.peers.directory import Directory
from pawand.peers.probes import Probes

ME = "pawan@freya"


def neighbour(agent_id: str, ip: str, instance: str = "", *more: str, port: int = 4000) -> Neighbour:
    return Neighbour(
        instance=instance or agent_id,
        server="s.local.",
        agent_id=agent_id,
        groups=["announced"],
        ip=ip,
        addresses=frozenset([ip, *more]),
        port=port,
    )


class World:
    """A directory over an Aegis file, on a machine whose own address is 10.0.0.1."""

    def __init__(self, folder: Path, **settings: config.Peer) -> None:
        self.file = folder / "aegis-net.toml"
        self.directory = Directory(ME, AegisFile([self.file]), settings, lambda: frozenset(["10.0.0.1", "127.0.0.1"]))

    def aegis(self, **peers: str | None) -> None:
        lines = [
            f'[peers.{name}]\ngroups = ["listed"]\n' + (f'ip = "{ip}"\n' if ip else "") for name, ip in peers.items()
        ]
        self.file.write_text("".join(lines))

    def announce(self, *neighbours: Neighbour) -> None:
        for found in neighbours:
            self.directory.neighbours.put(found)

    def rows(self) -> list[tuple[Any, ...]]:
        found = asyncio.run(self.directory.peers())
        return [(p.name, p.agent_id, p.ip, p.port, p.source, p.online) for p in found]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_one_row_for_an_agent_that_both_know_by_its_id(world: World) -> None:
    world.aegis(odin="10.0.0.2")
    world.announce(neighbour("pawan@odin", "192.168.0.2", "odin", "10.0.0.2"), neighbour("x", "10.0.0.2"))
    assert world.rows() == [
        ("odin", "pawan@odin", "10.0.0.2", 4000, "aegis+mdns", True),
        ("x", "x", "10.0.0.2", 4000, "mdns", True),
    ]
    assert asyncio.run(world.directory.peers())[0].groups == ["listed"]


def test_one_row_for_an_agent_that_both_know_by_an_address(world: World) -> None:
    world.aegis(build="10.0.0.2")
    world.announce(neighbour("pawan@odin.lan", "192.168.0.2", "x", "10.0.0.2", "fd00::2"))
    assert world.rows() == [("build", "pawan@odin.lan", "10.0.0.2", 4000, "aegis+mdns", True)]


def test_of_two_that_announce_the_id_of_a_listed_peer_the_one_at_its_address_is_meant(world: World) -> None:
    """The other one may be the same machine, moved, as long as it is the only one."""
    world.aegis(laptop="10.0.0.5", nas="10.0.0.6")
    world.announce(neighbour("pawan@laptop", "10.0.0.66", "!other", port=6666))
    nas = ("nas", "pawan@nas", "10.0.0.6", None, "aegis", None)
    assert world.rows() == [("laptop", "pawan@laptop", "10.0.0.5", 6666, "aegis+mdns", True), nas]
    world.announce(neighbour("pawan@laptop", "10.0.0.5", port=3300))
    other = ("!other", "pawan@laptop", "10.0.0.66", 6666, "mdns", True)
    assert world.rows() == [other, ("laptop", "pawan@laptop", "10.0.0.5", 3300, "aegis+mdns", True), nas]


def test_two_agents_on_one_machine_are_two_rows(world: World) -> None:
    world.aegis(a="10.0.0.2", b="10.0.0.2", c="10.0.0.3")
    world.announce(
        neighbour("pawan@b", "10.0.0.2", port=1), neighbour("pawan@x", "10.0.0.2", port=2), neighbour("y", "10.0.0.2")
    )
    assert world.rows() == [
        ("a", "pawan@x", "10.0.0.2", 2, "aegis+mdns", True),
        ("b", "pawan@b", "10.0.0.2", 1, "aegis+mdns", True),
        ("c", "pawan@c", "10.0.0.3", None, "aegis", None),
        ("y", "y", "10.0.0.2", 4000, "mdns", True),
    ]


def test_an_announcement_gives_a_listed_peer_no_address(world: World) -> None:
    """A token may go to the addresses of the file, so they are the user's own word."""
    world.aegis(odin=None)
    world.announce(neighbour("pawan@odin", "10.0.0.66"))
    assert world.rows() == [("odin", "pawan@odin", None, 4000, "aegis+mdns", True)]


def test_an_announcement_takes_no_name_from_a_listed_peer(world: World) -> None:
    world.aegis(freya="10.0.0.1", odin="10.0.0.2")
    world.announce(
        neighbour("pawan@freya", "10.0.0.7", "pawan@freya-2"),
        neighbour("odin", "10.0.0.8", "odin"),
        neighbour("pawan@thor", "10.0.0.9"),
        neighbour("odin", "10.0.0.10", "odin (2)"),
    )
    assert [(name, agent_id, ip) for name, agent_id, ip, *_ in world.rows()] == [
        ("odin", "pawan@odin", "10.0.0.2"),
        ("odin (2)", "odin", "10.0.0.8"),
        ("odin (2) (2)", "odin", "10.0.0.10"),
        ("pawan@freya-2", "pawan@freya", "10.0.0.7"),
        ("thor", "pawan@thor", "10.0.0.9"),
    ]


def test_this_daemon_is_left_out_by_its_id_and_by_its_address(world: World) -> None:
    world.aegis(freya="10.9.9.9", laptop="10.0.0.1", loop="127.0.0.1", odin="10.0.0.2")
    assert [name for name, *_ in world.rows()] == ["odin"]


def test_another_daemon_of_this_machine_is_shown(world: World) -> None:
    world.aegis(laptop="10.0.0.1")
    assert world.rows() == []
    world.announce(neighbour("pawan@second", "10.0.0.1"))
    assert world.rows() == [("laptop", "pawan@second", "10.0.0.1", 4000, "aegis+mdns", True)]


def test_what_changes_is_seen_at_once(world: World) -> None:
    world.aegis(odin="10.0.0.2")
    assert [row[0] for row in world.rows()] == ["odin"]
    world.announce(neighbour("pawan@thor", "10.0.0.3"))
    assert [row[0] for row in world.rows()] == ["odin", "thor"]
    world.announce(neighbour("pawan@thor", "10.0.0.4"))
    assert world.rows()[1][2] == "10.0.0.4"
    world.directory.neighbours.drop("PAWAN@thor")
    world.aegis(odin="10.0.0.2", tyr="10.0.0.5")
    assert [row[0] for row in world.rows()] == ["odin", "tyr"]
    world.directory.adopt(AegisFile([]), {})
    assert world.rows() == []


def test_no_two_have_the_same_name_whatever_is_announced(world: World) -> None:
    world.aegis(a="10.0.0.2")
    names = ["a", "pawan@a", "b", "pawan@b", "pawan@", "pawan@pawan@b", "B", "a (2)"]
    for number, (agent_id, instance) in enumerate((x, y) for x in names for y in names):
        world.announce(neighbour(agent_id, f"10.1.0.{number}", f"{instance}.{number % 3}"))
    found = [row[0] for row in world.rows()]
    assert len(found) == len(set(found)) > 20
    assert found == sorted(found)
    assert all(found)


@pytest.mark.slow
@pytest.mark.alone
def test_many_are_merged_at_once(world: World) -> None:
    """It is done on the event loop."""
    world.aegis(**{f"p{n}": f"10.1.{n // 250}.{n % 250}" for n in range(1000)})
    world.announce(*(neighbour("pawan@same", f"10.2.0.{n}", f"n{n}") for n in range(256)))
    assert len(world.rows()) == 1256

    async def merge(number: int) -> float:
        world.announce(neighbour("pawan@same", "10.2.0.0", "n0", port=number))
        began = time.perf_counter()
        await world.directory.peers()
        return time.perf_counter() - began

    assert min(asyncio.run(merge(number)) for number in range(1, 11)) < 0.02


# --- who answers ----------------------------------------------------------------------------------

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEALTH = json.dumps({"status": "ok", "agent_id": "pawan@x"}).encode()


def says(body: bytes, status: str = "200 OK", headers: str = "") -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        known = request.startswith(b"GET /health HTTP/1.1\r\n")
        head = f"HTTP/1.1 {status if known else '404 No'}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        writer.write(head.encode() + body)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    return answer


@contextlib.asynccontextmanager
async def servers(**answers: Answer) -> AsyncIterator[Mapping[str, str]]:
    """A URL for each, all on loopback."""
    async with contextlib.AsyncExitStack() as stack:
        urls = {}
        for name, answer in answers.items():
            server = await stack.enter_async_context(await asyncio.start_server(answer, "127.0.0.1", 0))
            urls[name] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield urls


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for from outside
            await asyncio.sleep(0.01)


async def _all_known(probes: Probes, urls: Mapping[str, str]) -> dict[str, bool | None]:
    await until(lambda: all(probes.online(url) is not None for url in urls.values()))
    return {name: probes.online(url) for name, url in urls.items()}


def test_only_an_agent_in_good_health_is_online() -> None:
    followed = []

    async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        followed.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def go() -> dict[str, bool | None]:
        async with (
            servers(elsewhere=follow) as other,
            servers(
                agent=says(HEALTH),
                degraded=says(b'{"status": "degraded", "agent_id": "pawan@x"}'),
                web=says(b"<html>"),
                other=says(b'{"status": "ok"}'),
                nameless=says(b'{"agent_id": ""}'),
                number=says(b'{"agent_id": 3}'),
                broken=says(HEALTH, "500 Oh"),
                moved=says(HEALTH, "302 Found", f"Location: {other['elsewhere']}/health\r\n"),
                huge=says(b'{"agent_id": "' + b"x" * 100_000 + b'"}'),
                silent=hang,
            ) as urls,
        ):
            probes = Probes()
            refused = {"refused": "http://127.0.0.1:1", "nonsense": "http://[::zz]", "nowhere": "http://"}
            all_urls = {**urls, **refused}
            probes.ask(all_urls.values())
            assert probes.online(urls["agent"]) is None
            try:
                return await _all_known(probes, all_urls)
            finally:
                await probes.aclose()

    found = asyncio.run(go())
    assert [name for name, online in found.items() if online] == ["agent", "degraded"]
    assert followed == []


def test_few_are_asked_at_a_time_each_once_and_none_after_the_end() -> None:
    async def go() -> tuple[int, int]:
        now = most = asked = 0
        enough = asyncio.Event()

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal now, most, asked
            now, asked = now + 1, asked + 1
            most = max(most, now)
            if asked == 16:
                enough.set()
            await reader.read()
            now -= 1
            writer.close()

        async with servers(hang=hang) as urls:
            probes = Probes()
            many = [f"{urls['hang']}/{number}" for number in range(100)]
            probes.ask(many)
            probes.ask(many)
            await asyncio.wait_for(enough.wait(), 10)
            await probes.aclose()
            await until(lambda: not now)
        return most, asked

    assert asyncio.run(go()) == (16, 16)


@pytest.mark.parametrize(("seconds", "expected"), [(60.0, 1), (0.0, 2)])
def test_an_answer_counts_for_a_while(monkeypatch: pytest.MonkeyPatch, seconds: float, expected: int) -> None:
    monkeypatch.setattr("pawand.peers.probes.FRESH_SECS", seconds)

    async def go() -> int:
        asked = 0

        async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            asked += 1
            await says(HEALTH)(reader, writer)

        async with servers(agent=count) as urls:
            probes = Probes()
            probes.ask(urls.values())
            assert await _all_known(probes, urls) == {"agent": True}
            probes.ask(urls.values())
            await until(lambda: asked == expected)
            await probes.aclose()
        return asked

    assert asyncio.run(go()) == expected


def test_the_directory_tells_who_answers_where_the_settings_lead(tmp_path: Path) -> None:
    async def go() -> list[tuple[str, Any, Any]]:
        async with servers(up=says(HEALTH), elsewhere=says(HEALTH)) as urls:
            up, elsewhere = (urls[name] for name in ("up", "elsewhere"))
            world = World(
                tmp_path,
                up=config.Peer(address=up.removeprefix("http://")),
                far=config.Peer(address=elsewhere),
                down=config.Peer(address="127.0.0.1:1"),
                odd=config.Peer(address="http://[1:2]"),
            )
            world.aegis(up="127.0.0.9", far=None, down="127.0.0.8", odd=None, nowhere=None)
            first = await world.directory.peers()
            assert [row.online for row in first] == [None] * 5
            world.directory.probe()
            rows: list[wire.Peer] = []
            async with asyncio.timeout(15):
                while sum(row.online is not None for row in rows) < 4:
                    await asyncio.sleep(0.01)
                    rows = await world.directory.peers()
            await world.directory.aclose()
            ports = {int(url.rpartition(":")[2]): name for name, url in urls.items()}
            return [(row.name, ports.get(row.port or 0, row.port), row.online) for row in rows]

    assert asyncio.run(go()) == [
        ("down", 1, False),
        ("far", "elsewhere", True),
        ("nowhere", None, None),
        ("odd", None, False),
        ("up", "up", True),
    ]
