"""How log lines look (text for people, one JSON object a line for programs), and the file that they may go to."""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from pawand import paths
from pawand.errors import ConfigError

MAX_FILE_BYTES = 10 * 1024 * 1024
KEPT_FILES = 5


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the record's `facts`, the traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_text or record.exc_info:
            line["traceback"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """A line for each entry: what others wrote begins no line of its own, and does not steer a terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = _visible(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(_visible, super().format(record).split("\n")))  # more lines than one has a traceback


def _visible(text: str) -> str:
    """With escapes for what is not printable, line ends too."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class LogFile(RotatingFileHandler):
    """A file of its owner's, with KEPT_FILES older ones beside it.

    Where the standard streams lead to the file already, they go along to each new one: a traceback of the
    interpreter, or a line of a child, belongs with the rest.
    """

    def __init__(self, path: Path) -> None:
        self._streams: list[int] = []
        super().__init__(path, maxBytes=MAX_FILE_BYTES, backupCount=KEPT_FILES, encoding="utf-8", errors="replace")
        own = os.stat(path)
        self._streams = [number for number in (1, 2) if _leads_to(number, own)]

    def _open(self) -> TextIOWrapper:
        stream = open(self.baseFilename, "a", encoding=self.encoding, errors=self.errors, opener=_private)  # noqa: SIM115
        for number in self._streams:
            os.dup2(stream.fileno(), number)
        return stream


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _leads_to(descriptor: int, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file)
    except OSError:  # closed
        return False


def open_file(path: Path) -> LogFile:
    """Made with its folder where it is missing. Raises ConfigError."""
    try:
        paths.private_dir(path.parent)
        return LogFile(path)
    except OSError as error:
        raise ConfigError(f"the log file {path} cannot be written: {error.strerror}") from error


def set_up(level: str, style: str, file: Path | None = None) -> None:
    """Log to `file`, else to standard error. Raises ConfigError for a file that cannot be written."""
    handler = open_file(file) if file is not None else logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("tornado.general").setLevel(logging.WARNING)  # a line for each request that is no HTTP
