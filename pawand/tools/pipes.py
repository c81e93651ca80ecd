"""How the output of a program is read: to its end, as text, without secrets, and never more kept than fits."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Callable

from pawand.redact import StreamRedactor
from pawand.tools.output import HeadTail

READ_BYTES = 64 * 1024


async def drain(
    stream: asyncio.StreamReader, redactor: StreamRedactor, kept: HeadTail, watch: Callable[[str], None] | None = None
) -> None:
    """Feed all of it to `kept`, and to `watch` as it comes.

    Secrets go before anything is cut, since half a secret cannot be told from other text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(text: str) -> None:
        kept.feed(text.encode())
        if watch is not None:
            watch(text)

    while data := await stream.read(READ_BYTES):
        take(redactor.feed(decoder.decode(data)))
    take(redactor.feed(decoder.decode(b"", final=True)) + redactor.flush())
