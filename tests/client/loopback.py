"""A real HTTP server on loopback that keeps packets as it should, or misbehaves as it is told."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trainsanity import wire
from trainsanity.wire import Packet

LONG = 30.0  # seconds that no proper test lasts


class Ledger:
    """What a right server remembers: packets of each run, without gaps and without doubles."""

    def __init__(self) -> None:
        self.packets: dict[str, list[Packet]] = {}
        self.alerts: list[dict[str, Any]] = []
        self.repeated = 0  # packets that were known already
        self._lock = threading.Lock()

    def take(self, run_id: str, payload: bytes, cursor: int) -> tuple[int, dict[str, Any]]:
        packet = wire.decode(payload)
        with self._lock:
            kept = self.packets.setdefault(run_id, [])
            if packet.seq < len(kept) and wire.encode(kept[packet.seq]) == payload:
                self.repeated += 1
            elif packet.seq == len(kept):
                kept.append(packet)
            else:
                return 409, {"detail": f"packet {packet.seq}?", "expected_seq": len(kept)}
            return 200, {
                "next_seq": len(kept),
                "cursor": len(self.alerts),
                "alerts": self.alerts[cursor:],
                "settled": kept[-1].state != "running",
                "run_url": f"http://team.example/runs/{run_id}",
            }

    def steps(self, run_id: str) -> list[int]:
        """Steps of all samples in the order in which they were stored."""
        blocks = [b for packet in self.packets.get(run_id, []) for b in packet.blocks]
        return [int(step) for block in blocks for step in block.steps]

    def audits(self, run_id: str) -> list[wire.Audit]:
        return [a for packet in self.packets.get(run_id, []) for a in packet.audits]

    def forget(self) -> None:
        """As if the server had been started on another database."""
        with self._lock:
            self.packets.clear()


@dataclass
class Exchange:
    """One request and the means to answer it, well or badly."""

    server: Loopback
    socket: socket.socket
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def answer(self, status: int, body: Any, **headers: str) -> None:
        self.socket.sendall(self.written(status, json.dumps(body).encode(), **headers))

    @staticmethod
    def written(status: int, data: bytes, **headers: str) -> bytes:
        lines = [f"HTTP/1.1 {status} -", f"Content-Length: {len(data)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + data

    def proper(self) -> tuple[int, dict[str, Any]]:
        """What a right server would answer."""
        ledger = self.server.ledger
        path, _, query = self.path.partition("?")
        run_id = path.split("/")[4]
        if self.method == "POST":
            return ledger.take(run_id, self.body, int(query.removeprefix("cursor=")))
        if path.endswith("/alerts"):
            return 200, {"alerts": ledger.alerts}
        last = ledger.packets[run_id][-1]
        return 200, {"id": run_id, "settled": last.state != "running"}


Behaviour = Callable[[Exchange], None]


def right(exchange: Exchange) -> None:
    exchange.answer(*exchange.proper())


class Loopback:
    """Serves each connection in a thread of its own until `close`.

    `behaviour` may be exchanged at any time and holds for requests that are counted from then on.
    """

    def __init__(self, behaviour: Behaviour = right, tls: ssl.SSLContext | None = None) -> None:
        self.behaviour = behaviour
        self.ledger = Ledger()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.closing = threading.Event()
        self.arrived = threading.Condition()
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._spawn(self._accept)

    def _spawn(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            self._spawn(self._converse, connection)

    def _converse(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):  # clients hang up as they like
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self.connections.append(connection)
            while (exchange := self._receive(connection)) is not None:
                with self.arrived:
                    behaviour = self.behaviour
                    self.requests.append((exchange.method, exchange.path, exchange.headers))
                    self.arrived.notify_all()
                behaviour(exchange)
                with self.arrived:
                    self.arrived.notify_all()

    def _receive(self, connection: socket.socket) -> Exchange | None:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece:
                return None
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            body += connection.recv(65536)
        method, path, _ = first.split(" ")
        return Exchange(self, connection, method, path, headers, body)

    def wait_for_requests(self, count: int) -> None:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.requests) >= count, LONG)

    def wait_for_step(self, run_id: str, step: int) -> None:
        """Until the ledger holds it."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: step in self.ledger.steps(run_id), LONG)

    def close(self) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(LONG)


def resets(exchange: Exchange) -> None:
    """Takes the request and drops the connection with RST."""
    exchange.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.socket.close()


def stores_and_resets(exchange: Exchange) -> None:
    """The nastiest fault: the packet is stored, and the answer never comes."""
    exchange.proper()
    resets(exchange)


def half_closes(exchange: Exchange) -> None:
    """Sends half an answer, then nothing more, and stays."""
    status, body = exchange.proper()
    data = exchange.written(status, json.dumps(body).encode())
    exchange.socket.sendall(data[: len(data) - 10])
    exchange.socket.shutdown(socket.SHUT_WR)


def drips(exchange: Exchange) -> None:
    """Begins a right answer and then sends one byte at a time, so slowly that it never ends."""
    status, body = exchange.proper()
    head, _, data = exchange.written(status, json.dumps(body).encode()).partition(b"\r\n\r\n")
    exchange.socket.sendall(head + b"\r\n\r\n")
    for byte in data:
        exchange.socket.sendall(bytes([byte]))
        if exchange.server.closing.wait(0.2):
            return


def says_nothing(exchange: Exchange) -> None:
    exchange.server.closing.wait(LONG)


def fails(exchange: Exchange) -> None:
    exchange.answer(500, {"detail": "out of order"})


def talks_garbage(exchange: Exchange) -> None:
    exchange.socket.sendall(b"\x00\xff lorem ipsum\r\n\r\n")
    exchange.socket.close()


def answers_a_page(exchange: Exchange) -> None:
    exchange.socket.sendall(exchange.written(200, b"<html>Sign in to the hotel's network</html>"))


def is_too_busy(exchange: Exchange) -> None:
    exchange.answer(429, {"detail": "slow down"}, Retry_After="3600")


def refuses_evidence(exchange: Exchange) -> None:
    """Says 413 to every packet that carries samples, as a proxy with a low limit does."""
    if exchange.method == "POST" and wire.decode(exchange.body).blocks:
        exchange.answer(413, {"detail": "too large"})
    else:
        right(exchange)


class BlackHole:
    """An address that takes no connection and refuses none: its queue is full."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        address = self._listener.getsockname()
        self.url = f"http://127.0.0.1:{address[1]}"
        self._waiting = [socket.socket() for _ in range(3)]
        for each in self._waiting:
            each.setblocking(False)
            each.connect_ex(address)

    def close(self) -> None:
        for each in (*self._waiting, self._listener):
            each.close()


_KEPT: list[socket.socket] = []


def closed_port() -> str:
    """An address at which nobody listens, nor will while these tests run."""
    # Bound, or the system may give the port to a server of another test, or to a client's own end.
    _KEPT.append(socket.socket())
    _KEPT[-1].bind(("127.0.0.1", 0))
    return f"http://127.0.0.1:{_KEPT[-1].getsockname()[1]}"
