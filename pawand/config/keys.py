"""Dotted keys: who may set which, what type each has, and the way from keys to values and back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Struct

from pawand.config.schema import Config

WORKSPACE_KEYS = frozenset(
    {
        "provider",
        "model",
        "temperature",
        "top_p",
        "max_tokens",
        "fallback_models",
        "max_tool_iterations",
        "reasoning_mode",
        "thinking_budget",
    }
)
# Settings of the Rust program that steer its terminal or that it never reads (facts 2.2).
RUST_ONLY_KEYS = frozenset(
    {
        "auto_backup",
        "config_version",
        "dry_run",
        "healing",
        "local_endpoint",
        "local_first",
        "max_file_size_kb",
        "models",
        "require_git_clean",
        "targets",
        "tool_call_idle_timeout_secs",
        "tui",
        "use_ares_backend",
        "use_coordinator",
    }
)
_SECRET_KEYS = re.compile(r"\.(api_key|token|env|headers)\b")


def kind_of(path: Sequence[str]) -> Any:
    """The type of a setting or table of settings; None for one that there is not."""
    kind: Any = Config
    for name in path:
        kind = present(kind)
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            kind = get_type_hints(kind).get(name) if isinstance(kind, type) and issubclass(kind, Struct) else None
    return kind


def names(kind: Any = Config, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all settings, with NAME in the place of names that the user gives."""
    for name, inner in [("NAME", get_args(kind)[1])] if get_origin(kind) is dict else get_type_hints(kind).items():
        inner = present(inner)
        if get_origin(inner) is dict or (isinstance(inner, type) and issubclass(inner, Struct)):
            yield from names(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def is_secret(key: str) -> bool:
    return _SECRET_KEYS.search(key) is not None


def leaves(config: Config) -> dict[tuple[str, ...], Any]:
    """Path → value of every setting."""
    return dict(leaves_of(msgspec.to_builtins(config)))


def differences(old: Config, new: Config) -> list[str]:
    """The dotted keys of all settings that are not the same."""
    before, after = leaves(old), leaves(new)
    return sorted(".".join(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def present(kind: Any) -> Any:
    """The type of a value that may be missing, where it is there."""
    return get_args(kind)[0] if NoneType in get_args(kind) else kind


def leaves_of(values: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and value of everything that is not a table; a list is a leaf."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves_of(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def assign(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for table in path[:-1]:
        if not isinstance(values.get(table), dict):  # an unknown key may be a plain value in an earlier layer
            values[table] = {}
        values = values[table]
    values[path[-1]] = value
