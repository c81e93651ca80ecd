"""Settings: their types and defaults, the layers they come from, and whose word counts.

Later layers win: defaults, /etc/pawan/pawan.toml, ~/.config/pawan/pawan.toml, the workspace's pawan.toml,
`--config FILE`, environment, flags. The workspace file belongs to whoever wrote the repository, so it may
set only `WORKSPACE_KEYS` and tighten `[permissions]` (docs/security.md, "Whose settings count").
"""

from __future__ import annotations

from pawand.config.checks import check
from pawand.config.files import MAX_FILE_BYTES, is_open_to_others, load_secrets, parse_toml, toml_of
from pawand.config.keys import RUST_ONLY_KEYS, WORKSPACE_KEYS, differences, is_secret, kind_of, leaves, leaves_of, names
from pawand.config.layers import ENVIRONMENT, Settings, file_layer, load
from pawand.config.places import aegis_files, sessions_folder, token_file
from pawand.config.schema import (
    Cloud,
    Config,
    Discovery,
    Eruka,
    Layer,
    Limits,
    Mcp,
    Peer,
    Permission,
    ProviderName,
    Sandbox,
    Server,
    Sessions,
)

__all__ = [
    "ENVIRONMENT",
    "MAX_FILE_BYTES",
    "RUST_ONLY_KEYS",
    "WORKSPACE_KEYS",
    "Cloud",
    "Config",
    "Discovery",
    "Eruka",
    "Layer",
    "Limits",
    "Mcp",
    "Peer",
    "Permission",
    "ProviderName",
    "Sandbox",
    "Server",
    "Sessions",
    "Settings",
    "aegis_files",
    "check",
    "differences",
    "file_layer",
    "is_open_to_others",
    "is_secret",
    "kind_of",
    "leaves",
    "leaves_of",
    "load",
    "load_secrets",
    "names",
    "parse_toml",
    "sessions_folder",
    "token_file",
    "toml_of",
]
