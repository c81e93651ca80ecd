"""A daemon with few descriptors under clients that never finish: it answers everybody else at once and says little."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from tests import harness

DESCRIPTORS = 256
SLOW_CLIENTS = DESCRIPTORS
DRIBBLE_SECS = 0.1


@contextmanager
def slow_loris(address: tuple[str, int]) -> Iterator[None]:
    """So many clients, each in the middle of a request, a byte at a time; who is thrown out comes back."""
    ended = threading.Event()
    clients: list[socket.socket] = []

    def come() -> socket.socket:
        client = socket.create_connection(address, timeout=10)
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x")
        client.setblocking(False)
        return client

    def dribble() -> None:
        while not ended.wait(DRIBBLE_SECS):
            for number, client in enumerate(clients):
                try:
                    client.send(b"x")
                except OSError:
                    client.close()
                    with suppress(OSError):
                        clients[number] = come()

    clients += [come() for _ in range(SLOW_CLIENTS)]
    thread = threading.Thread(target=dribble)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for client in clients:
            client.close()


# The limit is soft and hard, so that the daemon cannot raise it.
FEW_DESCRIPTORS = ("sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh")


def test_slow_clients_take_nothing_from_the_others(tmp_path: Path) -> None:
    with harness.serve(tmp_path / "w", tmp_path / "s", "--provider", "nvidia", prefix=FEW_DESCRIPTORS) as pawand:
        host, port = urlsplit(pawand.url).hostname, urlsplit(pawand.url).port
        assert host is not None
        assert port is not None
        kept = http.client.HTTPConnection(host, port, timeout=10)
        with slow_loris((host, port)):
            harness.until(lambda: "[limits] connections" in pawand.log_text(), "the limit is reached")
            for _ in range(10):
                fresh = http.client.HTTPConnection(host, port, timeout=10)
                assert health(fresh) < 1
                fresh.close()
                assert health(kept) < 1
                time.sleep(DRIBBLE_SECS)  # the others go on meanwhile
        kept.close()
        assert pawand.call("GET", "/health")[0] == 200
    log = pawand.log_text()
    assert len(log.splitlines()) < 100, log
    assert "Traceback" not in log
    assert "EMFILE" not in log


def health(connection: http.client.HTTPConnection) -> float:
    """The seconds until GET /health was answered."""
    begun = time.monotonic()
    connection.request("GET", "/health")
    answer = connection.getresponse()
    assert (answer.status, answer.read()[:1]) == (200, b"{")
    return time.monotonic() - begun
