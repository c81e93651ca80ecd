"""The table of the others: who is lost is found again, and what is no announcement of the LAN is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest
from zeroconf import DNSIncoming, DNSPointer  # type: ignore[attr-defined]

from pawand.peers import announcement, mdns
from tests.harness import until
from tests.netns import Host, Lan
from tests.speaker import Speaker, announced, join, open_port, pointer, shout

FOUND_AGAIN_SECS = 25.0
ASKED_AT_START_SECS = 15.0  # the package's own questions are over by then
FLOOD_SECS = 20


@pytest.fixture
def lan() -> Iterator[Lan]:
    with Lan(3) as made:
        yield made


def say(host: Host, packets: list[bytes], heard: Callable[[], bool]) -> None:
    """Again and again, since those that begin do not hear it yet."""
    for _ in range(30):
        for packet in packets:
            shout(host, packet)
        with suppress(AssertionError):
            until(heard, "it is heard", 0.5)
            return
    raise AssertionError("nobody heard it")


def nap(until_then: float) -> None:
    time.sleep(max(0.0, until_then - time.monotonic()))


@pytest.mark.slow
def test_who_is_lost_is_found_again(lan: Lan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who lost the network until all records had ended; and one whose goodbye somebody else said."""
    monkeypatch.setattr(mdns, "TTL_SECS", 4)
    a, b, stranger = lan.hosts
    with Speaker(a, "pawan@a") as one, Speaker(b, "pawan@b") as two:
        old = time.monotonic() + ASKED_AT_START_SECS
        until(lambda: one.names and two.names, "they find each other")
        lan.unplug(a)
        until(lambda: not one.names and not two.names, "they lose each other", 20)
        nap(old)
        assert not one.names
        assert not two.names
        lan.plug(a)
        until(lambda: one.names and two.names, "they find each other again", FOUND_AGAIN_SECS)

        shout(stranger, pointer("pawan@a", 0))
        until(lambda: not two.names, "it seems to be gone")
        until(lambda: two.names == ["pawan@a"], "it is back", FOUND_AGAIN_SECS)


@pytest.mark.slow
def test_who_came_when_there_was_no_place_is_seen_when_there_is(lan: Lan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcement, "MAX_NEIGHBOURS", 3)
    a, b, stranger = lan.hosts
    with Speaker(a, "pawan@a") as one:
        flood = [announced(f"flood{number}", stranger.ip, ttl=FLOOD_SECS) for number in range(5)]
        say(stranger, flood, lambda: len(one.names) == 3)
        with Speaker(b, "pawan@b") as two:
            until(lambda: "pawan@a" in two.names, "it has begun")
            assert all(name.startswith("flood") for name in one.names)
            until(lambda: one.names == ["pawan@b"], "it is seen", FLOOD_SECS + FOUND_AGAIN_SECS)


@pytest.mark.slow
def test_the_others_go_while_a_name_is_fought_for(lan: Lan) -> None:
    a, b, stranger = lan.hosts
    with Squatter(stranger) as squatter, Speaker(a, "pawan@a") as one:
        until(lambda: squatter.taken > 3, "it has every name that is tried")
        say(b, [announced("short", b.ip, ttl=3)], lambda: "short" in one.names)
        until(lambda: "short" not in one.names, "it is dropped as its records end", 10)
        before = squatter.taken
        until(lambda: squatter.taken > before, "all the while no name was had")


class Squatter:
    """Answers that it has any name that somebody wants to have."""

    def __init__(self, host: Host) -> None:
        self.taken = 0
        self._host = host
        self._port = open_port(host)
        join(self._port, host.ip)
        self._port.settimeout(0.1)
        self._ended = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Squatter:
        with self._host.inside():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join(10)
        self._port.close()

    def _run(self) -> None:
        while not self._ended:
            with suppress(TimeoutError):
                packet = DNSIncoming(self._port.recv(9000))
                for record in packet.answers() if packet.is_query() and packet.num_authorities else []:
                    if isinstance(record, DNSPointer):
                        self.taken += 1
                        time.sleep(0.2)  # less than a name that nobody objects to takes to be had
                        shout(self._host, pointer(record.alias.partition(".")[0], 120))


def test_what_comes_from_where_the_server_does_not_listen_is_ignored(lan: Lan) -> None:
    a, b, _ = lan.hosts
    a.run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth1", "netns", b.namespace)
    for host, ip in ((a, "172.20.0.1"), (b, "172.20.0.2")):
        host.run("ip", "address", "add", f"{ip}/24", "dev", "eth1")
        host.run("ip", "link", "set", "eth1", "up")
    with Speaker(a, "pawan@a", a.ip) as one:
        say(b, [announced("before", b.ip)], lambda: one.names == ["before"])
        shout(b, announced("alone", "172.20.0.2"), to="172.20.0.1", ip="172.20.0.2")
        shout(b, announced("group", "172.20.0.2"), ip="172.20.0.2")
        with closing(open_port(a)) as another_program:
            join(another_program, "172.20.0.1")
            shout(b, announced("liar", b.ip), through="172.20.0.2")
            shout(b, announced("later", b.ip))
            until(lambda: "later" in one.names, "what came afterwards is taken")
        assert one.names == ["before", "later"]
