"""mDNS between hosts on a network of the test's own, a thread and an event loop for each; and what is believed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_interface

import pytest
from zeroconf import ServiceInfo, Zeroconf

from pawand.peers import announcement, mdns
from pawand.peers.announcement import SERVICE, Neighbour, Neighbours
from pawand.peers.interfaces import Adapter, OwnAddresses, reach
from tests.conftest import LogWatch
from tests.harness import until
from tests.netns import Lan
from tests.speaker import Speaker


@pytest.fixture
def lan() -> Iterator[Lan]:
    with Lan(2) as made:
        yield made


def test_two_find_each_other_and_one_says_goodbye(lan: Lan, log_watch: LogWatch) -> None:
    a, b = lan.hosts
    with Speaker(a, "pawan@a.lan", groups=("x", "y z")) as one:
        with Speaker(b, "pawan@b") as two:
            until(lambda: one.names == ["pawan@b"] and two.names == ["pawan@a-lan"], "they find each other")
            [found] = two.neighbours
            assert (found.agent_id, found.groups, found.port) == ("pawan@a.lan", ["x", "y z"], 4000)
            assert (found.ip, found.addresses) == (a.ip, frozenset([a.ip]))
        until(lambda: not one.names, "the goodbye")


def test_on_ipv6_alone(lan: Lan) -> None:
    a, b = lan.hosts
    for host in lan.hosts:
        host.run("ip", "address", "del", f"{host.ip}/24", "dev", "eth0")
    with Speaker(a, "pawan@a", "::") as one, Speaker(b, "pawan@b", b.ip6) as two:
        until(lambda: one.names and two.names, "they find each other")
        assert [n.ip for n in (*one.neighbours, *two.neighbours)] == [b.ip6, a.ip6]


def test_loopback_only_is_not_announced_and_the_log_says_why(lan: Lan, log_watch: LogWatch) -> None:
    a, b = lan.hosts
    log_watch.expect("because it listens on loopback only; start it with --host 0.0.0.0")
    with Speaker(a, "pawan@a", "127.0.0.1") as one, Speaker(b, "pawan@b") as two:
        until(lambda: one.names == ["pawan@b"], "it finds others")
        assert two.names == []


@pytest.mark.slow
def test_an_interface_that_comes_later_is_used(lan: Lan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdns, "RESCAN_SECS", 0.2)
    a, b = lan.hosts
    b.run("ip", "link", "set", "eth0", "down")
    b.run("ip", "address", "flush", "dev", "eth0")
    with Speaker(a, "pawan@a") as one, Speaker(b, "pawan@b") as two:
        b.run("ip", "link", "set", "eth0", "up")
        b.run("ip", "address", "add", f"{b.ip}/24", "dev", "eth0")
        until(lambda: one.names == ["pawan@b"] and two.names == ["pawan@a"], "they find each other")
        b.run("ip", "address", "del", f"{b.ip}/24", "dev", "eth0")
        b.run("ip", "address", "add", "10.77.0.77/24", "dev", "eth0")
        until(lambda: [n.addresses for n in one.neighbours] == [{"10.77.0.77"}], "the new address is told")


@pytest.mark.slow
def test_a_network_that_comes_and_goes_is_no_goodbye(lan: Lan, monkeypatch: pytest.MonkeyPatch) -> None:
    """As containers start and stop, none loses sight of the other for a moment."""
    monkeypatch.setattr(mdns, "RESCAN_SECS", 0.2)
    a, b = lan.hosts
    with Speaker(a, "pawan@a") as one, Speaker(b, "pawan@b") as two:
        until(lambda: one.names and two.names, "they find each other")

        def told(*addresses: str) -> bool:
            assert (one.names, two.names) == (["pawan@b"], ["pawan@a"])
            [found] = one.neighbours
            return found.addresses == set(addresses)

        b.run("ip", "link", "add", "dock0", "type", "veth", "peer", "name", "dock1")
        for name in ("dock0", "dock1"):
            b.run("ip", "link", "set", name, "up")
        b.run("ip", "address", "add", "172.30.0.1/24", "dev", "dock0")
        until(lambda: told(b.ip, "172.30.0.1"), "the new address is told")
        b.run("ip", "link", "del", "dock0")
        until(lambda: told(b.ip), "that it is gone is told", 30)


def test_mdns_that_cannot_be_had_is_one_warning(lan: Lan, log_watch: LogWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdns, "RESCAN_SECS", 0.05)
    tries = []

    def fail(**_: object) -> None:
        tries.append(1)
        raise OSError("no such luck")

    monkeypatch.setattr(mdns, "AsyncZeroconf", fail)
    log_watch.expect("mDNS does not work, it is tried again: no such luck")
    with Speaker(lan.hosts[0], "pawan@a"):
        until(lambda: len(tries) > 3, "it is tried again")
    assert len(log_watch.lines) == 1


@pytest.mark.slow
def test_one_that_falls_silent_is_dropped_and_one_that_speaks_is_kept(
    lan: Lan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mdns, "TTL_SECS", 8)
    a, b = lan.hosts
    with Speaker(a, "pawan@a") as one, ExitStack() as stack:
        two = stack.enter_context(Speaker(b, "pawan@b"))
        until(lambda: one.names and two.names, "they find each other")
        end = time.monotonic() + 18  # more than two times to live
        while time.monotonic() < end:
            assert (one.names, two.names) == (["pawan@b"], ["pawan@a"])
            time.sleep(0.05)
        b.run("ip", "link", "set", "eth0", "down")
        silent = time.monotonic()
        until(lambda: not one.names, "it is dropped", 20)
        assert time.monotonic() - silent < 8 + 3
        b.run("ip", "link", "set", "eth0", "up")
        until(lambda: one.names, "it is found again", 30)


@pytest.mark.slow
def test_what_strangers_announce_is_checked(lan: Lan, log_watch: LogWatch) -> None:
    a, b = lan.hosts
    good = {"agent_id": "pawan@good", "groups": "x,,y," + "z" * 200, "more": "?"}
    texts: dict[str, tuple[int, dict[str, str | bytes | None]]] = {
        "good": (1, dict(good)),
        "no-id": (1, {"groups": "x"}),
        "empty-id": (1, {"agent_id": ""}),
        "bare-id": (1, {"agent_id": None}),
        "control": (1, {"agent_id": "pawan@\x1b[2J"}),
        "turned": (1, {"agent_id": "pawan@\u202e"}),
        "binary": (1, {"agent_id": b"\xff\xfe"}),
        "long": (1, {"agent_id": "x" * 200}),
        "port": (0, {"agent_id": "pawan@port"}),
        "late": (1, {"agent_id": "pawan@late"}),
    }
    with Speaker(a, "pawan@a") as one, b.inside():
        outsider = Zeroconf([b.ip])
        try:
            for name, (port, text) in texts.items():
                address = b.ip
                info = ServiceInfo(
                    SERVICE,
                    f"{name}.{SERVICE}",
                    port,
                    properties=text,
                    parsed_addresses=[address],
                    server=f"{name}.local.",
                )
                outsider.register_service(info, cooperating_responders=True)
            until(lambda: one.names == ["good", "late"], "the good ones are found")
            [found, _] = one.neighbours
            assert found.groups == ["x", "y"]
        finally:
            outsider.close()


# --- what is said and believed --------------------------------------------------------------------

ETH = Adapter(2, (ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64"), ip_interface("fe80::1/64")))
WIFI = Adapter(3, (ip_interface("192.168.1.5/24"), ip_interface("fe80::2/64")))
BRIDGE = Adapter(4, (ip_interface("fe80::3/64"),))
LO = Adapter(1, (ip_interface("127.0.0.1/8"), ip_interface("::1/128")))


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        (["0.0.0.0"], (("10.0.0.1", "192.168.1.5"), ("10.0.0.1", 2, "192.168.1.5", 3))),
        (["::"], (("fd00::1",), ("10.0.0.1", 2, "192.168.1.5", 3))),
        (["192.168.1.5"], (("192.168.1.5",), ("192.168.1.5", 3))),
        (["fe80::2%wlan0"], (("fe80::2",), ("192.168.1.5", 3))),
        (["127.0.0.1", "::1"], ((), ("10.0.0.1", 2, "192.168.1.5", 3))),
        (["10.9.9.9"], ((), ("10.0.0.1", 2, "192.168.1.5", 3))),
        (["127.0.0.1", "10.0.0.1", "fd00::1"], (("10.0.0.1", "fd00::1"), ("10.0.0.1", 2))),
    ],
)
def test_where_a_server_can_be_found(bound: list[str], expected: tuple[tuple[str, ...], tuple[str | int, ...]]) -> None:
    found = reach(bound, [LO, ETH, WIFI, BRIDGE])
    assert (found.announced, found.senders) == expected
    assert reach(bound, [LO, ETH, WIFI]) == found, "an interface like a container's is no difference"


def test_an_interface_with_nothing_but_a_link_local_address_counts_where_there_is_no_other() -> None:
    found = reach(["::"], [LO, BRIDGE])
    assert (found.announced, found.senders, found.indexes) == (("fe80::3",), (4,), (4,))


@pytest.mark.parametrize(
    ("source", "scope", "near"),
    [
        ("10.0.0.9", 0, True),
        ("::ffff:10.0.0.9", 0, True),
        ("fd00::9", 0, True),
        ("fe80::9", 2, True),
        ("fe80::9", 3, False),
        ("192.168.1.9", 0, False),
        ("::ffff:192.168.1.9", 0, False),
        ("fd01::9", 0, False),
        ("8.8.8.8", 0, False),
    ],
)
def test_what_comes_from_where_mdns_is_not_spoken_is_far(source: str, scope: int, near: bool) -> None:
    assert reach(["10.0.0.1"], [LO, ETH, WIFI]).is_near(source, scope) is near


def test_the_network_of_an_address_of_dhcp_is_guessed() -> None:
    managed = Adapter(2, (ip_interface("fd00::1/128"), ip_interface("fe80::1/64")))
    assert reach(["::"], [managed]).is_near("fd00::2", 0)


def test_a_machine_without_a_network_is_nowhere() -> None:
    assert not reach(["0.0.0.0"], [LO]).senders


def test_own_addresses_hold_loopback() -> None:
    assert "127.0.0.1" in OwnAddresses()()


def believe(*addresses: str) -> Neighbour | None:
    return announcement.read("i", "s.", 1, {b"agent_id": b"a"}, addresses, [LO, ETH, WIFI])


@pytest.mark.parametrize(
    ("addresses", "best"),
    [
        (["fd00::9", "172.17.0.1", "10.0.0.9"], "10.0.0.9"),
        (["fd00::9", "172.17.0.1"], "172.17.0.1"),
        (["10.0.0.1", "192.168.1.9"], "192.168.1.9"),
        (["fe80::9%2", "fd01::9", "fd00::9"], "fd00::9"),
        (["fe80::9%2", "169.254.1.1"], "169.254.1.1"),
        (["fe80::9", "fe80::9%2"], "fe80::9%2"),
        (["127.0.0.1", "0.0.0.0", "224.0.0.1", "::1", "ff02::1", "x", "", "10.0.0.9"], "10.0.0.9"),
        (["::ffff:127.0.0.1", "::ffff:10.0.0.9"], "10.0.0.9"),
    ],
)
def test_the_best_address_is_taken(addresses: list[str], best: str) -> None:
    found = believe(*addresses)
    assert found is not None
    assert found.ip == best


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::127.0.0.1"),
        *("0.0.0.0", "0.1.2.3", "::ffff:0.0.0.0", "::", "255.255.255.255", "240.0.0.1", "::ffff:240.0.0.1"),
        *("224.0.0.251", "::ffff:224.0.0.251", "ff02::fb", "fe80::1", "localhost", "127.1", "0x7f.1", "10.0.0.9/8"),
    ],
)
def test_an_address_that_is_no_other_machines_is_none(address: str) -> None:
    assert believe(address) is None


@pytest.mark.parametrize(
    ("agent_id", "name"),
    [
        ("pawan@host", "pawan@host"),
        ("pawan@host.example.com", "pawan@host-example-com"),
        ("a\\b\x07c", "a-b-c"),
        ("...", "---"),
        ("é" * 60, "é" * 29),
        ("x" * 128, "x" * 58),
        ("  ", "pawan"),
    ],
)
def test_an_agent_id_becomes_one_label(agent_id: str, name: str) -> None:
    assert announcement.instance_name(agent_id) == name
    assert len(name.encode()) <= 58


def test_groups_that_do_not_fit_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        text = announcement.properties("pawan@a", [f"{number:032}" for number in range(32)])
    assert text["groups"].count(",") == 6
    assert len(f"groups={text['groups']}") <= 255
    assert caplog.messages == ["mDNS: not all of [discovery] groups fit into an announcement"]


@pytest.mark.parametrize("agent_id", ["\u0800" * 100, "a\x00b"])
def test_an_agent_id_that_cannot_be_told_is_an_error(agent_id: str) -> None:
    with pytest.raises(ValueError, match=r"server\.agent_id"):
        announcement.properties(agent_id, [])


def test_the_table_has_an_end() -> None:
    table = Neighbours()
    for number in range(announcement.MAX_NEIGHBOURS + 10):
        found = announcement.read(f"n{number}", "s.", 1, {b"agent_id": b"a"}, ["10.0.0.9"], [])
        assert found is not None
        assert table.put(found) == (number < announcement.MAX_NEIGHBOURS)
    assert len(list(table)) == announcement.MAX_NEIGHBOURS == table.revision
