"""The composition root: settings to parts (assembly), parts to a running service and its end (service)."""

from __future__ import annotations

from pawand.daemon.assembly import TOOLS, Parts, assemble
from pawand.daemon.planning import Plan, plan
from pawand.daemon.service import serve

__all__ = ["TOOLS", "Parts", "Plan", "assemble", "plan", "serve"]
