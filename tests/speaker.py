"""mDNS on the hosts of a network: pawand's own, and packets of anybody's."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress

from zeroconf import DNSAddress, DNSOutgoing, DNSPointer, DNSService, DNSText  # type: ignore[attr-defined]

from pawand.peers import mdns
from pawand.peers.announcement import SERVICE, Card, Neighbours
from tests.netns import Host

GROUP, PORT = "224.0.0.251", 5353
RESPONSE = 0x8400
A, PTR, TXT, SRV, IN, UNIQUE = 1, 12, 16, 33, 1, 0x8001


class Speaker:
    """`mdns.run` on a host, in a thread that belongs to it."""

    def __init__(self, host: Host, agent_id: str, bound: str = "0.0.0.0", groups: tuple[str, ...] = ()) -> None:
        self.host = host
        self.neighbours = Neighbours()
        self._card = Card(agent_id=agent_id, groups=list(groups), port=4000, bound=[bound])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Speaker:
        with self.host.inside():
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner, suppress(asyncio.CancelledError):
            runner.run(self._speak())

    async def _speak(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        await mdns.run(self._card, self.neighbours)

    @property
    def names(self) -> list[str]:
        return [neighbour.instance for neighbour in self.neighbours]


def open_port(host: Host, ip: str = "", through: str = "") -> socket.socket:
    """The port of mDNS, at one address of the host or all; what goes to the group goes out at `through`."""
    with host.inside():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
    sock.bind((ip, PORT))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
    if through or ip:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(through or ip))
    return sock


def join(sock: socket.socket, ip: str) -> None:
    group = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(ip))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)


def shout(host: Host, packet: bytes, to: str = GROUP, ip: str = "", through: str = "") -> None:
    """Say it from an address of the host, its first one if none is given."""
    with open_port(host, ip or host.ip, through) as sock:
        sock.sendto(packet, (to, PORT))


def pointer(name: str, ttl: int) -> bytes:
    """That there is such an agent, or with 0 that it is gone."""
    out = DNSOutgoing(RESPONSE)
    out.add_answer_at_time(DNSPointer(SERVICE, PTR, IN, ttl, f"{name}.{SERVICE}"), 0)
    [packet] = out.packets()
    return packet


def announced(name: str, ip: str, ttl: int = 120) -> bytes:
    """All records of an agent."""
    out, text = DNSOutgoing(RESPONSE), f"agent_id={name}".encode()
    full, server = f"{name}.{SERVICE}", f"{name}.local."
    out.add_answer_at_time(DNSPointer(SERVICE, PTR, IN, ttl, full), 0)
    out.add_answer_at_time(DNSService(full, SRV, UNIQUE, ttl, 0, 0, 4321, server), 0)
    out.add_answer_at_time(DNSText(full, TXT, UNIQUE, ttl, bytes([len(text)]) + text), 0)
    out.add_answer_at_time(DNSAddress(server, A, UNIQUE, ttl, socket.inet_aton(ip)), 0)
    [packet] = out.packets()
    return packet
