"""Who may speak: the access table of docs/api.md as one decision per request, before anything else looks at it."""

from __future__ import annotations

import hmac
import ipaddress
import math
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

from msgspec import Struct
from tornado.httputil import HTTPHeaders

from pawand.errors import PawandError, RetryLaterError

FORWARDING = ("Forwarded", "X-Real-Ip", "Via")
FORWARDING_PREFIX = "X-Forwarded-"
MAX_FAILURES = 10
FAILURE_WINDOW_SECS = 60.0
_MAX_ADDRESSES = 4096


class MisdirectedError(PawandError):
    code = "host_not_allowed"


class ForbiddenError(PawandError):
    code = "origin_not_allowed"


class UnauthorizedError(PawandError):
    code = "unauthorized"


class TooManyFailuresError(RetryLaterError):
    code = "too_many_failures"


class Request(Struct, frozen=True, kw_only=True):
    """What the decision rests on. `public` is a GET or HEAD of `/health` or `/agents`, `preflight` a browser's question
    whether a page may send what it wants to."""

    headers: HTTPHeaders
    scheme: str
    peer: str
    public: bool
    preflight: bool


class Grant(Struct, frozen=True):
    """`full` callers see and do everything; others get the README's fields of `/health` and `/agents`.

    `allow_origin` is the CORS header to send, if any.
    """

    full: bool
    allow_origin: str | None = None


class Gate:
    """`own_names` are this machine's names; empty when the server is bound to loopback only."""

    def __init__(
        self,
        *,
        token: str | None,
        local_auth: bool,
        allowed_hosts: Iterable[str],
        own_names: Iterable[str],
        cors_origins: Iterable[str],
    ) -> None:
        self._token = token
        self._local_auth = local_auth
        self._hosts = {"localhost", *(name.lower().rstrip(".") for name in (*allowed_hosts, *own_names))}
        self._origins = {_normal_origin(origin) for origin in cors_origins}
        self._failures: dict[str, list[float]] = {}

    def allowed_origin(self, request: Request) -> str | None:
        """The request's Origin where a page of it may read answers, errors included; else None."""
        origin = self._origin(request)
        return origin if origin and (self._trusts(origin, request) or "*" in self._origins) else None

    def admit(self, request: Request) -> Grant:
        """Raises MisdirectedError, ForbiddenError, UnauthorizedError or TooManyFailuresError, checked in this order."""
        self._check_host(request)
        origin = self._origin(request)
        trusted = origin is None or self._trusts(origin, request)
        if not trusted and "*" not in self._origins:
            if request.public:
                self._check_token(request)
                return Grant(full=False, allow_origin="*")
            raise ForbiddenError(
                f"pages of {origin} may not use this daemon: add the origin to `[server] cors_origins` to allow them"
            )
        if request.preflight:
            return Grant(full=False, allow_origin=origin)
        needs_none = trusted and _is_local(request) and not self._local_auth
        if self._check_token(request, needs_none=needs_none) or needs_none:
            return Grant(full=True, allow_origin=origin)
        if request.public:
            return Grant(full=False, allow_origin=origin)
        raise UnauthorizedError(
            "send `Authorization: Bearer <token>`; the token is in the daemon's token file (<state>/token)"
        )

    def _check_host(self, request: Request) -> None:
        values = request.headers.get_list("Host")
        name = _host_name(values[0]) if len(values) == 1 else ""
        address = _unmapped(name)
        allowed = name.lower().rstrip(".") in self._hosts if address is None else not address.is_unspecified
        if not allowed:
            raise MisdirectedError(
                f"this daemon is not {name or 'reachable without a Host'}: use its IP address, "
                "or add the name to `[server] allowed_hosts`"
            )

    def _origin(self, request: Request) -> str | None:
        values = request.headers.get_list("Origin")
        return None if not values else values[0] if len(values) == 1 else "null"

    def _trusts(self, origin: str, request: Request) -> bool:
        normal = _normal_origin(origin)
        if normal == "null":
            return False
        own = _normal_origin(f"{request.scheme}://{request.headers.get('Host', '')}")
        return normal in self._origins or normal == own or is_loopback(urlsplit(normal).hostname or "")

    def _check_token(self, request: Request, *, needs_none: bool = False) -> bool:
        """Whether the right token was sent; a wrong one raises, from anywhere.

        The failures of others on the same address do not lock out a caller who `needs_none`.
        """
        scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or self._token is None:
            return False
        is_right = hmac.compare_digest(sent.strip().encode("utf-8", "surrogateescape"), self._token.encode())
        if is_right and needs_none:
            return True
        key = _address_key(request.peer)
        failures = self._recent_failures(key)
        if len(failures) >= MAX_FAILURES:
            wait = math.ceil(failures[0] + FAILURE_WINDOW_SECS - time.monotonic())
            raise TooManyFailuresError("too many wrong tokens from this address; wait a minute", max(1, wait))
        if not is_right:
            self._failures[key] = [*failures, time.monotonic()]
            if len(self._failures) > _MAX_ADDRESSES:
                del self._failures[next(iter(self._failures))]
            raise UnauthorizedError("wrong token: compare it with the daemon's token file (<state>/token)")
        return True

    def _recent_failures(self, key: str) -> list[float]:
        since = time.monotonic() - FAILURE_WINDOW_SECS
        return [failure for failure in self._failures.get(key, []) if failure > since]


def _address_key(peer: str) -> str:
    """Whose failures count together: an address, or a /64 of IPv6, all of which one host may call from."""
    address = _unmapped(peer)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)


def _is_local(request: Request) -> bool:
    # Some programs write _ for -, and some proxies let that pass for the same.
    names = [name.replace("_", "-").title() for name in request.headers]
    forwarded = any(name in FORWARDING or name.startswith(FORWARDING_PREFIX) for name in names)
    return not forwarded and is_loopback(request.peer)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    address = _unmapped(host)
    return address is not None and address.is_loopback


def _unmapped(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address, `::ffff:1.2.3.4` as IPv4; None for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _host_name(host: str) -> str:
    """The name in a Host header, port and brackets taken off; empty where it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return ""
    return parts.hostname or "" if parts.netloc == host and "@" not in host else ""


def _normal_origin(origin: str) -> str:
    """Scheme, host and port spelt one way; `null` for what is no web origin."""
    if origin == "*":
        return origin
    try:
        parts = urlsplit(origin)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "null"
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or "%" in parts.netloc
        or parts.path not in ("", "/")
        or "@" in parts.netloc
    ):
        return "null"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}"
