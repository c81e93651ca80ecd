"""What Ctrl-C means while a turn is shown: once cancels the turn, twice leaves it running."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from pawand.client import Client
from pawand.errors import PawandError

ANSWER_SECS = 5.0
REMIND_SECS = 0.2


class Interrupts:
    """In its block the first Ctrl-C raises nothing, so that the stream can be read to the turn's end; later ones do."""

    def __init__(self, client: Client, say: Callable[[str], None]) -> None:
        self.count = 0
        self._client = client
        self._say = say
        self._session = ""
        self._begun = threading.Event()
        self._asking = False
        self._reminding = False
        self._cancelling: threading.Thread | None = None

    def __enter__(self) -> Interrupts:
        self._former = signal.getsignal(signal.SIGINT)
        if self._former != signal.SIG_IGN:  # a job in the background is not for Ctrl-C
            signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._former)
        if self._cancelling is not None and self._begun.is_set() and kind is None:
            self._cancelling.join(ANSWER_SECS)

    def begun(self, session: str) -> None:
        """Our turn runs now. Before, another one might run in its session, which is not ours to cancel."""
        self._session = session
        self._begun.set()

    @contextmanager
    def question(self) -> Iterator[None]:
        """While the user is asked something, the first Ctrl-C raises too: else the question would stay."""
        self._asking = True
        try:
            if self.count:
                raise KeyboardInterrupt
            yield
        finally:
            self._asking = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._reminding:
            self._reminding = False
        else:
            self.count += 1
        if self.count == 1 and self._cancelling is None:
            # Not here: the signal may have come in the middle of a write, which cannot be begun again in itself.
            self._cancelling = threading.Thread(target=self._cancel, daemon=True)
            # A signal that this thread took would not wake the main one, which waits for the daemon's next word.
            former = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            self._cancelling.start()
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        if self.count > 1 or self._asking:
            raise KeyboardInterrupt

    def _cancel(self) -> None:
        if not self._begun.is_set():
            self._say("the turn waits for others; it is cancelled when it begins. Ctrl-C again leaves it running")
            self._begun.wait()
        self._say("cancelling the turn; Ctrl-C again leaves it running")
        try:
            self._client.post(f"/sessions/{self._session}/cancel", {})
        except PawandError as error:
            self._say(f"the turn could not be cancelled: {error.message}")
        while self._asking:  # input() loses what is raised in its first moments
            self._reminding = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(REMIND_SECS)
