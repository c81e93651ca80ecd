"""Where a peer is asked and whether its token goes along, by what the settings, the Aegis file and mDNS say of it."""

from __future__ import annotations

from typing import Any

import pytest

from pawand import config, wire
from pawand.errors import PeerError
from pawand.peers.addresses import Place, find

TOKEN = "0123456789abcdef"


def row(name: str, ip: str | None = "10.0.0.2", source: str = "aegis", port: int | None = None) -> wire.Peer:
    return wire.Peer(name=name, agent_id=f"pawan@{name}", ip=ip, groups=[], port=port, source=source, online=None)


def peer(address: str | None = None, token: str | None = TOKEN) -> config.Peer:
    return config.Peer(address=address, token=token)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("build", "http://build:3300"),
        ("build.lan:4000", "http://build.lan:4000"),
        ("10.1.2.3", "http://10.1.2.3:3300"),
        ("[fd00::1]", "http://[fd00::1]:3300"),
        ("[fd00::1]:80", "http://[fd00::1]:80"),
        ("http://build", "http://build"),
        ("https://build/pawan/", "https://build/pawan"),
        ("https://[fd00::1]:8443", "https://[fd00::1]:8443"),
    ],
)
def test_a_configured_address_counts_whatever_others_say(address: str, url: str) -> None:
    for rows in ([], [row("b")], [row("b", source="mdns", port=1)]):
        assert find("b", {"b": peer(address)}, rows) == Place("b", url, TOKEN)


@pytest.mark.parametrize(
    ("found", "url", "url_without_token"),
    [
        (row("b"), "http://10.0.0.2:3300", "http://10.0.0.2:3300"),
        (row("b", "fd00::1"), "http://[fd00::1]:3300", "http://[fd00::1]:3300"),
        (row("b", source="aegis+mdns", port=4000), "http://10.0.0.2:3300", "http://10.0.0.2:4000"),
    ],
)
def test_the_address_of_the_aegis_file_gets_the_token(found: wire.Peer, url: str, url_without_token: str) -> None:
    """The port may be an announcement's word; only one without a token believes it."""
    assert find("b", {"b": peer()}, [found]) == Place("b", url, TOKEN)
    assert find("b", {}, [found]) == Place("b", url_without_token, None)


def test_what_only_mdns_says_gets_no_token() -> None:
    announced = row("b", source="mdns", port=4000)
    with pytest.raises(PeerError, match=r"only announced by mDNS.*token is not sent.*`\[peers.b\] address`"):
        find("b", {"b": peer()}, [announced])
    assert find("b", {"b": peer(token=None)}, [announced]) == Place("b", "http://10.0.0.2:4000", None)
    assert find("b", {}, [announced]) == Place("b", "http://10.0.0.2:4000", None)
    unsaid = wire.Peer(name="b", agent_id="x", ip="10.0.0.2", groups=[])  # of a list without sources
    with pytest.raises(PeerError, match="token is not sent"):
        find("b", {"b": peer()}, [unsaid])


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "::127.0.0.1", "0.0.0.0", "0.1.2.3", "x"])
def test_what_mdns_says_never_leads_to_this_machine_itself(ip: str) -> None:
    with pytest.raises(PeerError, match=r"b was announced at .*, which is no address of another machine"):
        find("b", {}, [row("b", ip, "mdns", 4000)])


@pytest.mark.parametrize("taken", ["b", "B"])
def test_nobody_on_the_network_takes_a_name_of_the_aegis_file(taken: str) -> None:
    evil = row(taken, "10.6.6.6", "mdns", 1)
    for rows in ([evil, row("b")], [row("b"), evil]):
        assert find(taken, {"b": peer()}, rows).url == "http://10.0.0.2:3300"


def test_a_name_is_looked_up_exactly_and_then_without_case() -> None:
    rows = [row("Build", "10.0.0.1"), row("build", "10.0.0.2"), row("Docs", "10.0.0.3")]
    assert find("build", {}, rows).url == "http://10.0.0.2:3300"
    assert find("Build", {}, rows).url == "http://10.0.0.1:3300"
    assert find("DOCS", {"docs": peer()}, rows) == Place("docs", "http://10.0.0.3:3300", TOKEN)
    with pytest.raises(PeerError, match="there is no agent 'BUILD'; there are: Build, Docs, build"):
        find("BUILD", {}, rows)


def test_an_unknown_name_is_answered_with_some_that_are_known() -> None:
    with pytest.raises(PeerError) as none:
        find("x", {}, [])
    assert str(none.value) == "there is no agent 'x'; none is known"
    with pytest.raises(PeerError) as many:
        find("x" * 5000, {"own": peer()}, [row(f"agent{n:03}") for n in range(30)])
    assert str(many.value).startswith(f"there is no agent {'x' * 128!r}; there are: agent000, agent001, ")
    assert str(many.value).endswith("agent019 and 11 more")


@pytest.mark.parametrize(("configured", "rows"), [({"b": peer()}, []), ({}, [row("b", None)])])
def test_a_peer_without_an_address_says_what_to_set(configured: Any, rows: Any) -> None:
    with pytest.raises(PeerError, match=r"no address of b is known: set `\[peers.b\] address`"):
        find("b", configured, rows)


def test_what_is_no_address_after_all_is_told() -> None:
    with pytest.raises(PeerError, match=r"the address of b, http://\[:::\]:3300, is none: correct"):
        find("b", {"b": peer("[:::]")}, [])
