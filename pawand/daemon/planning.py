"""What is decided before anything is opened: all settings, read and checked, and the places that follow from them."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec import Struct

from pawand import config, paths
from pawand.config import Config, Eruka, Settings
from pawand.providers import catalog
from pawand.tools.workspace import check_place

ERUKA_KEY = "ERUKA_API_KEY"
KEY_VARIABLES = [*catalog.KEY_VARIABLES, ERUKA_KEY]


class Plan(Struct, frozen=True, kw_only=True):
    """`flags`, `workspace` and `env` are what it was made from, so that it can be made again.

    `options` are those of the command line, by their names: `pawand restart` takes them over.
    """

    flags: Mapping[str, Any]
    env: Mapping[str, str]
    options: Mapping[str, Any]
    settings: Settings
    workspace: Path
    state: Path
    choice: catalog.Choice
    cloud: catalog.Choice | None
    secrets: dict[str, str]
    has_company: bool
    """Whether there may be another agent to ask."""

    @property
    def config(self) -> Config:
        return self.settings.config

    @property
    def sessions(self) -> Path:
        return config.sessions_folder(self.config, self.state)

    @property
    def token_file(self) -> Path:
        return config.token_file(self.config, self.state)

    @property
    def aegis_files(self) -> list[Path]:
        return config.aegis_files(self.config)

    @property
    def skills(self) -> Path:
        folder = self.config.skills_repo
        return paths.expand(folder).absolute() if folder else paths.user_config_dir(self.env) / "skills"

    @property
    def eruka(self) -> Eruka:
        """With its key, wherever that was given."""
        settings = self.config.eruka
        return msgspec.structs.replace(settings, api_key=self.secrets.get(ERUKA_KEY, settings.api_key))

    @property
    def agent_id(self) -> str:
        return self.config.server.agent_id or f"pawan@{socket.gethostname()}"

    def again(self) -> Plan:
        """Read everything anew, the environment as it was at the start. Raises ConfigError."""
        return plan(self.flags, self.workspace, self.env, self.options)


def plan(
    flags: Mapping[str, Any],
    workspace: Path,
    env: Mapping[str, str] = os.environ,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Plan:
    """Read and check all settings, and the workspace. Raises ConfigError."""
    made = draft(flags, workspace, env, options)
    check_workspace(made)
    return made


def draft(flags: Mapping[str, Any], workspace: Path, env: Mapping[str, str], options: Mapping[str, Any]) -> Plan:
    """Read and check all settings, in whatever folder that is. Raises ConfigError."""
    state = paths.state_dir(env)
    workspace = paths.expand(workspace).absolute()
    settings = config.load(workspace, flags, env)
    secrets = config.load_secrets(KEY_VARIABLES, env, settings.warnings)
    trusted = settings.sources.get("model") != settings.stranger
    choice = catalog.choose(settings.config, secrets, env, model_trusted=trusted)
    return Plan(
        flags=flags,
        env=dict(env),
        options=options,
        settings=settings,
        workspace=workspace,
        state=state,
        choice=choice,
        cloud=catalog.choose_cloud(settings.config, secrets, env),
        secrets=secrets,
        has_company=_has_company(settings.config),
    )


def check_workspace(plan: Plan) -> None:
    """Raises ConfigError for a folder that the agent may not work in."""
    own = [plan.state, plan.sessions, plan.token_file, paths.SYSTEM_CONFIG.parent, paths.user_config_dir(plan.env)]
    check_place(plan.workspace, [*own, *(file.parent for file in plan.aegis_files)])


def _has_company(settings: Config) -> bool:
    """Looked at when the settings are read: a tool that comes and goes between turns would only puzzle a model."""
    named = settings.peers or settings.discovery.mdns or any(file.exists() for file in config.aegis_files(settings))
    return bool(named and settings.limits.hops)
