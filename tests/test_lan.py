"""Daemons on machines of a network of their own: who sees whom, how soon, and for how long."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pawand.peers.mdns import TTL_SECS
from tests import avahi, harness
from tests.fakes.openai_server import OpenAIServer, text
from tests.netns import Host, Lan

pytestmark = [pytest.mark.slow, pytest.mark.alone]
SEEN_SECS = 3.0
DROPPED_SECS = 2.0


@pytest.fixture
def lan() -> Iterator[Lan]:
    with Lan(3) as made:
        yield made


class Daemons:
    """Daemons on the hosts of a network, each with folders of its own."""

    def __init__(self, lan: Lan, folder: Path, env: dict[str, str], stack: ExitStack) -> None:
        self._lan = lan
        self._folder = folder
        self._env = env
        self._stack = stack
        self._count = 0

    def start(self, number: int, host: str = "0.0.0.0", *, mdns: bool = True, config: str = "", **env: str) -> Daemon:
        """One on host `number` (from 1); `env` comes on top of what all have."""
        self._count += 1
        machine = self._lan.hosts[number - 1]
        folder = self._folder / f"{self._count}"
        flags = ["--host", host, *(["--mdns"] if mdns else [])]
        variables = self._env | {"PAWAN_AGENT_ID": f"pawan@host{number}"} | env
        with machine.inside():
            serving = harness.serve(folder / "work", folder / "state", *flags, env=variables, config=config)
            return Daemon(machine, self._stack.enter_context(serving))


class Daemon:
    def __init__(self, host: Host, process: harness.Process) -> None:
        self.host = host
        self.process = process
        self.port = int(process.url.rpartition(":")[2])
        self.ready = time.monotonic()

    def peers(self) -> list[dict[str, Any]]:
        with self.host.inside():
            found: list[dict[str, Any]] = self.process.call("GET", "/agents")[1]["peers"]
        return found

    def names(self) -> list[str]:
        return [peer["name"] for peer in self.peers()]

    def stop(self) -> None:
        self.process.process.send_signal(signal.SIGTERM)


@pytest.fixture
def daemons(lan: Lan, tmp_path: Path, env: dict[str, str]) -> Iterator[Daemons]:
    with ExitStack() as stack:
        yield Daemons(lan, tmp_path, env, stack)


def seconds_until(condition: Callable[[], bool], what: str, since: float, limit: float = 20) -> float:
    harness.until(condition, what, limit)
    return time.monotonic() - since


def write(folder: Path, peers: str) -> str:
    """An Aegis file with these peers; the settings that name it."""
    file = folder / "aegis" / "net.toml"
    file.parent.mkdir()
    file.write_text(peers)
    return f'[discovery]\naegis_file = "{file}"\n'


def test_two_and_three_find_each_other_and_see_the_others_go(daemons: Daemons) -> None:
    one, two = daemons.start(1), daemons.start(2)
    pairs = [(one, ["host2"]), (two, ["host1"])]
    took = seconds_until(lambda: all(d.names() == names for d, names in pairs), "two see each other", two.ready)
    three = daemons.start(3)
    pairs = [(one, ["host2", "host3"]), (two, ["host1", "host3"]), (three, ["host1", "host2"])]
    took3 = seconds_until(lambda: all(d.names() == names for d, names in pairs), "three do", three.ready)
    assert max(took, took3) < SEEN_SECS, (took, took3)
    assert [(p["agent_id"], p["ip"], p["port"], p["source"], p["online"]) for p in one.peers()] == [
        ("pawan@host2", "10.77.0.2", two.port, "mdns", True),
        ("pawan@host3", "10.77.0.3", three.port, "mdns", True),
    ]

    three.stop()
    stopped = time.monotonic()
    took = seconds_until(lambda: one.names() == ["host2"] and two.names() == ["host1"], "a stopped one", stopped)
    assert took < DROPPED_SECS, took

    two.process.kill()
    killed = time.monotonic()
    took = seconds_until(lambda: one.names() == [], "a killed one goes", killed, TTL_SECS + 30)
    assert took < TTL_SECS + 5, took

    two = daemons.start(2)
    seconds_until(lambda: one.names() == ["host2"], "one that is back is seen again", two.ready)


def test_a_daemon_that_stops_slowly_is_gone_at_once(daemons: Daemons, lan: Lan) -> None:
    """Others are told before the turns that run are waited for."""
    with ExitStack() as stack:
        with lan.hosts[1].inside():
            upstream = stack.enter_context(OpenAIServer([text("a", "b", pause=4.0)]))
        one, two = daemons.start(1), daemons.start(2, OPENAI_API_URL=upstream.url)
        seconds_until(lambda: one.names() == ["host2"], "they see each other", two.ready)
        with two.host.inside():
            stream = harness.Stream(two.process.url, "/chat/stream", {"message": "go"})
        stream.read_until("token")
        two.stop()
        took = seconds_until(lambda: one.names() == [], "it is gone", time.monotonic())
        assert took < DROPPED_SECS, took
        assert stream.read_rest()[-1][0] == "done"
        two.process.process.wait(30)


def test_the_aegis_entry_of_the_same_machine_is_one_row(daemons: Daemons, tmp_path: Path) -> None:
    config = write(
        tmp_path,
        '[peers.mine]\nip = "10.77.0.1"\n[peers.build]\nip = "10.77.0.2/16"\ngroups = ["gpu"]\n'
        '[peers.host3]\nip = "10.77.0.3"\n',
    )
    one, two, three = daemons.start(1, config=config), daemons.start(2), daemons.start(3)
    seconds_until(lambda: [p["source"] for p in one.peers()] == ["aegis+mdns"] * 2, "both are merged", three.ready)
    assert one.peers() == [
        {
            "name": "build",
            "agent_id": "pawan@host2",
            "ip": "10.77.0.2",
            "groups": ["gpu"],
            "port": two.port,
            "source": "aegis+mdns",
            "online": True,
        },
        {
            "name": "host3",
            "agent_id": "pawan@host3",
            "ip": "10.77.0.3",
            "groups": [],
            "port": three.port,
            "source": "aegis+mdns",
            "online": True,
        },
    ]
    with one.host.inside():
        table = one.process.cli("agents").stdout
    rows = [line.split() for line in table.splitlines() if "host" in line]
    assert rows[0] == ["this", "is", "pawan@host1"]
    assert rows[1] == ["build", "pawan@host2", f"10.77.0.2:{two.port}", "gpu", "aegis+mdns", "yes"]


def test_a_probe_tells_who_of_the_file_is_there(daemons: Daemons, tmp_path: Path) -> None:
    two = daemons.start(2, "10.77.0.2", mdns=False)
    aegis = write(tmp_path, '[peers.there]\nip = "10.77.0.2"\n[peers.gone]\nip = "10.77.0.3"\n')
    one = daemons.start(1, mdns=False, config=f'{aegis}[peers.there]\naddress = "10.77.0.2:{two.port}"\n')
    with two.host.inside():  # a stranger learns nothing of it, and has nobody asked
        two.process.url = f"http://10.77.0.1:{one.port}"
        assert set(two.process.call("GET", "/agents")[1]["peers"][0]) == {"name", "agent_id", "ip", "groups"}
    assert [p["online"] for p in one.peers()] == [None, None]
    harness.until(lambda: [p["online"] for p in one.peers()] == [False, True], "both were asked")
    assert [(p["name"], p["port"], p["source"]) for p in one.peers()] == [
        ("gone", None, "aegis"),
        ("there", two.port, "aegis"),
    ]


def test_one_that_listens_on_loopback_only_is_not_announced(daemons: Daemons) -> None:
    one, two = daemons.start(1), daemons.start(2, "127.0.0.1")
    seconds_until(lambda: two.names() == ["host1"], "it finds others", two.ready)
    assert one.names() == []
    assert "is not announced, because it listens on loopback only" in two.process.log_text()


def test_only_the_address_that_is_listened_on_is_announced(daemons: Daemons, lan: Lan) -> None:
    lan.hosts[1].run("ip", "address", "add", "10.77.0.22/24", "dev", "eth0")
    two, three = daemons.start(2, "10.77.0.22"), daemons.start(3, "fd77::3")
    one = daemons.start(1)
    seconds_until(lambda: one.names() == ["host2", "host3"], "both are found", one.ready)
    assert [p["ip"] for p in one.peers()] == ["10.77.0.22", "fd77::3"]
    for daemon in (two, three):
        host = daemon.process.url.removeprefix("http://").rpartition(":")[0]
        assert one.host.run("curl", "-sf", f"http://{host}:{daemon.port}/health").returncode == 0


def test_one_that_has_the_same_agent_id_is_not_hidden(daemons: Daemons) -> None:
    one, two = (daemons.start(n, PAWAN_AGENT_ID="pawan@same") for n in (1, 2))
    three = daemons.start(1, PAWAN_AGENT_ID="pawan@same")
    seconds_until(lambda: all(len(d.names()) == 2 for d in (one, two, three)), "all are seen", three.ready)
    for daemon, others in ((one, (two, three)), (two, (one, three)), (three, (one, two))):
        peers = daemon.peers()
        assert {p["agent_id"] for p in peers} == {"pawan@same"}
        assert {(p["ip"], p["port"]) for p in peers} == {(other.host.ip, other.port) for other in others}
        assert len({p["name"] for p in peers}) == 2


# --- a program of other people --------------------------------------------------------------------


def test_avahi_sees_the_announcement_and_we_see_avahis(daemons: Daemons, lan: Lan, tmp_path: Path) -> None:
    groups = '[discovery]\ngroups = ["dev", "gpu box"]\n'
    one = daemons.start(1, PAWAN_AGENT_ID="pawan@host.example.com", config=groups)
    with avahi.running(lan.hosts[1], tmp_path) as outsider:
        [found] = harness.until(outsider.browse, "avahi sees it")
        interface, protocol, name, kind, domain, server, address, port, text = found
        assert (interface, protocol, kind, domain) == ("eth0", "IPv4", "_pawan._tcp", "local")
        assert name == r"pawan\064host-example-com"
        assert re.fullmatch(r"pawan-[0-9a-f]{16}\.local", server)
        assert (address, port) == ("10.77.0.1", str(one.port))
        version = json.loads(one.host.run("curl", "-s", f"{one.process.url}/health").stdout)["version"]
        expected = {'"agent_id=pawan@host.example.com"', '"groups=dev,gpu box"', '"path=/"', f'"version={version}"'}
        assert set(re.findall(r'"[^"]*"', text)) == expected

        with outsider.publish("Other. Program", 4321, "agent_id=pawan@other", "groups=x,y"):
            seconds_until(lambda: one.names() == ["other"], "we see avahi's", time.monotonic())
            [peer] = one.peers()
            assert (peer["agent_id"], peer["ip"], peer["port"]) == ("pawan@other", "10.77.0.2", 4321)
            assert peer["groups"] == ["x", "y"]
        seconds_until(lambda: one.names() == [], "it is gone", time.monotonic())

        one.stop()
        harness.until(lambda: not outsider.browse(), "avahi sees that it is gone")
