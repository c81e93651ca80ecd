"""Peers from the Aegis network file (facts 5.2): only its `[peers.*]` tables are read, and no other file of its folder.

The file is somebody else's: what does not fit is left out, and a broken file is a warning and no peers.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import stat
import threading
from pathlib import Path
from typing import Any

from msgspec import Struct

from pawand.config import parse_toml
from pawand.errors import ConfigError

log = logging.getLogger(__name__)

MAX_PEERS = 4096
MAX_NAME_CHARS = 128
MAX_GROUPS = 64


class AegisPeer(Struct, frozen=True):
    name: str
    ip: str | None
    groups: list[str]


class AegisFile:
    """Reads the first of `candidates` that exists, again whenever it has changed."""

    def __init__(self, candidates: list[Path]) -> None:
        self._candidates = candidates
        self._reading = threading.Lock()
        self._stamp: tuple[str, int, int] | None = None
        self._peers: list[AegisPeer] = []

    def peers(self) -> list[AegisPeer]:
        """Ordered by name. Blocks."""
        with self._reading:
            path, stamp = self._find()
            if stamp != self._stamp:
                self._peers = _read(path) if path is not None else []
                self._stamp = stamp
            return self._peers

    def _find(self) -> tuple[Path | None, tuple[str, int, int] | None]:
        for path in self._candidates:
            try:
                status = os.stat(path)
            except OSError:
                continue
            return path, (str(path), status.st_mtime_ns, status.st_size)
        return None, None


def _read(path: Path) -> list[AegisPeer]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: not a file")
        table = parse_toml(path).get("peers", {})
    except (ConfigError, OSError) as error:
        log.warning("no peers from the Aegis file: %s", error)
        return []
    if not isinstance(table, dict):
        log.warning("no peers from the Aegis file: %s: `peers` is no table", path)
        return []
    peers = [_peer(name, entry) for name, entry in table.items() if _is_name(name) and isinstance(entry, dict)]
    if len(peers) < len(table):
        log.warning("%s: %d peers left out: no table, or no usable name", path, len(table) - len(peers))
    return sorted(peers, key=lambda peer: peer.name)[:MAX_PEERS]


def _is_name(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME_CHARS and name.isprintable()


def _peer(name: str, entry: dict[str, Any]) -> AegisPeer:
    groups = entry.get("groups")
    return AegisPeer(
        name=name,
        ip=_address(entry.get("ip")),
        groups=[g for g in groups if isinstance(g, str)][:MAX_GROUPS] if isinstance(groups, list) else [],
    )


def _address(value: Any) -> str | None:
    """The IP address, a prefix length as in `10.42.0.1/16` taken off; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        return str(ipaddress.ip_address(value.strip().partition("/")[0]))
    except ValueError:
        return None
