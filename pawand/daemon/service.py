"""The life of the process: lock, bind, serve, read the settings again, and stop in stages."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

from pawand import __version__, garbage, hardening, paths
from pawand.client import url_of
from pawand.daemon import signals, system, systemd
from pawand.daemon.assembly import Parts, assemble
from pawand.daemon.planning import KEY_VARIABLES, Plan
from pawand.daemon.systemd import Systemd
from pawand.errors import ConfigError, StorageError
from pawand.event_loop import HoldWatch
from pawand.peers.announcement import Card, Neighbours
from pawand.sessions import lock
from pawand.sessions.store import SessionStore
from pawand.turns.manager import TurnManager
from pawand.web.access import is_loopback
from pawand.web.app import make_app
from pawand.web.base import MAX_DRAINED_BYTES
from pawand.web.server import Server, connection_limit

log = logging.getLogger(__name__)

ASK_SECS = 1.0
"""How long a client that has connected before the end may take to send its request."""
CLOSE_SECS = 5.0
PUBLISH_SECS = 5.0


def serve(plan: Plan) -> None:
    """Run until SIGTERM or SIGINT. Raises ConfigError or StartError before the port answers."""
    manager = systemd.take()
    hardening.forget_environment(KEY_VARIABLES)
    if os.environ.get("PAWAND_DEBUG") != "1":
        hardening.forbid_dumps()
    hardening.leave_keyring()
    watch = HoldWatch()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(watch)) as runner:
        runner.run(_run(plan, manager, watch))


async def _run(plan: Plan, manager: Systemd, watch: HoldWatch) -> None:
    """From an owned store and bound sockets to a clean end."""
    store = SessionStore(plan.sessions)
    # The state folder has an owner of its own: `[sessions] dir` may be elsewhere.
    state_lock = await asyncio.to_thread(lock.acquire, plan.state / "run" / "lock", f"the state folder {plan.state}")
    try:
        await asyncio.to_thread(store.open)
        sockets = manager.sockets() or system.bind(plan.config.server)
        try:
            await _serve(plan, store, sockets, manager, watch)
        finally:
            for sock in sockets:
                sock.close()
    finally:
        store.close()
        os.close(state_lock)


async def _serve(
    plan: Plan, store: SessionStore, sockets: list[socket.socket], manager: Systemd, watch: HoldWatch
) -> None:
    beyond_loopback = any(not is_loopback(str(sock.getsockname()[0])) for sock in sockets)
    url = url_of(*sockets[0].getsockname()[:2])
    connections = connection_limit(plan.config.limits.connections)
    parts = await asyncio.to_thread(assemble, plan, store, beyond_loopback=beyond_loopback)
    server = Server(make_app(parts.services), max_connections=connections, max_body_size=4 * MAX_DRAINED_BYTES)
    server.add_sockets(sockets)
    metrics = parts.services.metrics
    metrics.show("connections", "Open connections.", lambda: server.connections)
    metrics.show_loop(watch)
    publish = functools.partial(system.write_state_file, url=url, started=datetime.now(UTC))
    stop, reload = asyncio.Event(), asyncio.Event()
    signals.listen(stop, reload)
    published = _try_to(publish, plan)  # from here on others may send signals
    if manager.descriptors:
        _announce_handed(plan, sockets)
    _announce(plan, url, parts)
    manager.tell("READY=1", f"STATUS={_status(parts, url)}")
    informing = asyncio.create_task(manager.keep_informed(functools.partial(_status, parts, url)))
    watch.busy = lambda: parts.services.turns.busy
    tasks = [
        asyncio.create_task(_warm(store, parts)),
        asyncio.create_task(garbage.collect_when_quiet(lambda: _busy(parts.services.turns))),
        asyncio.create_task(_reload_when_asked(parts, publish, reload, manager)),
    ]
    if plan.config.discovery.mdns:
        tasks.append(asyncio.create_task(_speak_mdns(parts, sockets)))
    if not published:
        tasks.append(asyncio.create_task(_publish_later(parts, publish)))
    try:
        await stop.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        with suppress(OSError):
            await asyncio.to_thread(publish, parts.plan, stopping=True)
        await _stop(parts, server, manager)
        await parts.aclose()
        informing.cancel()
        await asyncio.wait([informing])
        with suppress(OSError):
            paths.state_file(plan.state).unlink()


def _busy(turns: TurnManager) -> bool:
    """Whether there is anybody who would notice a pause, and much for a collection to look at."""
    return turns.busy or turns.followers > 0


async def _stop(parts: Parts, server: Server, manager: Systemd) -> None:
    """No new connections, no new turns; some time for the turns that run; an end for those that are left."""
    drain_secs = parts.plan.config.server.drain_secs
    turns = parts.services.turns
    manager.tell_stopping(drain_secs + 2 * CLOSE_SECS, f"Finishing {_count(turns.active_turns)}")
    if turns.active_turns and drain_secs:
        log.info("stopping; running turns have %g s to end, a second signal ends them at once", drain_secs)
    else:
        log.info("stopping")
    server.stop()
    await asyncio.gather(_within(ASK_SECS, server.all_asked()), turns.shutdown(drain_secs))
    manager.tell(systemd.extension(3 * CLOSE_SECS))  # the turns may have needed more than their time to end
    await _within(CLOSE_SECS, server.all_answered())
    await _within(CLOSE_SECS, server.close_all_connections())


async def _within(secs: float, work: Awaitable[None]) -> None:
    """Wait for it, and give it up when the time is over."""
    with suppress(TimeoutError):
        async with asyncio.timeout(secs):
            await work


def _try_to(publish: Callable[[Plan], None], plan: Plan) -> bool:
    try:
        publish(plan)
    except OSError as error:
        log.warning("the state file %s cannot be written: %s", paths.state_file(plan.state), error.strerror)
        return False
    return True


async def _publish_later(parts: Parts, publish: Callable[[Plan], None]) -> None:
    """Where the disk is full or read-only at the start, commands need --url until it is not."""
    while True:
        await asyncio.sleep(PUBLISH_SECS)
        with suppress(OSError):
            await asyncio.to_thread(publish, parts.plan)
            return


async def _reload_when_asked(
    parts: Parts, publish: Callable[[Plan], None], asked: asyncio.Event, manager: Systemd
) -> None:
    while True:
        await asked.wait()
        asked.clear()
        manager.tell_reloading()
        try:
            await _reload(parts, publish)
            await parts.outside.provider.warm()
        except ConfigError as error:
            log.error("the settings stay as they were: %s", error)  # noqa: TRY400 - a user's slip needs no traceback
        except Exception:  # whatever it was, the next signal must find somebody listening
            log.exception("the settings could not be read again")
        finally:
            manager.tell("READY=1")


async def _reload(parts: Parts, publish: Callable[[Plan], None]) -> None:
    try:
        plan = await asyncio.to_thread(parts.plan.again)
        token = await parts.read_token(plan)
    except ConfigError:
        await parts.take_token()
        raise
    changed, waiting = parts.changes(plan)
    await parts.adopt(plan, token)
    await asyncio.to_thread(_try_to, publish, plan)
    _warn(plan)
    log.info("settings read again; changed: %s", ", ".join(changed) or "nothing")
    if waiting:
        log.warning("these settings count from the next start: %s", ", ".join(waiting))


def _announce(plan: Plan, url: str, parts: Parts) -> None:
    """Say where we are."""
    _warn(plan)
    status = parts.ground.sandbox.status
    if status.word != "bwrap":
        log.warning("commands run without a sandbox: %s", status.reason)
    if os.geteuid() == 0:
        log.warning("pawand runs as root: what the agent may write, it may write as root")
    log.info(
        "pawand %s on %s, workspace %s, provider %s, model %s",
        __version__,
        url,
        plan.workspace,
        plan.choice.name,
        plan.choice.model,
    )


def _announce_handed(plan: Plan, sockets: list[socket.socket]) -> None:
    """Which sockets systemd keeps for us, and that it has the last word on them."""
    addresses = [sock.getsockname()[:2] for sock in sockets]
    shown = ", ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in addresses)
    log.info("systemd holds the sockets: %s", shown)
    server = plan.config.server
    hosts = [server.host] if isinstance(server.host, str) else server.host
    is_set = not {"server.host", "server.port"}.isdisjoint(plan.settings.sources)
    if is_set and {(host, server.port) for host in hosts} != set(addresses):
        log.warning("[server] host and port do not count: systemd holds %s; change ListenStream= in its unit", shown)


def _status(parts: Parts, url: str) -> str:
    """For `systemctl status`."""
    turns = parts.services.turns
    if turns.stopping:
        return f"Finishing {_count(turns.active_turns)}"
    return f"Serving {parts.plan.workspace} on {url}, {_count(turns.active_turns)} running"


def _count(turns: int) -> str:
    return f"{turns} turn{'' if turns == 1 else 's'}"


def _warn(plan: Plan) -> None:
    """What the user should hear about the settings."""
    for warning in plan.settings.warnings:
        log.warning("%s", warning)
    if plan.choice.automatic:
        log.warning(
            "no provider is configured: the embedded model %s answers. It shows that everything works; "
            "it cannot code. Set NVIDIA_API_KEY, or `provider` and `model` in pawan.toml.",
            plan.choice.model,
        )
    if plan.choice.fault:
        log.warning("%s", plan.choice.fault)
    if plan.cloud is not None and plan.cloud.fault:
        log.warning("[cloud] is not used: %s", plan.cloud.fault)


async def _warm(store: SessionStore, parts: Parts) -> None:
    """What the first requests would wait for, done while nobody waits."""
    with garbage.none_meanwhile():
        try:
            await asyncio.to_thread(store.list)
        except StorageError as error:
            log.warning("%s", error)
            parts.services.metrics.note_failure(error)
        await parts.services.directory.peers()
        await parts.outside.provider.warm()


async def _speak_mdns(parts: Parts, sockets: list[socket.socket]) -> None:
    """Until cancelled, which takes a moment: others are told."""
    try:
        speak = await asyncio.to_thread(_import_mdns)
    except Exception as error:  # noqa: BLE001 - a package that is broken can raise anything
        log.warning("mDNS is off, its package cannot be used: %s", error)
        return
    port, bound = system.announced(sockets)
    card = Card(
        agent_id=parts.services.identity.agent_id, groups=parts.started.discovery.groups, port=port, bound=bound
    )
    await speak(card, parts.services.directory.neighbours)


def _import_mdns() -> Callable[[Card, Neighbours], Awaitable[None]]:
    """The package takes its time to be imported, and most daemons do without it."""
    from pawand.peers import mdns

    return mdns.run
