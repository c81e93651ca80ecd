"""The layers that settings come from, merged with the source of each value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from pawand import paths
from pawand.config.checks import check_servers, checked
from pawand.config.files import is_there, parse_toml
from pawand.config.keys import WORKSPACE_KEYS, assign, leaves_of
from pawand.config.schema import Config, Layer, Permission

PROVIDER_ALIASES = {"nim": "nvidia", "mlx-lm": "mlx"}
# Environment variable → key (facts 2.3).
ENVIRONMENT = {
    "PAWAN_PROVIDER": "provider",
    "PAWAN_MODEL": "model",
    "PAWAN_TEMPERATURE": "temperature",
    "PAWAN_MAX_TOKENS": "max_tokens",
    "PAWAN_MAX_ITERATIONS": "max_tool_iterations",
    "PAWAN_MAX_CONTEXT_TOKENS": "max_context_tokens",
    "PAWAN_MAX_RESULT_CHARS": "max_result_chars",
    "PAWAN_FALLBACK_MODELS": "fallback_models",
    "PAWAN_SKILLS_REPO": "skills_repo",
    "PAWAN_API_PORT": "server.port",
    "PAWAN_AGENT_ID": "server.agent_id",
}


class Settings(Struct, frozen=True):
    """The merged configuration with where each value came from and what the user should hear about it."""

    config: Config
    sources: dict[str, str]
    warnings: list[str]
    workspace_permissions: dict[str, Permission]
    stranger: str | None
    """The workspace's file where it counts as a stranger's: a source that may not name files."""


def load(
    workspace: Path, flags: Mapping[str, Any], env: Mapping[str, str] = os.environ, draft: Layer | None = None
) -> Settings:
    """Read all layers. `flags` maps dotted keys (and `config`, a path) to values; None means not given.

    `draft` counts as what the file of its name says, to know what it would do there.

    Raises ConfigError that names file, key, what was found and what is expected.
    """
    warnings: list[str] = []
    explicit = flags.get("config") or env.get("PAWAND_CONFIG")
    workspace_file = workspace / paths.CONFIG_NAME
    user_file = paths.user_config_dir(env) / paths.CONFIG_NAME
    layers = [_file_layer(paths.SYSTEM_CONFIG, draft), _file_layer(user_file, draft)]
    stranger = _file_layer(workspace_file, draft) if not _same_file(workspace_file, explicit) else None
    workspace_permissions: dict[str, Permission] = {}
    if stranger:
        stranger = _only_workspace_keys(stranger, paths.user_config_dir(env), warnings)
        workspace_permissions = checked(stranger, warnings).permissions
        layers.append(Layer(stranger.name, {k: v for k, v in stranger.values.items() if k in WORKSPACE_KEYS}))
    if explicit:
        layers.append(_file_layer(paths.expand(explicit), draft, required=True))
    layers.append(_environment_layer(env))
    layers.append(_flag_layer(flags))

    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in layers:
        if layer is not None:
            checked(layer, warnings)
            if layer.values.get("provider", merged.get("provider")) != merged.get("provider"):
                merged.pop("base_url", None)  # it belongs to the provider of its own layer
                sources.pop("base_url", None)
            known = {key: value for key, value in layer.values.items() if key in Config.__struct_fields__}
            for path, value in leaves_of(known):
                assign(merged, path, value)
                key = ".".join(path)
                sources[key] = layer.labels.get(key, layer.name)
    config = msgspec.convert(merged, Config)
    check_servers(config, layers)
    return Settings(
        config,
        sources,
        list(dict.fromkeys(warnings)),
        workspace_permissions,
        stranger.name if stranger else None,
    )


def file_layer(path: Path, values: dict[str, Any]) -> Layer:
    """What a file with these values says."""
    provider = values.get("provider")
    if isinstance(provider, str):
        values = {**values, "provider": PROVIDER_ALIASES.get(provider, provider)}
    return Layer(str(path), values)


def _file_layer(path: Path, draft: Layer | None, *, required: bool = False) -> Layer | None:
    if draft is not None and draft.name == str(path):
        return draft
    if not required and not is_there(path):
        return None
    return file_layer(path, parse_toml(path))


def _same_file(path: Path, other: Any) -> bool:
    return bool(other) and path.exists() and paths.expand(other).exists() and path.samefile(paths.expand(other))


def _environment_layer(env: Mapping[str, str]) -> Layer:
    values: dict[str, Any] = {}
    labels: dict[str, str] = {}
    for variable, key in ENVIRONMENT.items():
        text = env.get(variable, "").strip()
        if not text:
            continue
        value: Any = text
        if key == "provider":
            value = PROVIDER_ALIASES.get(text.lower(), text.lower())
        elif key == "fallback_models":
            value = [part.strip() for part in text.split(",") if part.strip()]
        elif key in ("temperature",) or key.startswith("max_") or key == "server.port":
            value = _number(text)
        assign(values, key.split("."), value)
        labels[key] = variable
    return Layer("environment", values, labels)


def _flag_layer(flags: Mapping[str, Any]) -> Layer:
    values: dict[str, Any] = {}
    labels: dict[str, str] = {}
    for key, value in flags.items():
        if value is not None and key != "config":
            assign(values, key.split("."), PROVIDER_ALIASES.get(value, value) if key == "provider" else value)
            labels[key] = "--" + key.rpartition(".")[2].replace("_", "-")
    return Layer("flags", values, labels)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _only_workspace_keys(layer: Layer, trusted: Path, warnings: list[str]) -> Layer:
    """What a stranger may set, `[permissions]` included; unknown keys stay, to be warned of like everywhere."""
    ignored = set(Config.__struct_fields__) - WORKSPACE_KEYS - {"permissions"}
    for key in sorted(ignored & layer.values.keys()):
        warnings.append(
            f"{layer.name}: `{key}` is ignored: a workspace file may not set it; "
            f"put it into {trusted / paths.CONFIG_NAME} or pass the file with --config"
        )
    return Layer(layer.name, {key: value for key, value in layer.values.items() if key not in ignored})
