"""torch's DistributedDataParallel: the first process reports, the other one rests and says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.distributed.telling import answers_of


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    store = tmp_path_factory.mktemp("ddp") / "store"
    calls = [(str(rank), str(store)) for rank in range(2)]
    return answers_of("ddp", calls, KERAS_BACKEND="torch", GLOO_SOCKET_IFNAME="lo")


def test_trains_the_same_in_both_processes(ranks: list[Any]) -> None:
    for found in ranks:
        assert found["watched"] == found["plain"]
        assert found["watched loop"] == found["loop"]
    assert ranks[0]["plain"]["digest"] == ranks[1]["plain"]["digest"], "they train one model"


def test_one_process_reports_a_run_for_the_fit_and_one_for_the_loop(ranks: list[Any]) -> None:
    assert [found["spools"] for found in ranks] == [2, 0]
    assert ranks[0]["said"] == []
    assert all("process 0 reports for all" in text for text in ranks[1]["said"])
    assert len(ranks[1]["said"]) == 2


def test_every_probe_works_and_nothing_is_wrong(ranks: list[Any]) -> None:
    run = ranks[0]["run"]
    assert run["failed"] == []
    assert run["said"] == []
    for rule in ("metric-recompute-mismatch", "lr-effective-mismatch", "step-count-mismatch"):
        assert run["verdicts"][rule][0] == "ok", run["verdicts"][rule]


def test_evidence_is_of_the_first_process_and_says_so(ranks: list[Any]) -> None:
    run = ranks[0]["run"]
    assert run["signals"]["batch/size"] == [8, 8, 4] * 2
    shown = ranks[0]["watched"]["history"]["loss"]
    np.testing.assert_allclose(run["signals"]["loss/recomputed"][2::3], shown, rtol=2e-5)
    assert "of the first process's part" in run["not_testable"]["processes"]
    # Gradients are averaged before the optimizer gets them, so this is of all processes.
    np.testing.assert_allclose(run["signals"]["learning_rate/effective"], [1e-3] * 6, rtol=1e-3)
