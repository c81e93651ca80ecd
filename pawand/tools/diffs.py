"""Edits of a text, and the unified diff that shows them. The edits are known, so next to nothing is compared."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

CONTEXT_LINES = 3
MAX_DIFF_LINES = 5000
MAX_COMPARED_LINES = 1000  # in one place: difflib's time grows with their square
MAX_COMPARISONS = 10_000  # in all


class Edit(Struct, frozen=True):
    """`new` in place of the characters from `start` to before `end`."""

    start: int
    end: int
    new: str


class _Change(Struct, frozen=True):
    """Whole lines in place of others; `first` is the index of the first of the old ones."""

    first: int
    old: list[str]
    new: list[str]


def apply(text: str, edits: Sequence[Edit]) -> str:
    """The edited text. The edits come in order and do not overlap."""
    parts: list[str] = []
    done = 0
    for edit in edits:
        parts += [text[done : edit.start], edit.new]
        done = edit.end
    return "".join([*parts, text[done:]])


def unified_diff(before: str, edits: Sequence[Edit], path: str) -> str:
    """A diff that `git apply` takes, line endings and last newline included; a very long one is cut, with a note."""
    lines = _whole_lines(before)
    shown: list[str] = []
    for hunk in _hunks(lines, _changes(before, edits)):
        shown += hunk
        if len(shown) > MAX_DIFF_LINES:
            break
    if not shown:
        return ""
    kept = [*_headers(path), *shown[:MAX_DIFF_LINES]]
    text = "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in kept)
    return f"{text}[… the rest of the diff is left out …]" if len(shown) > MAX_DIFF_LINES else text.removesuffix("\n")


def _headers(path: str) -> list[str]:
    return [f"--- a/{path}\n", f"+++ b/{path}\n"]


def _whole_lines(text: str) -> list[str]:
    *lines, last = text.split("\n")
    return [f"{line}\n" for line in lines] + ([last] if last else [])


def _changes(before: str, edits: Sequence[Edit]) -> Iterator[_Change]:
    left = MAX_COMPARISONS
    first = counted = 0
    for start, end, new in _blocks(before, edits):
        first += before.count("\n", counted, start)
        counted = start
        change = _trimmed(first, _whole_lines(before[start:end]), _whole_lines(new))
        cost = _comparisons(change)
        if cost <= left and len(change.old) + len(change.new) <= MAX_COMPARED_LINES:
            left -= cost
            yield from _split(change)
        elif change.old or change.new:
            yield change


def _blocks(before: str, edits: Sequence[Edit]) -> Iterator[tuple[int, int, str]]:
    """(start, end, new text) of the whole lines that edits touch; edits on the same line are in one."""
    pieces: list[str] = []
    start = done = 0
    end = -1  # behind the newline that ends the block
    for edit in edits:
        if edit.start >= end:
            if pieces:
                yield start, end, "".join([*pieces, before[done:end]])
            start = done = before.rfind("\n", 0, edit.start) + 1
            pieces = []
        pieces += [before[done : edit.start], edit.new]
        done = edit.end
        if edit.end >= end:
            end = before.find("\n", edit.end) + 1 or len(before) + 1
    if pieces:
        yield start, end, "".join([*pieces, before[done:end]])


def _trimmed(first: int, old: list[str], new: list[str]) -> _Change:
    """Without what is the same at the beginning and at the end."""
    shorter = min(len(old), len(new))
    head = next((number for number in range(shorter) if old[number] != new[number]), shorter)
    rest = shorter - head
    tail = next((number for number in range(rest) if old[-1 - number] != new[-1 - number]), rest)
    return _Change(first + head, old[head : len(old) - tail], new[head : len(new) - tail])


def _comparisons(change: _Change) -> int:
    """About how many it takes to find what is the same in both."""
    counts = Counter(change.new)
    return len(change.old) + len(change.new) + sum(counts[line] for line in change.old)


def _split(change: _Change) -> Iterator[_Change]:
    """The parts of a change that differ."""
    matcher = difflib.SequenceMatcher(None, change.old, change.new, autojunk=False)
    for kind, start, end, new_start, new_end in matcher.get_opcodes():
        if kind != "equal":
            yield _Change(change.first + start, change.old[start:end], change.new[new_start:new_end])


def _hunks(lines: list[str], changes: Iterable[_Change]) -> Iterator[list[str]]:
    shift = 0  # by how much the new numbers are ahead of the old
    for near in _neighbours(changes):
        last = near[-1]
        start = max(0, near[0].first - CONTEXT_LINES)
        end = min(len(lines), last.first + len(last.old) + CONTEXT_LINES)
        body: list[str] = []
        at = start
        for change in near:
            body += [f" {line}" for line in lines[at : change.first]]
            body += [f"-{line}" for line in change.old]
            body += [f"+{line}" for line in change.new]
            at = change.first + len(change.old)
        body += [f" {line}" for line in lines[at:end]]
        grown = sum(len(change.new) - len(change.old) for change in near)
        old, new = _range(start, end - start), _range(start + shift, end - start + grown)
        yield [f"@@ -{old} +{new} @@\n", *body]
        shift += grown


def _neighbours(changes: Iterable[_Change]) -> Iterator[list[_Change]]:
    """Changes so near to each other that their context meets; a hunk that is already too long is closed early."""
    near: list[_Change] = []
    size = 0
    for change in changes:
        if near and (change.first - near[-1].first - len(near[-1].old) > 2 * CONTEXT_LINES or size > MAX_DIFF_LINES):
            yield near
            near, size = [], 0
        near.append(change)
        size += len(change.old) + len(change.new)
    if near:
        yield near


def _range(start: int, length: int) -> str:
    """As diff writes it: counted from 1, but for an empty range the line before it."""
    if length == 1:
        return str(start + 1)
    return f"{start + 1 if length else start},{length}"
