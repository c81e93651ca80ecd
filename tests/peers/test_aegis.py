"""The Aegis network file: read as it comes, never trusted, never fatal."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from pawand.config import MAX_FILE_BYTES
from pawand.peers.aegis import MAX_GROUPS, MAX_PEERS, AegisFile, AegisPeer
from pawand.peers.directory import Directory

SAMPLE = """
[network]
name = "aegis"
cidr = "10.42.0.0/16"
config_dir = "/etc/aegis-net"
listen_port = 51820

[lighthouse]
am_lighthouse = true
overlay_ip = "10.42.0.1"

[peers.odin]
ip = "10.42.0.2/16"
groups = ["dev", "gpu"]
endpoint = "192.0.2.7:51820"

[firewall]
default_action = "deny"

[[firewall.inbound]]
port = 22
peers = ["odin"]

[peers.freya]
ip = "10.42.0.1"
lighthouse = true
"""
FREYA = AegisPeer("freya", "10.42.0.1", [])
ODIN = AegisPeer("odin", "10.42.0.2", ["dev", "gpu"])


def write(path: Path, text: str) -> AegisFile:
    path.write_text(text, encoding="utf-8")
    return AegisFile([path])


def test_the_peers_of_a_manifest_by_name_and_nothing_else(tmp_path: Path) -> None:
    assert write(tmp_path / "net.toml", SAMPLE).peers() == [FREYA, ODIN]


@pytest.mark.parametrize(
    ("entry", "ip", "groups"),
    [
        ("", None, []),
        ("groups = 'dev'", None, []),
        ("groups = {dev = true}", None, []),
        ("groups = ['a', 1, ['b'], 'c']", None, ["a", "c"]),
        (f"groups = {['g'] * (MAX_GROUPS + 1)}", None, ["g"] * MAX_GROUPS),
        ("ip = '10.0.0.1'", "10.0.0.1", []),
        ("ip = ' 10.42.0.1/16 '", "10.42.0.1", []),
        ("ip = 'FD00::0001/64'", "fd00::1", []),
        ("ip = '10.0.0.256'", None, []),
        ("ip = 'evil.example.com'", None, []),
        ("ip = '10.0.0.1:22'", None, []),
        ("ip = 'http://10.0.0.1/'", None, []),
        ("ip = ''", None, []),
        ("ip = 167772161", None, []),
        ("ip = ['10.0.0.1']", None, []),
    ],
)
def test_what_does_not_fit_an_entry_is_left_out(tmp_path: Path, entry: str, ip: str | None, groups: list[str]) -> None:
    assert write(tmp_path / "net.toml", f"[peers.a]\n{entry}\n").peers() == [AegisPeer("a", ip, groups)]


def test_entries_without_a_usable_name_or_table_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["", "x" * 129, "line\\nbreak", "\\u202eodd", "x" * 128, "zoë 2"]
    text = "".join(f'[peers."{name}"]\n' for name in names) + "[peers]\nplain = 3\nlist = [1]\n"
    file = write(tmp_path / "net.toml", text)
    assert [peer.name for peer in file.peers()] == ["x" * 128, "zoë 2"]
    assert caplog.messages == [f"{tmp_path / 'net.toml'}: 6 peers left out: no table, or no usable name"]


def test_there_is_a_limit_to_peers(tmp_path: Path) -> None:
    names = [f"p{number:05}" for number in range(MAX_PEERS + 10)]
    text = "[peers]\n" + "".join(f"{name} = {{}}\n" for name in reversed(names))
    assert [peer.name for peer in write(tmp_path / "net.toml", text).peers()] == names[:MAX_PEERS]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[peers.a\n", "not valid TOML: "),
        (b"x = '\xff'", "not UTF-8 text (byte 5)"),
        (b"peers = 3", "`peers` is no table"),
        (b"[[peers]]", "`peers` is no table"),
        (b"x = " + b"[" * 5000, "not valid TOML: "),
    ],
)
def test_a_broken_file_is_one_warning_until_it_is_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, reason: str
) -> None:
    path = tmp_path / "net.toml"
    path.write_bytes(content)
    file = AegisFile([path])
    assert [file.peers() for _ in range(3)] == [[], [], []]
    (warning,) = caplog.messages
    assert warning.startswith(f"no peers from the Aegis file: {path}: {reason}")
    path.write_text(SAMPLE)
    assert file.peers() == [FREYA, ODIN]
    path.write_bytes(content)
    assert file.peers() == []
    assert len(caplog.messages) == 2


def test_what_is_no_file_is_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fifo, folder, huge = tmp_path / "fifo", tmp_path / "folder", tmp_path / "huge"
    os.mkfifo(fifo)
    folder.mkdir()
    with huge.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    paths = [fifo, folder, huge, Path("/dev/zero")]
    assert [AegisFile([path]).peers() for path in paths] == [[], [], [], []]
    reasons = ["not a file", "not a file", "larger than 1 MiB, so it is no file of settings", "not a file"]
    lines = [f"no peers from the Aegis file: {path}: {reason}" for path, reason in zip(paths, reasons, strict=True)]
    assert caplog.messages == lines


def test_the_first_file_that_exists_counts(tmp_path: Path) -> None:
    configured, usual = tmp_path / "configured.toml", tmp_path / "usual.toml"
    file = AegisFile([configured, usual])
    assert file.peers() == []
    usual.write_text("[peers.usual]")
    assert [peer.name for peer in file.peers()] == ["usual"]
    configured.write_text("[peers.configured]")
    assert [peer.name for peer in file.peers()] == ["configured"]
    configured.write_text("")
    assert file.peers() == []
    configured.unlink()
    assert [peer.name for peer in file.peers()] == ["usual"]


def test_the_directory_leaves_this_daemon_out(tmp_path: Path) -> None:
    found = asyncio.run(Directory("pawan@freya", write(tmp_path / "net.toml", SAMPLE)).peers())
    assert [(row.name, row.agent_id, row.ip, row.groups, row.port, row.source, row.online) for row in found] == [
        ("odin", "pawan@odin", "10.42.0.2", ["dev", "gpu"], None, "aegis", None)
    ]
