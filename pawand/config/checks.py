"""Whether settings are right, and what to say of those that are not."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from pawand.config.keys import RUST_ONLY_KEYS, is_secret, present
from pawand.config.schema import Config, Layer, Mcp, Peer
from pawand.errors import ConfigError

# What to say instead of a regular expression.
_PATTERNS = {
    "base_url": "expected an address such as https://api.example.com/v1, without user and password",
    "mcp.NAME.url": "expected an address such as https://example.com/mcp, without user and password",
    "eruka.url": "expected an address such as http://localhost:8081, without user and password",
    "eruka.workspace_id": "expected a name of ASCII letters, digits and signs, without blanks",
    "peers.NAME.address": "expected a host, host:port, or an address such as http://192.168.1.100:3300",
    "peers.NAME.token": "expected what stands in the token file there: 16 characters or more, without blanks",
    "discovery.groups": "expected at most 32 names of 1 to 32 characters, without commas",
    "server.cors_origins": 'expected "*" or an origin such as https://app.example.com',
}
_SERVER_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")


def check(layer: Layer) -> None:
    """Raises ConfigError for what is wrong in one layer, whatever the others say."""
    checked(layer, [])


def checked(layer: Layer, warnings: list[str]) -> Config:
    """Types and ranges are errors; unknown keys are warnings."""
    _warn(layer, layer.values, Config, "", warnings)
    try:
        return msgspec.convert(layer.values, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(layer, str(error))) from error


def check_servers(config: Config, layers: Sequence[Layer | None]) -> None:
    """One layer may complete what another says of a server, so only all of them together can be right or wrong."""
    files = {name: layer.name for layer in layers if layer for name in layer.values.get("mcp", {})}
    for name, file in files.items():
        server = config.mcp.get(name, Mcp())
        longer = next((other for other in files if other.startswith(f"{name}_")), None)
        if longer is not None:  # a tool of the one could be called like a tool of the other
            raise ConfigError(f"{file}: `mcp.{name}` and `mcp.{longer}` begin alike; call one of them otherwise")
        if not _SERVER_NAME.fullmatch(name):
            raise ConfigError(f"{file}: `mcp.{name}`: expected a name of 1 to 32 letters, digits, _ and -")
        if server.command is None and server.url is None:
            raise ConfigError(f"{file}: `mcp.{name}` has neither `command` nor `url`: expected one of them")
        if server.command is not None and server.url is not None:
            raise ConfigError(f"{file}: `mcp.{name}` has both `command` and `url`: expected one of them")


def _explain(layer: Layer, text: str) -> str:
    expected, _, path = text.replace(" | null`", "`", 1).partition(" - at `")
    key, found, kind = _locate(layer.values, path.rstrip("`"))
    label = layer.labels.get(key)
    where = f"{label} ({layer.name})" if label else f"{layer.name}: `{key}`"
    if get_origin(kind) is Literal and isinstance(found, str):
        expected = f"expected one of {', '.join(get_args(kind))}"
    if isinstance(found, str):
        expected = _PATTERNS.get(_general(key), expected)
    secret = is_secret(key) or "@" in str(found)
    shown = f"of type {type(found).__name__}" if secret else repr(found)
    return f"{where} is {shown}: {expected[:1].lower()}{expected[1:]}"


def _general(key: str) -> str:
    """`mcp.NAME.url` for that of any server, `server.cors_origins` for any entry of it."""
    return re.sub(r"^(mcp|peers)\..*\.(\w+)$", r"\1.NAME.\2", re.sub(r"\[\d+\]$", "", key))


def _locate(values: Any, path: str) -> tuple[str, Any, Any]:
    """Turn msgspec's `$.server.port` into a key, the value found there and its type."""
    kind: Any = Config
    names: list[str] = []
    for part in re.findall(r"\[[^]]*\]|[^.[]+", path.removeprefix("$")):
        if part == "[...]":  # msgspec does not say which entry of a table it is
            kind = get_args(kind)[1]
            name = next(name for name, value in values.items() if not _fits(value, kind))
        elif part.startswith("["):
            values = values[int(part[1:-1])]
            names[-1] += part
            continue
        else:
            name, kind = part, get_type_hints(kind)[part]
        kind = present(kind)
        names.append(name)
        values = values[name]
    return ".".join(names), values, kind


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _warn(layer: Layer, values: Mapping[str, Any], struct: type[Struct], prefix: str, warnings: list[str]) -> None:
    known = get_type_hints(struct)
    for key, value in values.items():
        name = prefix + key
        if key not in known:
            warnings.append(_unknown(layer, name, key, list(known), at_top=not prefix))
        elif isinstance(value, dict) and isinstance(known[key], type) and issubclass(known[key], Struct):
            _warn(layer, value, known[key], f"{name}.", warnings)
        elif known[key] in (dict[str, Mcp], dict[str, Peer]) and isinstance(value, dict):
            for entry, table in value.items():
                if isinstance(table, dict):
                    _warn(layer, table, get_args(known[key])[1], f"{name}.{entry}.", warnings)


def _unknown(layer: Layer, name: str, key: str, known: list[str], *, at_top: bool) -> str:
    if at_top and key in RUST_ONLY_KEYS:
        return f"{layer.name}: `{name}` is a setting of the pawan terminal program; pawand does not use it"
    near = difflib.get_close_matches(key, known, 1)
    hint = f"; did you mean `{name.removesuffix(key)}{near[0]}`?" if near else ""
    return f"{layer.name}: unknown setting `{name}`{hint}"
