"""Traces against signatures."""

from trainsanity.rules import Severity, history
from trainsanity.rules.retracing import Retracing


def found(traces, signatures):
    run = history(traces__count=traces, traces__signatures=signatures)
    return list(Retracing().check(run.view()))


def test_a_step_that_is_thrown_away_every_epoch_is_found():
    (alert,) = found([1 + n // 10 for n in range(100)], [1] * 100)
    assert alert.severity is None
    assert alert.witnesses[1].value == 10


def test_a_few_traces_to_begin_with_are_usual():
    assert not found([1, 2, 2, 3, 4] + [4] * 50, [1] * 55)


def test_batches_of_every_length_are_advice():
    lengths = range(1, 51)
    (alert,) = found(lengths, lengths)
    assert alert.severity is Severity.ADVICE
    assert "Pad" in alert.suggestion


def test_shapes_that_one_trace_serves_are_quiet():
    assert not found([2] * 50, range(1, 51))


def test_a_few_lengths_in_a_long_run_are_quiet():
    counts = [min(12, 1 + n // 10) for n in range(1000)]
    assert not found(counts, counts)
