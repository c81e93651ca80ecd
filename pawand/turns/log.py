"""The event log of a session: each event encoded once into a ring of frames that any number of cursors read."""

from __future__ import annotations

import asyncio
import secrets
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence

import msgspec

from pawand.wire import Event

_encode = msgspec.json.Encoder().encode


class EventLog:
    """Frames numbered from 1 under one `epoch`; the oldest leave when the ring is full.

    They lie in one buffer: a list of them would be walked through by every collection of garbage. Not thread-safe:
    everything happens on the event loop.
    """

    def __init__(self, ring_bytes: int) -> None:
        self.epoch = secrets.token_hex(6)
        self._id = b"id: %b-" % self.epoch.encode()
        self._ring_bytes = ring_bytes
        self._frames = bytearray()
        self._ends = array("q")
        """Where each frame ends, counted from the log's beginning."""
        self._gone = 0
        """How many bytes have left."""
        self._first = 1
        self._cursors: set[Cursor] = set()
        self._waiting: set[Cursor] = set()
        self._taken = 0, 0, b""
        self.closed = False

    @property
    def last(self) -> int:
        """The number of the newest frame; 0 before the first."""
        return self._first + len(self._ends) - 1

    @property
    def followers(self) -> int:
        return len(self._cursors)

    @property
    def followed(self) -> bool:
        return bool(self._cursors)

    def append(self, event: Event) -> int:
        """Add an event and return its number."""
        self.extend((event,), lambda frames: None)
        return self.last

    def extend(self, events: Sequence[Event], keep: Callable[[bytes], None]) -> None:
        """Add events. `keep` gets their frames before any reader, and can refuse them all by raising."""
        frames = [self.frame(event, number) for number, event in enumerate(events, self.last + 1)]
        joined = b"".join(frames)
        keep(joined)
        end = self._gone + len(self._frames)
        for frame in frames:
            end += len(frame)
            self._ends.append(end)
        self._frames += joined
        if len(self._frames) > self._ring_bytes and len(self._ends) > 1:
            self._evict()
        self.wake()

    def frame(self, event: Event, number: int) -> bytes:
        """An event as it goes over the wire. One that was never appended may carry the number of one that was."""
        return b"%b%d\nevent: %b\ndata: %b\n\n" % (self._id, number, event.event.encode(), _encode(event))

    def id_of(self, number: int) -> str:
        return f"{self.epoch}-{number}"

    def close(self) -> None:
        """No event will follow: readers take what is left and end."""
        self.closed = True
        self.wake()

    def wake(self) -> None:
        """Let every reader look again."""
        waiting, self._waiting = self._waiting, set()
        for cursor in waiting:
            cursor.wake()

    def position(self, last_event_id: str) -> int | None:
        """The number of the first event after `last_event_id`; None where the answer is a resync."""
        epoch, _, number = last_event_id.rpartition("-")
        if epoch != self.epoch or not (number.isascii() and number.isdigit() and len(number) < 20):
            return None
        after = int(number) + 1
        return after if self._first <= after <= self.last + 1 else None

    def holds(self, number: int) -> bool:
        return self._first <= number <= self.last + 1

    def follow(self, position: int, on_lost: Callable[[], None]) -> Cursor:
        """A cursor whose first frame is number `position`; `on_lost` is called if the ring leaves it behind."""
        cursor = Cursor(self, position, on_lost)
        self._cursors.add(cursor)
        if not self.holds(position):
            cursor.lose()
        return cursor

    # --- for Cursor -------------------------------------------------------------------------------

    def take(self, position: int, end: int | None) -> tuple[bytes, int]:
        """The frames from `position` on, joined, and the number after them."""
        after = (self.last if end is None else min(self.last, end)) + 1
        if self._taken[:2] != (position, after):  # most readers are where the last one was
            self._taken = position, after, bytes(memoryview(self._frames)[self._start(position) : self._start(after)])
        return self._taken[2], after

    def wake_later(self, cursor: Cursor) -> None:
        """Call `cursor.wake` when something was appended or the log closed."""
        self._waiting.add(cursor)

    def drop(self, cursor: Cursor) -> None:
        self._cursors.discard(cursor)
        self._waiting.discard(cursor)
        if not self._cursors:
            self._taken = 0, 0, b""

    def _start(self, number: int) -> int:
        """Where in the buffer a frame begins, or the next one will."""
        at = number - self._first
        return self._ends[at - 1] - self._gone if at else 0

    def _evict(self) -> None:
        """Let the oldest go until the others fit; the newest stays, whatever its size."""
        oldest_end = self._ends[-1] - self._ring_bytes
        count = min(bisect_left(self._ends, oldest_end) + 1, len(self._ends) - 1)
        gone = self._ends[count - 1]
        del self._frames[: gone - self._gone], self._ends[:count]
        self._gone = gone
        self._first += count
        for cursor in [c for c in self._cursors if c.position < self._first]:
            cursor.lose()


class Cursor:
    """One reader's place in a log. It reads all events in order or is told that it is lost; nothing is skipped."""

    def __init__(self, log: EventLog, position: int, on_lost: Callable[[], None]) -> None:
        self._log = log
        self._on_lost = on_lost
        self._waiter: asyncio.Future[None] | None = None
        self.position = position
        self.lost = False

    def ready(self, end: int | None = None) -> bool:
        """Whether there is something to take."""
        return not self.lost and self.position <= (self._log.last if end is None else min(self._log.last, end))

    def take(self, end: int | None = None) -> bytes:
        """All frames that are ready, joined; those after number `end` are left. Empty when there are none."""
        if not self.ready(end):
            return b""
        frames, self.position = self._log.take(self.position, end)
        return frames

    @property
    def ended(self) -> bool:
        """Nothing more will come."""
        return self.lost or (self._log.closed and self.position > self._log.last)

    async def wait(self) -> None:
        """Until there is something to take, or nothing more will come. One reader may wait at a time."""
        if not self.ended and self.position > self._log.last:
            self._waiter = asyncio.get_running_loop().create_future()
            self._log.wake_later(self)
            await self._waiter

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def lose(self) -> None:
        """The ring has left this reader behind."""
        self.close()
        self._on_lost()

    def close(self) -> None:
        """Stop reading; whoever waits is woken."""
        self.lost = True
        self._log.drop(self)
        self.wake()
