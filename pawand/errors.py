"""The tree of errors. Each has a `code`, the word that clients see, and a message that says what to do.

Nothing here knows HTTP: `web/base.py` maps codes to statuses, `cli/main.py` to exit codes.
"""

from __future__ import annotations


class PawandError(Exception):
    """Root of every error that is meant to be read by a person."""

    code = "internal"

    @property
    def message(self) -> str:
        return str(self)

    def forget_past(self) -> None:
        """Let go of all that it was raised through: for one that is kept, and when it has been dealt with."""
        self.__traceback__ = self.__cause__ = self.__context__ = None


class ConfigError(PawandError):
    """A setting, flag or start condition is wrong; the process exits 2."""

    code = "config"


class StartError(PawandError):
    """The daemon cannot start here and now (port taken, store owned by another); it exits 1."""

    code = "start"


class BadRequestError(PawandError):
    code = "bad_request"


class NotFoundError(PawandError):
    code = "not_found"


class ConflictError(PawandError):
    code = "conflict"


class RetryLaterError(PawandError):
    """Trouble that passes by itself; `retry_after` is in whole seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BusyError(RetryLaterError):
    """A queue is full; nothing was saved."""

    code = "busy"


class UnavailableError(RetryLaterError):
    code = "unavailable"


class TurnError(PawandError):
    """A turn that ended without an answer; `code` is that of its `error` event (docs/api.md)."""


class ProviderError(TurnError):
    """The upstream failed. `retriable` says whether the same request may succeed later.

    `retry_after` is what the upstream asked for in seconds, `status` its HTTP status; both may be None.
    `context_length` says that the conversation is too long for the model: a shorter one may succeed.
    """

    code = "provider"

    def __init__(
        self,
        message: str,
        *,
        retriable: bool = False,
        status: int | None = None,
        retry_after: float | None = None,
        context_length: bool = False,
    ) -> None:
        super().__init__(message)
        self.retriable = retriable
        self.context_length = context_length
        self.status = status
        self.retry_after = retry_after


class EmptyAnswerError(TurnError):
    code = "empty_answer"


class TurnTimeoutError(TurnError):
    code = "timeout"


class CancelledTurnError(TurnError):
    code = "cancelled"


class ShutdownError(TurnError):
    code = "shutdown"


class StorageError(TurnError):
    """The session store could not be read or written (disk full, read-only, no permission)."""

    code = "storage"


class PeerError(PawandError):
    """Another agent is not known, cannot be reached, or did not come to an answer."""

    code = "peer"


class ToolError(PawandError):
    """A tool's failure: data for the model, never the end of a turn."""

    code = "tool"
