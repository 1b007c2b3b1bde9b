"""torch's DistributedDataParallel: the first process reports, the other one hands in its part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
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
        assert found["unasked"] == found["alone"] == found["plain"]
    assert ranks[0]["plain"]["digest"] == ranks[1]["plain"]["digest"], "they train one model"


def test_an_alert_stops_no_process_alone(ranks: list[Any]) -> None:
    """The others would wait for its gradients."""
    for found in ranks:
        assert found["alarmed"] == found["plain"]
    (refused,) = [text for text in ranks[0]["said when alarmed"] if "on_alert" in text]
    assert "2 processes train one model" in refused


def test_one_process_reports_a_run_for_the_fit_and_one_for_the_loop(ranks: list[Any]) -> None:
    assert [found["spools"] for found in ranks] == [2, 0]
    assert ranks[0]["said"] == []


@pytest.mark.parametrize("name", ["run", "run alone"])
def test_every_probe_works_and_nothing_is_wrong(ranks: list[Any], name: str) -> None:
    run = ranks[0][name]
    assert run["failed"] == []
    assert run["said"] == []
    for rule in ("metric-recompute-mismatch", "lr-effective-mismatch", "step-count-mismatch"):
        assert run["verdicts"][rule][0] == "ok", run["verdicts"][rule]


def test_what_is_compared_with_the_number_shown_is_of_the_first_process(ranks: list[Any]) -> None:
    run = ranks[0]["run"]
    assert run["signals"]["batch/size"] == [8, 8, 4] * 2
    shown = ranks[0]["watched"]["history"]["loss"]
    np.testing.assert_allclose(run["signals"]["loss/recomputed"][2::3], shown, rtol=2e-5)
    # Gradients are averaged before the optimizer gets them, so this is of all processes.
    np.testing.assert_allclose(run["signals"]["learning_rate/effective"], [1e-3] * 6, rtol=1e-3)


def test_the_metric_shown_is_compared_with_that_of_all_processes(ranks: list[Any]) -> None:
    verdicts = {name: ranks[0][name]["verdicts"] for name in ("run", "run alone")}
    assert verdicts["run"]["metric-of-one-process"][0] == "ok"
    assert verdicts["run alone"]["metric-of-one-process"][0] == "not_testable"


def test_metrics_of_all_processes_are_means_of_what_they_show(ranks: list[Any]) -> None:
    signals = ranks[0]["run"]["signals"]
    for key in ("loss", "accuracy"):
        shown = [found["watched"]["history"][key] for found in ranks]
        together = signals[f"{key}/recomputed_in_all"][2::3]
        np.testing.assert_allclose(together, np.mean(shown, axis=0), rtol=2e-5)


@dataclass
class Part:
    """What one process has computed of a batch, by hand."""

    losses: Any
    hits: Any
    weights: Any


def parts_of(still: Any) -> Iterator[Part]:
    """Batch by batch."""
    y, outputs, weights = (np.array(still[name]) for name in ("y", "outputs", "weight"))
    for at in (slice(0, 8), slice(8, 16), slice(16, None)):
        losses = -np.log(outputs[at][np.arange(len(y[at])), y[at]])
        yield Part(losses, outputs[at].argmax(1) == y[at], weights[at])


def by_hand(ranks: list[Any]) -> dict[str, list[float]]:
    """Signals of all processes, by batch of an epoch."""
    batches = [
        Part(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Part)))
        for parts in zip(*(parts_of(found["still"]) for found in ranks), strict=True)
    ]
    rows = np.array([len(b.hits) for b in batches])
    hits = np.array([b.hits.sum() for b in batches])
    weights = np.array([b.weights.sum() for b in batches])
    weighted_hits = np.array([(b.weights * b.hits).sum() for b in batches])
    losses = np.array([(b.weights * b.losses).sum() for b in batches])
    named = {
        "batch/size": rows,
        "accuracy/batch": hits / rows,
        "accuracy/recomputed": hits.cumsum() / rows.cumsum(),
        "weighted_accuracy/batch": weighted_hits / weights,
        "weighted_accuracy/recomputed": weighted_hits.cumsum() / weights.cumsum(),
        "loss/batch": losses / rows,
        "loss/recomputed": losses.cumsum() / rows.cumsum(),
        "sample_weight/mean": weights / rows,
        "sample_weight/max": [b.weights.max() for b in batches],
        "loss/nonfinite": rows * 0,
    }
    return {f"{name}_in_all": list(values) for name, values in named.items()}


@pytest.mark.parametrize(("name", "passes", "validations"), [("run", 2, 2), ("evaluated", 1, 0)])
def test_sums_are_over_both_processes_batch_by_batch(
    ranks: list[Any], name: str, passes: int, validations: int
) -> None:
    run = ranks[0]["still"][name]
    for signal, expected in by_hand(ranks).items():
        found = run["signals"][signal]
        np.testing.assert_allclose(found, expected * passes, rtol=2e-5, err_msg=signal)
    assert "processes" not in run["not_testable"]
    assert run["processes"] == [
        {
            "processes": 2,
            "batches": 3 * passes,
            "together": 3 * passes,
            "passes": validations,
            "passes_together": validations,
            "others": [{"process": 1, "heard": True, "batches": 3 * passes, "passes": validations}],
            "not_testable": None,
        }
    ]


def test_validation_is_of_the_rows_of_both_processes(ranks: list[Any]) -> None:
    """One of them has three batches and the other one has one."""
    y, outputs, weight = (
        np.concatenate([found["still"][name][: found["still"]["validated"]] for found in ranks])
        for name in ("y", "outputs", "weight")
    )
    losses, hits = -np.log(outputs[np.arange(len(y)), y]), outputs.argmax(1) == y
    weighted_hits = np.average(hits, weights=weight)
    expected = {
        "accuracy/recomputed": hits.mean(),
        "accuracy/all": hits.mean(),
        "accuracy/weighted": weighted_hits,
        "weighted_accuracy/recomputed": weighted_hits,
        "weighted_accuracy/all": hits.mean(),
        "weighted_accuracy/weighted": weighted_hits,
        "loss/recomputed": (weight * losses).mean(),
        "loss/all": losses.mean(),
        "loss/weighted": (weight * losses).mean(),
    }
    signals = ranks[0]["still"]["run"]["signals"]
    found = {name for name in signals if name.startswith("val_") and name.endswith("_in_all")}
    assert found == {f"val_{name}_in_all" for name in expected}
    for name, value in expected.items():
        np.testing.assert_allclose(signals[f"val_{name}_in_all"], [value] * 2, rtol=2e-5)


def test_validation_in_one_process_is_not_that_of_all(ranks: list[Any]) -> None:
    run = ranks[0]["run"]
    assert len(run["signals"]["val_accuracy/recomputed"]) == 2
    assert not [name for name in run["signals"] if name.startswith("val_") and "_in_all" in name]
    (facts,) = run["processes"]
    assert (facts["together"], facts["passes"], facts["passes_together"]) == (6, 2, 0)
    assert run["not_testable"]["processes"] == (
        "validation is of the first process's part: not every process has validated after the "
        "same steps"
    )


def test_what_the_processes_compute_alike_is_not_added_up(ranks: list[Any]) -> None:
    added = {name for name in ranks[0]["run"]["signals"] if name.endswith("_in_all")}
    assert not {n for n in added if n.startswith(("gradient", "weights", "learning_rate"))}


def test_without_a_callback_there_the_evidence_is_of_the_first_process(ranks: list[Any]) -> None:
    run = ranks[0]["run alone"]
    assert run["signals"]["batch/size"] == [8, 8, 4] * 2
    assert not [name for name in run["signals"] if name.endswith("_in_all")]
    assert "of the first process's part" in run["not_testable"]["processes"]
    assert "process 1 handed in nothing" in run["not_testable"]["processes"]


def test_a_process_says_so_where_the_first_one_does_not_ask_for_its_part(ranks: list[Any]) -> None:
    (text,) = ranks[1]["said"]
    assert "process 0, which reports for all, has no SanityCallback" in text
