"""What the daemon is to the system around it: its sockets, its names, its token and state file."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from datetime import datetime
from pathlib import Path

from tornado.netutil import bind_sockets

from pawand import __version__, config, paths, procfs, token_file
from pawand.client import url_of
from pawand.daemon.planning import Plan
from pawand.errors import ConfigError, StartError
from pawand.web.access import is_loopback

log = logging.getLogger(__name__)

BACKLOG = 1024


def bind(server: config.Server) -> list[socket.socket]:
    """The listening sockets, all on one port. Raises StartError naming the port, ConfigError for a bad address."""
    hosts = [server.host] if isinstance(server.host, str) else server.host
    default = config.Server().host == server.host
    sockets: list[socket.socket] = []
    port = server.port
    for host in hosts:
        try:
            bound = bind_sockets(port, host, backlog=BACKLOG)
        except OSError as error:
            if default and sockets and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue  # a machine without IPv6
            for sock in sockets:
                sock.close()
            raise _bind_error(error, host, port) from error
        sockets += bound
        port = bound[0].getsockname()[1]
    return sockets


def bound_addresses(sockets: list[socket.socket]) -> list[str]:
    """Of all that listen; one for both families is told as `::` and `0.0.0.0`."""
    found: list[str] = []
    for sock in sockets:
        host = str(sock.getsockname()[0])
        found.append(host)
        if host == "::" and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            found.append("0.0.0.0")  # noqa: S104 - not an address to bind
    return found


def announced(sockets: list[socket.socket]) -> tuple[int, list[str]]:
    """The port that others are told, and what is listened on there. systemd's sockets may have different ports: that of
    the first one beyond loopback counts, and only the addresses that have it."""
    outer = [sock for sock in sockets if not is_loopback(str(sock.getsockname()[0]))] or sockets
    port: int = outer[0].getsockname()[1]
    return port, bound_addresses([sock for sock in outer if sock.getsockname()[1] == port])


def _bind_error(error: OSError, host: str, port: int) -> ConfigError | StartError:
    if error.errno == errno.EADDRINUSE:
        owner = procfs.listener(port)
        named = f" ({owner.name}, pid {owner.pid})" if owner else ""
        return StartError(
            f"port {port} on {host} is in use by another program{named}: stop it, or choose another with --port "
            f"(`pawand --url {url_of(host, port)} status` tells whether it is pawand)"
        )
    if error.errno == errno.EACCES:
        return StartError(f"port {port} needs more rights: choose one above 1023 with --port")
    if error.errno == errno.EADDRNOTAVAIL:  # it may come with its interface: a service is started again
        return StartError(f"cannot listen on {host}: it is no address of this machine, or not yet")
    return ConfigError(f"cannot listen on {host}: {error.strerror or error}")


def own_names() -> list[str]:
    """What others may call this machine. Blocks: a name server may be asked."""
    name = socket.gethostname()
    return [name, socket.getfqdn(), f"{name.partition('.')[0]}.local"]


def read_token(plan: Plan, *, beyond_loopback: bool) -> str | None:
    """The token of the file, made where one is needed. Raises ConfigError for one that is too short."""
    path = plan.token_file
    if needs_token(plan, beyond_loopback=beyond_loopback) and not path.exists():
        token_file.make(path)
        log.info("a token for callers from other machines was made: %s", path)
    token = check_token(plan)
    if token is not None and token_file.is_open_to_others(path):
        log.warning("the token file %s is readable by others; run: chmod 600 %s", path, path)
    return token


def needs_token(plan: Plan, *, beyond_loopback: bool) -> bool:
    return beyond_loopback or plan.config.server.local_auth == "token"


def check_token(plan: Plan) -> str | None:
    """The token of the file, None where there is none and that is all right. Raises ConfigError."""
    path = plan.token_file
    if not path.exists():
        if "*" in plan.config.server.cors_origins:
            raise ConfigError(
                f'cors_origins = ["*"] lets every web page in, so it needs a token: put one into {path} (mode 0600)'
            )
        return None
    return token_file.read(path)


def write_state_file(plan: Plan, url: str, started: datetime, *, stopping: bool = False) -> None:
    path = paths.state_file(plan.state)
    paths.private_dir(path.parent)
    unit = _unit()
    state = {
        "pid": os.getpid(),
        "start_ticks": procfs.start_ticks(os.getpid()),
        "url": url,
        "version": __version__,
        "started_at": started.isoformat(timespec="seconds"),
        "token_file": str(plan.token_file),
        "workspace": str(plan.workspace),
        "options": plan.options,
        "drain_secs": plan.config.server.drain_secs,
        "systemd": unit._asdict() if unit else None,
        "stopping": stopping,
    }
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(state).encode())  # takes names of files that are no UTF-8, too
    temporary.rename(path)


def _unit() -> procfs.Unit | None:
    """The unit of systemd whose main process we are (systemd.exec(5)); None where we were started otherwise."""
    if os.environ.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        return None
    try:
        named = procfs.unit_of(Path("/proc/self/cgroup").read_text())
    except OSError:
        named = None
    return named or procfs.Unit("pawand.service", user="MANAGERPID" in os.environ)  # a container shows no name
