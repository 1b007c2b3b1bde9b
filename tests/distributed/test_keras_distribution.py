"""keras.distribution on JAX: batches and weights spread over devices are measured as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.distributed.telling import answer_of

SAME = {"rtol": 2e-5, "atol": 1e-6}
FOUR = {
    "KERAS_BACKEND": "jax",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
}


@pytest.fixture(scope="module", params=["data", "model"])
def found(request: pytest.FixtureRequest) -> Any:
    """Fits with every batch spread over four devices, or weights and batches over two by two."""
    return answer_of("data_parallel", request.param, **FOUR)


def test_trains_the_same_and_every_probe_works(found: Any) -> None:
    assert found["devices"] == 4
    assert found["watched"] == found["plain"]
    run = found["watched: run"]
    assert run["failed"] == []
    assert run["said"] == []
    for rule in (
        "metric-recompute-mismatch",
        "loss-decomposition-mismatch",
        "lr-effective-mismatch",
    ):
        assert run["verdicts"][rule][0] == "ok", run["verdicts"][rule]


@pytest.mark.parametrize("found", ["data"], indirect=True)
def test_measures_whole_batches(found: Any) -> None:
    still = found["still"]
    y, outputs = np.array(still["y"]), np.array(still["outputs"])
    losses = -np.log(outputs[np.arange(len(y)), y])
    right = outputs.argmax(axis=-1) == y
    signals, ends = still["signals"], (16, 32, 40)
    assert signals["batch/size"] == [16, 16, 8]
    batches = [losses[a:b].mean() for a, b in ((0, 16), (16, 32), (32, 40))]
    np.testing.assert_allclose(signals["loss/batch"], batches, **SAME)
    for name in ("accuracy/reported", "accuracy/recomputed"):
        np.testing.assert_allclose(signals[name], [right[:end].mean() for end in ends], **SAME)
