"""What every handler shares: the access check, bodies as typed structs, JSON answers, JSON errors.

The order of the checks is that of docs/api.md ("Statuses"). A refused request's body is read and thrown away before
the answer goes out: a client that is still sending would else see a reset connection instead of the reason.
"""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Struct
from tornado.web import HTTPError, RequestHandler, stream_request_body

from pawand import __version__, wire
from pawand.errors import BadRequestError, NotFoundError, PawandError, RetryLaterError, StorageError
from pawand.web.access import Grant, Request, UnauthorizedError
from pawand.web.services import Services

log = logging.getLogger(__name__)

MAX_DRAINED_BYTES = 16 * 1024 * 1024
CORS_METHODS = "GET, POST, DELETE"
_T = TypeVar("_T")

STATUSES = {
    "bad_request": 400,
    "unauthorized": 401,
    "origin_not_allowed": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "cancelled": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "host_not_allowed": 421,
    "busy": 429,
    "too_many_failures": 429,
    "unavailable": 503,
    "shutdown": 503,
}
"""Error code → status; every other code is a 500."""


class MethodError(PawandError):
    code = "method_not_allowed"


class TooLargeError(PawandError):
    code = "too_large"


class MediaTypeError(PawandError):
    code = "unsupported_media_type"


class _EveryMethod(tuple[str, ...]):
    """Tornado refuses unknown methods before anything else is looked at; here the caller is looked at first."""

    def __contains__(self, method: object) -> bool:
        return True


@stream_request_body
class BaseHandler(RequestHandler):
    SUPPORTED_METHODS = _EveryMethod()
    verbs: tuple[str, ...] = ()
    """What the route takes, HEAD and OPTIONS aside."""
    public = False
    """Everyone who can reach the port may GET this."""
    method_hint = ""
    """What to say on top to somebody who used the wrong method."""

    def initialize(self, services: Services) -> None:
        self.services = services
        self._body_limit = services.config.limits.body_bytes
        self._body = bytearray()
        self._received = 0
        self._refusal: PawandError | None = None
        self.grant = Grant(full=False)

    def set_default_headers(self) -> None:
        self.set_header("Server", f"pawand/{__version__}")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    def compute_etag(self) -> None:
        return None

    # --- before the verb --------------------------------------------------------------------------

    def prepare(self) -> None:
        try:
            self._admit()
            self._check_method()
            self._check_length()
        except PawandError as error:
            waits = self.request.headers.get("Expect", "").lower() == "100-continue"
            unknown = self.request.method not in RequestHandler.SUPPORTED_METHODS
            if waits or unknown or self._declared_length() > MAX_DRAINED_BYTES:
                self.set_header("Connection", "close")
                raise
            self._refuse(error)

    def data_received(self, chunk: bytes) -> None:
        self._received += len(chunk)
        if self._refusal is None:
            self._body += chunk
            if len(self._body) > self._body_limit:
                self._body.clear()
                self._refuse(self._too_large())
        elif self._received > MAX_DRAINED_BYTES and not self._finished:
            self.set_header("Connection", "close")
            self.send_error(exc_info=(type(self._refusal), self._refusal, None))

    def _admit(self) -> None:
        request = Request(
            headers=self.request.headers,
            scheme=self.request.protocol,
            peer=self.request.remote_ip or "",
            public=self.public and self.request.method in ("GET", "HEAD"),
            preflight=self.request.method == "OPTIONS"
            and {"Origin", "Access-Control-Request-Method"} <= self.request.headers.keys(),
        )
        self._set_cors(self.services.gate.allowed_origin(request))
        self.grant = self.services.gate.admit(request)
        self._set_cors(self.grant.allow_origin)

    def _set_cors(self, origin: str | None) -> None:
        if "Origin" in self.request.headers:
            self.set_header("Vary", "Origin")
        if origin is not None:
            self.set_header("Access-Control-Allow-Origin", origin)

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """A path that is no UTF-8 is looked at in its turn, like every other that names nothing."""
        return value.decode("utf-8", "replace") if name is None else super().decode_argument(value, name)

    def _check_method(self) -> None:
        method = "GET" if self.request.method == "HEAD" else self.request.method
        if not self.verbs:
            raise NotFoundError(f"no such route: {self.request.path}")
        if method == "OPTIONS" or method in self.verbs:
            return
        self.set_header("Allow", self._allow())
        raise MethodError(f"{self.request.path} takes {' and '.join(self.verbs)}, not {method}.{self.method_hint}")

    def _check_length(self) -> None:
        if self._declared_length() > self._body_limit:
            raise self._too_large()

    def _refuse(self, error: PawandError) -> None:
        """Answer with `error` once the body has passed."""

        def answer(*_: str) -> None:
            raise error

        self._refusal = error
        setattr(self, (self.request.method or "get").lower(), answer)

    def _declared_length(self) -> int:
        length = self.request.headers.get("Content-Length", "")
        return int(length) if length.isascii() and length.isdigit() and len(length) < 19 else 0

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"the body is larger than {self._body_limit} bytes ([limits] body_bytes)")

    def _allow(self) -> str:
        return ", ".join([*self.verbs, *(["HEAD"] if "GET" in self.verbs else []), "OPTIONS"])

    # --- verbs that are the same everywhere -------------------------------------------------------

    def head(self, *args: str) -> Any:
        return getattr(self, "get")(*args)  # noqa: B009 - RequestHandler.get is typed as a refusal

    def options(self, *_: str) -> None:
        self.set_status(204)
        self.set_header("Allow", self._allow())
        if self.grant.allow_origin is not None:
            self.set_header("Access-Control-Allow-Methods", CORS_METHODS)
            self.set_header("Access-Control-Allow-Headers", self._asked_headers())
            self.set_header("Access-Control-Max-Age", "600")
            self.set_header("Vary", "Origin, Access-Control-Request-Headers")
        self.finish()

    def _asked_headers(self) -> str:
        asked = self.request.headers.get("Access-Control-Request-Headers", "")
        return asked if len(asked) < 1000 else ""

    # --- bodies and answers -----------------------------------------------------------------------

    @property
    def idempotency_key(self) -> str | None:
        """Raises BadRequestError where there are two."""
        keys = self.request.headers.get_list("Idempotency-Key")
        if len(keys) > 1:
            raise BadRequestError("there is more than one `Idempotency-Key`: send one")
        return keys[0] if keys else None

    @property
    def is_a_strange_pages(self) -> bool:
        """Whether a browser says that a page of another site asks, which sends no Origin for a picture or a link."""
        site = self.request.headers.get("Sec-Fetch-Site", "").strip().lower()
        return "Origin" not in self.request.headers and site in ("cross-site", "same-site")

    @property
    def hops(self) -> int:
        """How many agents the message came through. Raises BadRequestError."""
        values = self.request.headers.get_list("Pawan-Hops") or ["0"]
        if len(values) > 1 or not re.fullmatch(r"[0-9]{1,4}", values[0]):
            raise BadRequestError("`Pawan-Hops` must be one whole number: how many agents the message came through")
        return int(values[0])

    def decode_body(self, kind: type[_T]) -> _T:
        """The JSON body as `kind`; an empty body is `{}`. Raises MediaTypeError or BadRequestError."""
        body = bytes(self._body)
        if not body.strip():
            body = b"{}"
        elif self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
            raise MediaTypeError("send the body as JSON, with the header `Content-Type: application/json`")
        try:
            # All of it is decoded before it is typed: what is wrong in an unknown field is wrong too.
            return msgspec.convert(_JSON.decode(body), kind)
        except msgspec.ValidationError as error:
            raise BadRequestError(f"the body does not fit: {error}{_allowed(kind, str(error))}") from error
        except msgspec.DecodeError as error:
            raise BadRequestError(f"the body is not valid JSON: {error}") from error
        except UnicodeDecodeError as error:
            raise BadRequestError(f"the body is not UTF-8 (byte {error.start})") from error
        except RecursionError as error:
            raise BadRequestError("the body is nested too deeply") from error

    def reply(self, answer: Struct | list[Any]) -> None:
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish(msgspec.json.encode(answer))

    # --- errors -----------------------------------------------------------------------------------

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        if isinstance(error, PawandError):
            status_code = STATUSES.get(error.code, 500)
            error.forget_past()
        super().send_error(status_code, **kwargs)

    def clear(self) -> None:
        """Called before an error is written: the headers that a browser needs to read it stay."""
        kept = {name: self._headers[name] for name in _KEPT_HEADERS if name in getattr(self, "_headers", {})}
        super().clear()
        for name, value in kept.items():
            self.set_header(name, value)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        if isinstance(error, RetryLaterError):
            self.set_header("Retry-After", str(error.retry_after))
        if isinstance(error, UnauthorizedError):
            self.set_header("WWW-Authenticate", "Bearer")
        self.reply(_explain(status_code, error))

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        self.services.metrics.note_failure(value)
        if isinstance(value, StorageError):
            log.warning("%s %s: %s", self.request.method, self.request.path, value)
        elif not isinstance(value, PawandError | HTTPError):
            log.error("%s %s failed", self.request.method, self.request.path, exc_info=value)


def _number(text: str) -> float:
    """`3.0` is a whole number in JSON Schema, which says what our requests must be."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


_JSON = msgspec.json.Decoder(float_hook=_number)
_KEPT_HEADERS = ("Access-Control-Allow-Origin", "Vary", "Allow", "Connection")


class UnknownRouteHandler(BaseHandler):
    """Every path that is in no route."""


def _allowed(kind: type, error: str) -> str:
    """The words that a field takes, where msgspec says only that another is none of them."""
    choices = get_args(get_type_hints(kind).get(error.partition("`$.")[2].rstrip("`")))
    return f"; it takes {' or '.join(map(repr, choices))}" if "enum" in error else ""


def _explain(status: int, error: BaseException | None) -> wire.Error:
    if isinstance(error, PawandError):
        return wire.Error(error.message, error.code)
    if isinstance(error, HTTPError) and status < 500:
        phrase = HTTPStatus(status).phrase.lower()
        return wire.Error(f"{phrase}: {error.log_message}" if error.log_message else phrase, "bad_request")
    return wire.Error("internal error; the daemon's log has the details", "internal")


def log_access(handler: RequestHandler) -> None:
    """The access log: what went wrong on our side is worth a look, the rest is for --log-level debug."""
    status = handler.get_status()
    level = logging.DEBUG if status < 500 else logging.INFO
    request = handler.request
    facts = {
        "method": request.method,
        "path": request.path,
        "status": status,
        "duration_ms": round(1000 * request.request_time(), 1),
    }
    log.log(level, "%(method)s %(path)s %(status)d %(duration_ms).1fms", facts, extra={"facts": facts})
