"""`/agents` over HTTP: who sees what, and how soon, of a large Aegis file."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pawand.daemon import Parts
from pawand.peers.announcement import Neighbour
from tests.web.conftest import Fetch

MANY = 1000
FORWARDED = {"X-Forwarded-For": "10.0.0.9"}
"""What makes a caller on loopback one from elsewhere."""


@pytest.fixture
def aegis(_own_home: Path) -> Path:
    file = Path(os.environ["HOME"]) / ".config" / "aegis" / "aegis-net.toml"
    file.parent.mkdir(parents=True)
    return file


def announced(agent_id: str) -> Neighbour:
    addresses = frozenset(["10.0.0.9"])
    return Neighbour(
        instance=agent_id, server="s.local.", agent_id=agent_id, groups=[], ip="10.0.0.9", addresses=addresses, port=1
    )


@pytest.mark.gen_test
async def test_a_stranger_sees_less_and_has_nobody_asked(fetch: Fetch, parts: Parts, aegis: Path) -> None:
    aegis.write_text('[peers.down]\nip = "127.99.0.1"\n')
    parts.services.directory.neighbours.put(announced("pawan@odin"))
    rows: list[dict[str, Any]] = msgspec.json.decode((await fetch("/agents", headers=FORWARDED)).body)["peers"]
    assert rows == [
        {"name": "down", "agent_id": "pawan@down", "ip": "127.99.0.1", "groups": []},
        {"name": "odin", "agent_id": "pawan@odin", "ip": "10.0.0.9", "groups": []},
    ]
    for online in (None, False):
        while True:  # the second answer is there as soon as the peer has refused
            rows = msgspec.json.decode((await fetch("/agents")).body)["peers"]
            if rows[0]["online"] is online:
                break
    assert [(r["port"], r["source"], r["online"]) for r in rows] == [(None, "aegis", False), (1, "mdns", True)]


@pytest.mark.gen_test
async def test_a_page_of_another_site_has_nobody_asked(fetch: Fetch, aegis: Path) -> None:
    """A picture whose address is ours comes without an Origin."""
    aegis.write_text('[peers.down]\nip = "127.99.0.2"\n')
    for site in ("cross-site", "same-site") * 10:
        [row] = msgspec.json.decode((await fetch("/agents", headers={"Sec-Fetch-Site": site})).body)["peers"]
        assert (row["source"], row["online"]) == ("aegis", None)
    for own in ({"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:1"}):
        while row["online"] is None:  # the peer refuses
            [row] = msgspec.json.decode((await fetch("/agents", headers=own)).body)["peers"]
        assert row["online"] is False


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.gen_test
async def test_a_thousand_peers_are_answered_at_once(fetch: Fetch, parts: Parts, aegis: Path) -> None:
    lines = (
        f'[peers.agent{n:04}]\nip = "127.99.{n // 250}.{n % 250}"\ngroups = ["g{n % 7}", "all"]\n' for n in range(MANY)
    )
    aegis.write_text("\n".join(lines))
    parts.services.directory.neighbours.put(announced("pawan@agent0007"))
    await parts.services.directory.peers()  # as the daemon does when it starts
    while any(row.online is None for row in await parts.services.directory.peers()):
        await fetch("/agents")
    for headers in (FORWARDED, {}):
        took = []
        for _ in range(51):
            begin = time.perf_counter()
            answer = await fetch("/agents", headers=headers)
            took.append(time.perf_counter() - begin)
            assert len(msgspec.json.decode(answer.body)["peers"]) == MANY
        assert statistics.median(took) < 0.02, took
