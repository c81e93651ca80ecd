"""What the handlers stand on: this daemon's parts and what it is."""

from __future__ import annotations

from msgspec import Struct

from pawand.config import Config
from pawand.event_loop import Pace
from pawand.metrics import Metrics
from pawand.peers.directory import Directory
from pawand.providers.base import Provider
from pawand.providers.catalog import Choice
from pawand.tools.sandbox import Sandbox
from pawand.turns.manager import TurnManager
from pawand.web.access import Gate
from pawand.web.store_look import StoreLook


class Identity(Struct, frozen=True, kw_only=True):
    """What this daemon is. `started` is a time.monotonic()."""

    agent_id: str
    started: float
    choice: Choice
    cloud: Choice | None
    sandbox: Sandbox

    @property
    def has_cloud(self) -> bool:
        """A second provider that can answer."""
        return self.cloud is not None and self.cloud.fault is None


class Services(Struct, kw_only=True):
    """What the handlers stand on; its fields are replaced when the settings are read again."""

    config: Config
    gate: Gate
    identity: Identity
    turns: TurnManager
    directory: Directory
    provider: Provider
    metrics: Metrics
    store_look: StoreLook
    pace: Pace
