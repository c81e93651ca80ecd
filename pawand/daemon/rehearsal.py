"""What can be known of a start while the old daemon still runs: the checks of `pawand restart`."""

from __future__ import annotations

import msgspec

from pawand.daemon import system
from pawand.daemon.planning import Plan
from pawand.tools.workspace import Workspace
from pawand.web.access import is_loopback


def check(plan: Plan, own_port: int | None) -> None:
    """Raise what the start would: ConfigError or StartError. `own_port` is what the old one frees. Blocks."""
    server = plan.config.server
    port = 0 if server.port == own_port else server.port
    sockets = system.bind(msgspec.structs.replace(server, port=port))
    addresses = system.bound_addresses(sockets)
    for sock in sockets:
        sock.close()
    Workspace(plan.workspace).close()
    beyond_loopback = not all(map(is_loopback, addresses))
    if plan.token_file.exists() or not system.needs_token(plan, beyond_loopback=beyond_loopback):
        system.check_token(plan)
