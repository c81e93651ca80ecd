"""What can be set: every setting with its type, range and default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

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
_HOST_AND_PORT = r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:(6553[0-5]|6(55[0-2]|5[0-4]\d|[0-4]\d\d)\d|[1-5]?\d{1,4}))?"
PeerAddress = Annotated[
    str, Meta(pattern=rf"^({_HOST_AND_PORT}|https?://{_HOST_AND_PORT}(/[A-Za-z0-9._~%!$&'()*+,;=:@/-]*)?)$")
]
# What goes into a header, and is long enough to be kept out of everything else.
PeerToken = Annotated[str, Meta(pattern=r"^[!-~]{16,512}$")]
Permission = Literal["allow", "prompt", "deny"]
ProviderName = Literal["nvidia", "openai", "ollama", "mlx", "local"]


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


class Layer(Struct, frozen=True):
    """One source of settings; `name` is what error messages and `sources` call it."""

    name: str
    values: dict[str, Any]
    labels: Mapping[str, str] = {}
    """Dotted key → what the user typed for it (`PAWAN_MODEL`, `--port`); files use the key itself."""
