"""Keeps the known secrets out of whatever leaves the process: events, session files, logs, error texts."""

from __future__ import annotations

import logging
import re
from typing import Any

MASK = "[redacted]"
MIN_CHARS = 8  # shorter ones are placeholders for servers without keys (`none`, `test`) and would eat plain text
_BEARER = re.compile(r"(?i)\b(bearer|apikey)\s+[A-Za-z0-9._~+/=-]{8,}")


class Redactor:
    """Replaces exactly the secrets it was given; one of under MIN_CHARS is none."""

    def __init__(self, secrets: list[str]) -> None:
        self._secrets: list[str] = []
        self.learn(secrets)

    def learn(self, secrets: list[str]) -> None:
        """Replace these from now on too; what was once a secret stays one."""
        # The longest first, so that of two secrets that begin alike the whole one goes.
        self._secrets = sorted((s for s in {*self._secrets, *secrets} if len(s) >= MIN_CHARS), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._secrets)))
        self._beginnings = frozenset(secret[0] for secret in self._secrets)

    def text(self, text: str) -> str:
        return self._pattern.sub(MASK, text) if self._secrets else text

    def value(self, value: Any) -> Any:
        """A copy of a JSON value with every string redacted, keys included."""
        root = [value]
        unread: list[Any] = [root]  # not by recursion: a model may nest deeper than Python does
        while unread:
            box = unread.pop()
            for place, item in list(box.items() if isinstance(box, dict) else enumerate(box)):
                if isinstance(item, str):
                    box[place] = self.text(item)
                elif isinstance(item, dict | list):
                    copy = {self.text(k): v for k, v in item.items()} if isinstance(item, dict) else [*item]
                    box[place] = copy
                    unread.append(copy)
        return root[0]

    def log(self, text: str) -> str:
        """For logs and upstream error texts: `Bearer …` of any secret goes too."""
        return _BEARER.sub(rf"\1 {MASK}", self.text(text))

    def passes(self, text: str) -> bool:
        """Whether no secret is in `text` and none can begin there: quick, and False for many that hold none."""
        return self._beginnings.isdisjoint(text)

    def stream(self) -> StreamRedactor:
        return StreamRedactor(self)

    def settle(self, text: str) -> tuple[str, str]:
        """`text` redacted as far as nothing that follows can change it, and the rest as it is."""
        if not self._secrets:
            return text, ""
        done: list[str] = []
        at = 0
        found = any(secret in text for secret in self._secrets)  # much quicker than the pattern, and mostly none is
        while True:
            open_at = self._open_at(text, at)
            match = self._pattern.search(text, at) if found else None
            if match is None or open_at <= match.start():
                return "".join([*done, text[at:open_at]]), text[open_at:]
            done += [text[at : match.start()], MASK]
            at = match.end()

    def _open_at(self, text: str, begin: int) -> int:
        """Where the end of `text` is the beginning of a secret and no more; the length of `text` where it is none."""
        first = len(text)
        for secret in self._secrets:
            at = text.find(secret[0], max(begin, len(text) - len(secret) + 1))
            while -1 < at < first:
                if secret.startswith(text[at:]):
                    first = at
                at = text.find(secret[0], at + 1)
        return first


class StreamRedactor:
    """Redacts text that arrives in pieces: what may be the start of a secret is held back until it is not."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = ""

    def feed(self, text: str) -> str:
        if not self._held and self._redactor.passes(text):  # most tokens
            return text
        done, self._held = self._redactor.settle(self._held + text)
        return done

    def flush(self) -> str:
        held, self._held = self._held, ""
        return self._redactor.text(held)


class LogFilter(logging.Filter):
    """Redacts the finished message of every record, its facts and its traceback too."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = self._redactor.log(record.getMessage())
        record.args = None
        if facts := getattr(record, "facts", None):
            record.__dict__["facts"] = {k: self._redactor.log(v) if isinstance(v, str) else v for k, v in facts.items()}
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = self._redactor.log(record.exc_text)
        return True
