"""Settings: their types and defaults, the layers they come from, and whose word counts.

Later layers win: defaults, /etc/pawan/pawan.toml, ~/.config/pawan/pawan.toml, the workspace's pawan.toml,
`--config FILE`, environment, flags. The workspace file belongs to whoever wrote the repository, so it may
set only `WORKSPACE_KEYS` and tighten `[permissions]` (docs/security.md, "Whose settings count").
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct, field

from pawand import paths
from pawand.errors import ConfigError

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0)]
Name = Annotated[str, Meta(min_length=1)]
FilePath = Annotated[str, Meta(pattern=r"^[^\0]+$")]
# Scheme, host and port of a web address; one with a user and password in it is refused.
_ORIGIN = r"https?://([^\s/@\[\]:]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?"
WebAddress = Annotated[str, Meta(pattern=rf"^{_ORIGIN}(/\S*)?$")]
# What goes into an announcement, where a comma parts them.
GroupName = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f,]{1,32}$")]
Permission = Literal["allow", "prompt", "deny"]
ProviderName = Literal["nvidia", "openai", "ollama", "mlx", "local"]
_HOST_AND_PORT = r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:(6553[0-5]|6(55[0-2]|5[0-4]\d|[0-4]\d\d)\d|[1-5]?\d{1,4}))?"
PeerAddress = Annotated[
    str, Meta(pattern=rf"^({_HOST_AND_PORT}|https?://{_HOST_AND_PORT}(/[A-Za-z0-9._~%!$&'()*+,;=:@/-]*)?)$")
]
# What goes into a header, and is long enough to be kept out of everything else.
PeerToken = Annotated[str, Meta(pattern=r"^[!-~]{16,512}$")]


class Server(Struct, frozen=True, kw_only=True):
    host: Name | Annotated[list[Name], Meta(min_length=1)] = field(default_factory=lambda: ["127.0.0.1", "::1"])
    port: Annotated[int, Meta(ge=0, le=65535)] = 3300
    agent_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    allowed_hosts: list[str] = field(default_factory=list)
    cors_origins: list[Annotated[str, Meta(pattern=rf"^(\*|{_ORIGIN})$")]] = field(default_factory=list)
    token_file: FilePath | None = None
    local_auth: Literal["open", "token"] = "open"
    drain_secs: Annotated[float, Meta(ge=0)] = 20.0
    keep_alive_secs: Annotated[float, Meta(gt=0, le=45)] = 15.0


class Sandbox(Struct, frozen=True, kw_only=True):
    mode: Literal["auto", "require", "off"] = "auto"
    network: bool = False
    read_only_paths: list[FilePath] = field(default_factory=list)
    writable_paths: list[FilePath] = field(default_factory=list)


class Sessions(Struct, frozen=True, kw_only=True):
    dir: FilePath | None = None


class Limits(Struct, frozen=True, kw_only=True):
    body_bytes: Annotated[int, Meta(ge=1024)] = 1024 * 1024
    connections: Positive | None = None
    turns: Positive = 256
    queued_per_session: NotNegative = 16
    ring_bytes: Annotated[int, Meta(ge=65536)] = 1024 * 1024
    log_idle_secs: Seconds = 600.0
    hops: Annotated[int, Meta(ge=0, le=16)] = 1


class Discovery(Struct, frozen=True, kw_only=True):
    aegis_file: FilePath | None = None
    mdns: bool = False
    groups: Annotated[list[GroupName], Meta(max_length=32)] = field(default_factory=list)


class Peer(Struct, frozen=True, kw_only=True):
    """An agent that this one may ask: `token` is the one that it wants, and goes nowhere else."""

    token: PeerToken | None = None
    address: PeerAddress | None = None


class Cloud(Struct, frozen=True, kw_only=True):
    provider: ProviderName
    model: Name
    fallback_models: list[str] = field(default_factory=list)


class Mcp(Struct, frozen=True, kw_only=True):
    """A server of tools: a program to start or a `url`, never both, which `_check_servers` holds."""

    command: FilePath | None = None
    args: list[Annotated[str, Meta(pattern=r"^[^\0]*$")]] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    url: WebAddress | None = None
    headers: dict[str, str] = field(default_factory=dict)
    enabled: bool = True
    sandbox: bool = True
    network: bool = False


class Eruka(Struct, frozen=True, kw_only=True):
    enabled: bool = False
    url: WebAddress = "http://localhost:8081"
    api_key: str | None = None
    core_max_tokens: Positive = 500
    workspace_id: Annotated[str, Meta(pattern=r"^[!-~]+$")] = "pawan"


class Config(Struct, frozen=True, kw_only=True):
    """Every setting that means something to the daemon; field names are the keys of pawan.toml."""

    provider: ProviderName | None = None
    model: Annotated[str, Meta(min_length=1)] | None = None
    base_url: WebAddress | None = None
    fallback_models: list[str] = field(default_factory=list)
    system_prompt: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.95
    max_tokens: Positive = 8192
    reasoning_mode: bool = True
    thinking_budget: NotNegative = 0
    max_retries: NotNegative = 3
    max_tool_iterations: Positive = 50
    max_context_tokens: Positive = 100_000
    max_result_chars: Annotated[int, Meta(ge=500)] = 8000
    bash_timeout_secs: Positive = 120
    turn_timeout_secs: Seconds = 1800.0
    first_event_timeout_secs: Seconds = 300.0
    stall_timeout_secs: Seconds = 120.0
    permission_timeout_secs: Seconds = 120.0
    skills_repo: FilePath | None = None
    server: Server = field(default_factory=Server)
    sandbox: Sandbox = field(default_factory=Sandbox)
    sessions: Sessions = field(default_factory=Sessions)
    limits: Limits = field(default_factory=Limits)
    discovery: Discovery = field(default_factory=Discovery)
    permissions: dict[str, Permission] = field(default_factory=dict)
    cloud: Cloud | None = None
    peers: dict[str, Peer] = field(default_factory=dict)
    mcp: dict[str, Mcp] = field(default_factory=dict)
    eruka: Eruka = field(default_factory=Eruka)


MAX_FILE_BYTES = 1024 * 1024
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
_SECRET_KEYS = re.compile(r"\.(api_key|token|env|headers)\b")
_SERVER_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
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


# A line of `.env`: quotes go, and so does a comment after a blank.
_ASSIGNMENT = re.compile(
    r"""\s*(?:export\s+)?(?P<name>\w+)\s*=\s*(?P<quote>['"]?)(?P<value>.*?)(?P=quote)\s*(?:(?<!\S)#.*)?"""
)


class Layer(Struct, frozen=True):
    """One source of settings; `name` is what error messages and `sources` call it."""

    name: str
    values: dict[str, Any]
    labels: Mapping[str, str] = {}
    """Dotted key → what the user typed for it (`PAWAN_MODEL`, `--port`); files use the key itself."""


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
        workspace_permissions = _check(stranger, warnings).permissions
        layers.append(Layer(stranger.name, {k: v for k, v in stranger.values.items() if k in WORKSPACE_KEYS}))
    if explicit:
        layers.append(_file_layer(paths.expand(explicit), draft, required=True))
    layers.append(_environment_layer(env))
    layers.append(_flag_layer(flags))

    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in layers:
        if layer is not None:
            _check(layer, warnings)
            if layer.values.get("provider", merged.get("provider")) != merged.get("provider"):
                merged.pop("base_url", None)  # it belongs to the provider of its own layer
                sources.pop("base_url", None)
            known = {key: value for key, value in layer.values.items() if key in Config.__struct_fields__}
            for path, value in _leaves(known):
                _assign(merged, path, value)
                key = ".".join(path)
                sources[key] = layer.labels.get(key, layer.name)
    config = msgspec.convert(merged, Config)
    _check_servers(config, layers)
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


def check(layer: Layer) -> None:
    """Raises ConfigError for what is wrong in one layer, whatever the others say."""
    _check(layer, [])


def kind_of(path: Sequence[str]) -> Any:
    """The type of a setting or table of settings; None for one that there is not."""
    kind: Any = Config
    for name in path:
        kind = _present(kind)
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
        else:
            kind = get_type_hints(kind).get(name) if isinstance(kind, type) and issubclass(kind, Struct) else None
    return kind


def names(kind: Any = Config, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all settings, with NAME in the place of names that the user gives."""
    for name, inner in [("NAME", get_args(kind)[1])] if get_origin(kind) is dict else get_type_hints(kind).items():
        inner = _present(inner)
        if get_origin(inner) is dict or (isinstance(inner, type) and issubclass(inner, Struct)):
            yield from names(inner, f"{prefix}{name}.")
        else:
            yield prefix + name


def is_secret(key: str) -> bool:
    return _SECRET_KEYS.search(key) is not None


def leaves(config: Config) -> dict[tuple[str, ...], Any]:
    """Path → value of every setting."""
    return dict(_leaves(msgspec.to_builtins(config)))


def differences(old: Config, new: Config) -> list[str]:
    """The dotted keys of all settings that are not the same."""
    before, after = leaves(old), leaves(new)
    return sorted(".".join(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def token_file(config: Config, state: Path) -> Path:
    return paths.expand(config.server.token_file) if config.server.token_file else state / "token"


def aegis_files(config: Config) -> list[Path]:
    """The first of them that exists counts."""
    configured = config.discovery.aegis_file
    return [*([paths.expand(configured)] if configured else []), paths.aegis_file()]


def sessions_folder(config: Config, state: Path) -> Path:
    return paths.expand(config.sessions.dir) if config.sessions.dir else state / "sessions"


def load_secrets(names: list[str], env: Mapping[str, str], warnings: list[str]) -> dict[str, str]:
    """The values of `names` from the environment, systemd credentials, or a 0600 `~/.config/pawan/.env`.

    A blank value counts as none. Raises ConfigError for a credential that cannot be read.
    """
    layers = [
        _dotenv(paths.user_config_dir(env) / ".env", warnings),
        _credentials(Path(env["CREDENTIALS_DIRECTORY"]), names) if env.get("CREDENTIALS_DIRECTORY") else {},
        env,
    ]
    return {name: layer[name].strip() for layer in layers for name in names if layer.get(name, "").strip()}


def parse_toml(path: Path) -> dict[str, Any]:
    """The document as plain values. Raises ConfigError naming the file and, for a syntax error, the line."""
    try:
        return tomllib.loads(_read_text(path))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply") from error


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB, so it is no file of settings")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _file_layer(path: Path, draft: Layer | None, *, required: bool = False) -> Layer | None:
    if draft is not None and draft.name == str(path):
        return draft
    if not required and not _is_there(path):
        return None
    return file_layer(path, parse_toml(path))


def _is_there(path: Path) -> bool:
    """Raises ConfigError for what is no file: reading a device or a FIFO may never end."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path}: cannot be read: it is not a file")
    return True


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
        _assign(values, key.split("."), value)
        labels[key] = variable
    return Layer("environment", values, labels)


def _flag_layer(flags: Mapping[str, Any]) -> Layer:
    values: dict[str, Any] = {}
    labels: dict[str, str] = {}
    for key, value in flags.items():
        if value is not None and key != "config":
            _assign(values, key.split("."), PROVIDER_ALIASES.get(value, value) if key == "provider" else value)
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


def _check(layer: Layer, warnings: list[str]) -> Config:
    """Types and ranges are errors; unknown and idle keys are warnings."""
    _warn(layer, layer.values, Config, "", warnings)
    try:
        return msgspec.convert(layer.values, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(layer, str(error))) from error


def _check_servers(config: Config, layers: Sequence[Layer | None]) -> None:
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
    expected, _, path = text.partition(" - at `")
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
        kind = _present(kind)
        names.append(name)
        values = values[name]
    return ".".join(names), values, kind


def _present(kind: Any) -> Any:
    """The type of a value that may be missing, where it is there."""
    return get_args(kind)[0] if NoneType in get_args(kind) else kind


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


def _leaves(values: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Path and value of everything that is not a table; a list is a leaf."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def _assign(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for table in path[:-1]:
        if not isinstance(values.get(table), dict):  # an unknown key may be a plain value in an earlier layer
            values[table] = {}
        values = values[table]
    values[path[-1]] = value


def _dotenv(path: Path, warnings: list[str]) -> dict[str, str]:
    try:
        if not _is_there(path):
            return {}
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"{path} is readable by others and is ignored; run: chmod 600 {path}")
        lines = _read_text(path).splitlines()
    except ConfigError as error:
        warnings.append(error.message)
        return {}
    return {match["name"]: match["value"] for match in map(_ASSIGNMENT.fullmatch, lines) if match}


def _credentials(folder: Path, names: list[str]) -> dict[str, str]:
    """What systemd put there for us, a file for each (systemd.exec(5), "Credentials")."""
    return {name: _read_text(folder / name) for name in names if _is_there(folder / name)}
