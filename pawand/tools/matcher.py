"""Search texts with a regular expression in a process of its own, which can be killed: `python -I -S -c SOURCE`.

Standard library only. Frames on both sides, each after its length: in come the expression and then texts; out goes
one answer as JSON to each, what is wrong with the expression (or null) and the lines of a text that it finds.
"""

import itertools
import json
import re
import struct
import sys

LENGTH = struct.Struct(">I")
MAX_LINES = 30
MAX_COLUMNS = 400
OMITTED = " [... omitted end of long line]"  # as ripgrep says it


def receive() -> bytes | None:
    head = sys.stdin.buffer.read(LENGTH.size)
    return sys.stdin.buffer.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else None


def answer(value: object) -> None:
    data = json.dumps(value).encode()
    sys.stdout.buffer.write(LENGTH.pack(len(data)) + data)
    sys.stdout.buffer.flush()


def hits(expression: re.Pattern[str], text: str) -> list[tuple[int, str]]:
    """(number, text) of the first lines that match; they are counted as grep counts them."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    numbered = ((number, line.removesuffix("\r")) for number, line in enumerate(lines, 1))
    found = ((number, line) for number, line in numbered if expression.search(line))
    return [
        (number, line[:MAX_COLUMNS] + (OMITTED if len(line) > MAX_COLUMNS else ""))
        for number, line in itertools.islice(found, MAX_LINES)
    ]


def main() -> None:
    pattern = (receive() or b"").decode("utf-8", "surrogatepass")
    try:
        expression = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        answer(str(error))
        return
    answer(None)
    while (data := receive()) is not None:
        answer(hits(expression, data.decode("utf-8-sig", "replace")))


if __name__ == "__main__":
    main()
