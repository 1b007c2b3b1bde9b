"""`trainsanity serve` in its own process, on a real port."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import httpx2
from stage import PATIENCE_SECONDS

from trainsanity import wire
from trainsanity.wire import Packet

PACKETS = {"Content-Type": wire.MEDIA_TYPE}


@dataclass
class Server:
    """`trainsanity serve` in its own process."""

    process: subprocess.Popen[str]
    address: str

    def post(self, client: httpx2.Client, packet: Packet) -> httpx2.Response:
        path = f"{self.address}/api/v1/runs/{packet.run_id}/packets"
        return client.post(path, content=wire.encode(packet), headers=PACKETS)

    def get(self, path: str) -> dict:
        return httpx2.get(f"{self.address}/api/v1{path}", timeout=PATIENCE_SECONDS).json()


@contextlib.contextmanager
def serving(url: str, **environment: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "trainsanity", "serve", "--port", "0", "--db", url]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield Server(process, next(word for word in line.split() if word.startswith("http")))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)
        process.stdout.close()
