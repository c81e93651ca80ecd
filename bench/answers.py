"""What came back, checked word by word: a benchmark that loses or reorders a token has failed."""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate

import msgspec

from bench.upstream import Plan, token

Piece = tuple[float, bytes]
"""When it came (monotonic seconds), and what."""

_TOKEN = re.compile(rb'"content":"w(\d+)-(\d+) "')


class WrongAnswerError(Exception):
    pass


def unchunked(data: bytes) -> bytes:
    """The body of an answer with chunked encoding, its head before it. Raises WrongAnswerError."""
    head, _, rest = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise WrongAnswerError(data[:300].decode("latin-1"))
    body = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body.append(rest[:length])
        rest = rest[length + 2 :]
    return b"".join(body)


def check(body: bytes, plan: Plan, *, bare: bool) -> None:
    """Raises WrongAnswerError. `bare` answers are the upstream's own events, which the floor passes on."""
    numbers = [int(number) for number, _ in _TOKEN.findall(body)]
    if numbers != list(range(plan.tokens)):
        raise WrongAnswerError(f"{len(numbers)} tokens of {plan.tokens} came, or not in order: {body[-300:]!r}")
    if bare:
        if not body.endswith(b"data: [DONE]\n\n"):
            raise WrongAnswerError(f"the end is missing: {body[-300:]!r}")
        return
    events = [_event(frame) for frame in body.split(b"\n\n") if b"event: " in frame]
    names = [name for _, name, _ in events]
    if names != [b"start", *[b"token"] * plan.tokens, b"done"]:
        raise WrongAnswerError(f"the events are not start, tokens, done: {body[-300:]!r}")
    first = int(events[0][0].rpartition(b"-")[2])
    if [int(id.rpartition(b"-")[2]) for id, _, _ in events] != list(range(first, first + len(events))):
        raise WrongAnswerError("the ids have a hole")
    text = "".join(data["content"] for _, name, data in events if name == b"token")
    if events[-1][2]["content"] != text or (not plan.rate and text != "".join(map(token, range(plan.tokens)))):
        raise WrongAnswerError("`done` does not say what the tokens said")


def _event(frame: bytes) -> tuple[bytes, bytes, dict[str, str]]:
    fields = dict(line.partition(b": ")[::2] for line in frame.split(b"\n"))
    return fields[b"id"], fields[b"event"], msgspec.json.decode(fields[b"data"])


def delays(pieces: list[Piece]) -> list[float]:
    """Seconds from the upstream's write of each token to its arrival here."""
    ends = list(accumulate(len(data) for _, data in pieces))
    found = _TOKEN.finditer(b"".join(data for _, data in pieces))
    return [pieces[bisect_right(ends, match.end() - 1)][0] - int(match[2]) / 1e9 for match in found]
