"""Runs as a training process sends them, through the server's own way in."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import urllib3
from numpy.typing import ArrayLike

from trainsanity.wire import MEDIA_TYPE, Audit, Block, Packet, encode

PATIENCE_SECONDS = 20.0  # the machine may be busy
HTTP = urllib3.PoolManager(timeout=PATIENCE_SECONDS)
LAYERS: list[dict[str, Any]] = [
    {"name": "embedding", "class": "Embedding", "inputs": [], "mask_out": 0.44, "produced": True},
    {"name": "context", "class": "Bidirectional", "inputs": ["embedding"], "mask_in": 0.44},
    {"name": "add", "class": "Add", "inputs": ["embedding", "context"], "mask_in": 0.44},
    {"name": "class", "class": "Dense", "inputs": ["add"]},
]


class Feed:
    """One run and the packets it sends."""

    def __init__(self, address: str, name: str, **header: Any) -> None:
        self.run_id = _uuid7()
        self._address = f"{address}/api/v1/runs/{self.run_id}/packets"
        self._header: dict[str, Any] | None = {
            "project": "tests",
            "name": name,
            "kind": "fit",
            "keras_version": "3.15.1",
            "backend": "tensorflow",
            "tags": [],
            "config": {},
            "environment": {},
            "expect": {},
            "started_at": time.time(),
            **header,
        }
        self.run_url = ""  # as the server names it
        self._seq = 0
        self._step = 0

    def send(
        self,
        columns: Mapping[str, ArrayLike] | None = None,
        *,
        audits: Iterable[tuple[str, Mapping[str, Any]]] = (),
        state: str = "running",
        after: int | None = None,
    ) -> None:
        """The next samples, one a step, and what else there is to say.

        Args:
            after: the step behind which the samples lie; the last one sent where it is None.
        """
        blocks = [self._block(columns, after)] if columns else []
        packet = Packet(
            run_id=self.run_id,
            seq=self._seq,
            time=time.time(),
            step=self._step,
            state=state,
            run=self._header,
            blocks=blocks,
            audits=[Audit(name, self._step, facts) for name, facts in audits],
        )
        answer = HTTP.request(
            "POST", self._address, body=encode(packet), headers={"Content-Type": MEDIA_TYPE}
        )
        assert answer.status == 200, answer.data
        self.run_url = str(answer.json()["run_url"])
        self._seq += 1
        self._header = None

    def _block(self, columns: Mapping[str, ArrayLike], after: int | None) -> Block:
        values = np.stack([np.asarray(column, np.float32) for column in columns.values()])
        begin = self._step if after is None else after
        steps = np.arange(begin + 1, begin + 1 + values.shape[1], dtype=np.int64)
        self._step = max(self._step, int(steps[-1]))
        return Block(tuple(columns), steps, values)


def _uuid7() -> str:
    """As the client makes them: the time first, so that runs are in order."""
    milliseconds = int(time.time() * 1000).to_bytes(6, "big")
    value = bytearray(milliseconds + os.urandom(10))
    value[6] = 0x70 | value[6] & 0x0F
    value[8] = 0x80 | value[8] & 0x3F
    return str(uuid.UUID(bytes=bytes(value)))


def setup_audits(*, lost: bool) -> list[tuple[str, Mapping[str, Any]]]:
    """A sequence tagger with a residual connection, written `x + y` where the mask is lost."""
    residual = {"mask_out": None, "ended": True, "legal": False, "site": "tagger.py:41"}
    fates: dict[str, dict[str, Any]] = {
        "context": {"mask_out": 0.44},
        "add": {"operation": True, "reason": "operations do not carry masks on", **residual}
        if lost
        else {"mask_out": 0.44},
        "class": {"mask_in": None, "mask_out": None}
        if lost
        else {"mask_in": 0.44, "mask_out": 0.44},
    }
    layers = [_layer(layer | fates.get(layer["name"], {})) for layer in LAYERS]
    output = {
        "mask": None if lost else 0.44,
        "aligned": True,
        "first_lost": "add" if lost else None,
    }
    metric = {"kind": "SparseCategoricalAccuracy", "output": "", "weighted": False}
    known = {"recomputed_by": "reference", "reason": None, "mean_of": "positions"}
    return [
        ("mask_flow", {"layers": layers, "outputs": {"output": output}}),
        ("columns", {"metrics": [{"key": "accuracy", **metric, **known}], "outputs": []}),
        ("compile", {"optimizer": {"class": "Adam", "config": {"learning_rate": 0.001}}}),
        ("fit", {"epochs": 2, "batch_size": 128, "shuffle": True, "data": "arrays"}),
        ("environment", {"python": "3.11.2", "host": "tests", "devices": ["CPU:0"]}),
    ]


def _layer(facts: Mapping[str, Any]) -> dict[str, Any]:
    unknown = {"operation": False, "mask_in": None, "mask_out": None, "produced": False}
    rest = {"ended": False, "legal": None, "reason": None, "site": None}
    return {**unknown, **rest, "output_shape": [None, 40, 32], **facts}


def tagger(steps: int, *, lost: bool, after: int = 0) -> dict[str, ArrayLike]:
    """Evidence of `steps` more steps of the tagger, of which `after` lie behind."""
    # The same curves whichever tests have run before; the server does not know that.
    random = np.random.default_rng((20261120, after))
    step = np.arange(after + 1, after + steps + 1)
    true = 0.62 * (1 - np.exp(-step / 300)) + random.normal(0, 0.004, steps)
    coverage = np.full(steps, 0.44, np.float32)
    counted = np.ones(steps, np.float32) if lost else coverage
    shown = 0.44 * true + 0.56 * (1 - np.exp(-step / 25)) if lost else true
    loss = 2.3 * np.exp(-step / 250) + 0.4 + random.normal(0, 0.02, steps)
    return {
        "loss/reported": loss,
        "loss/batch": loss + random.normal(0, 0.08, steps),
        "accuracy/reported": shown,
        "accuracy/unmasked": true,
        "mask/input_coverage": coverage,
        "mask/loss_coverage": counted,
        "mask/metric_coverage": counted,
        "mask/padding_credit": 1 - coverage / counted,
        "learning_rate/declared": np.full(steps, 0.001),
        "learning_rate/applied": np.full(steps, 0.001),
        "gradient/norm": 1.5 * np.exp(-step / 400) + random.gamma(2, 0.05, steps),
        "time/step": random.gamma(40, 0.0004, steps),
        "memory/rss": 812 + np.cumsum(random.random(steps) < 0.01),
    }
