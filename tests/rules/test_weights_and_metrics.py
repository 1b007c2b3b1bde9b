"""Sample weights, recomputed metrics, epochs, keys of the logs, metric states, modes."""

from typing import ClassVar

import numpy as np
import pytest

from trainsanity.rules import NotTestable, RunFacts, Severity, history
from trainsanity.rules.epoch_aggregation_mismatch import EpochAggregationMismatch
from trainsanity.rules.log_key_integrity import LogKeyIntegrity
from trainsanity.rules.metric_recompute_mismatch import MetricRecomputeMismatch
from trainsanity.rules.metric_state_carryover import MetricStateCarryover
from trainsanity.rules.sample_weight_effect import SampleWeightEffect
from trainsanity.rules.train_eval_disagreement import TrainEvalDisagreement
from trainsanity.rules.weighted_naive_disagreement import WeightedNaiveDisagreement
from trainsanity.wire import Block

ACCURACY = {"key": "accuracy", "kind": "BinaryAccuracy", "recomputed_by": "reference"}


class TestWeightedAgainstPlain:
    def found(self, *, plain=0.91, weighted=0.62, least=0.0, n=30, size=256, metrics=(), audits=()):
        run = history(
            {
                "accuracy/reported": [plain] * n,
                "accuracy/weighted": [weighted] * n,
                "sample_weight/mean": [0.5] * n,
                "sample_weight/min": [least] * n,
                "sample_weight/max": [1.0] * n,
                "batch/size": [float(size)] * n,
            },
            audits=[("columns", 1, {"metrics": [ACCURACY, *metrics]}), *audits],
        )
        return list(WeightedNaiveDisagreement().check(run.view()))

    def test_a_lasting_material_gap_is_a_warning_that_names_the_remedy(self):
        (found,) = self.found()
        assert found.severity is None
        assert "weighted_metrics=" in found.suggestion
        assert "Keras reports accuracy 0.91. Weighted by the weights you gave it is 0.62" in (
            found.message
        )

    def test_both_shown_is_both_told(self):
        both = {"key": "weighted_accuracy", "kind": "BinaryAccuracy", "weighted": True}
        assert not self.found(metrics=[both])

    def test_class_weights_balance_the_loss_on_purpose(self):
        (found,) = self.found(audits=[("fit", 0, {"class_weight": {"0": 1.0, "1": 9.0}})])
        assert found.severity is Severity.ADVICE

    def test_a_gap_that_does_not_matter_is_not_told(self):
        assert not self.found(weighted=0.88)

    def test_a_gap_that_does_not_last_is_not_told(self):
        assert not self.found(n=19)

    def test_chance_in_small_epochs_is_not_told(self):
        assert not self.found(weighted=0.8, size=1)

    @pytest.mark.parametrize(("weighted", "told"), [(0.62, 1), (0.88, 0)])
    def test_weights_seen_now_and_then_are_enough(self, weighted, told):
        """Probes have turns: metrics are known at every step, weights at 3 of 30."""
        run = history(
            {
                "accuracy/reported": [0.91] * 30,
                "accuracy/weighted": [weighted] * 30,
                "batch/size": [256.0] * 30,
            },
            audits=[("columns", 1, {"metrics": [ACCURACY]})],
        )
        names = tuple(f"sample_weight/{word}" for word in ("mean", "min", "max"))
        values = np.repeat([[0.5], [0.0], [1.0]], 3, axis=1)
        run.append(Block(names, np.array([1, 11, 21]), values))
        found = list(WeightedNaiveDisagreement().check(run.view()))
        assert len(found) == told

    def test_equal_weights_are_not_testable(self):
        with pytest.raises(NotTestable, match="all sample weights are equal"):
            self.found(least=1.0)

    def test_without_weights_there_is_nothing_to_weigh(self):
        run = history(accuracy__reported=[0.9], loss__reported=[0.1])
        with pytest.raises(NotTestable):
            list(WeightedNaiveDisagreement().check(run.view()))

    def test_an_output_without_weights_does_not_silence_the_other(self):
        metrics = [ACCURACY | {"key": f"{o}_acc", "output": o} for o in ("a", "b")]
        signals = {"batch/size": [256.0] * 30}
        for output in ("a", "b"):
            signals |= {f"{output}_acc/reported": [0.9] * 30, f"{output}_acc/weighted": [0.5] * 30}
        weights = {"mean": 0.5, "min": 0.0, "max": 1.0}
        signals |= {f"sample_weight:b/{word}": [value] * 30 for word, value in weights.items()}
        run = history(signals, audits=[("columns", 1, {"metrics": metrics})])
        (found,) = WeightedNaiveDisagreement().check(run.view())
        assert found.subject == "b_acc"


class TestRecomputedMetrics:
    def found(self, signals, *, metric=None, audits=(), n=5, facts=None):
        columns = ("columns", 1, {"metrics": [metric or ACCURACY]})
        signals = {name: [value] * n for name, value in signals.items()}
        run = history(signals, facts=facts, audits=[columns, *audits])
        return list(MetricRecomputeMismatch().check(run.view()))

    def test_a_metric_that_is_another_is_critical(self):
        (found,) = self.found({"accuracy/reported": 0.9, "accuracy/recomputed": 0.4})
        assert found.severity is None
        assert "Keras reports accuracy 0.9. Recomputed on the same outputs it is 0.4." in (
            found.message
        )
        assert "times the" in found.certainty

    @pytest.mark.parametrize(
        ("labels", "told"), [([None], 1), ([None, 1], 1), ([None, 4], 0), ([], 0)]
    )
    def test_class_numbers_are_no_one_hot_labels(self, labels, told):
        metric = {"key": "hits", "kind": "CategoricalAccuracy", "output": ""}
        output = {"name": "", "shape": [None, 4], "label_shape": labels}
        columns = ("columns", 1, {"metrics": [metric], "outputs": [output]})
        same = {"loss/reported": 0.4, "loss/recomputed": 0.4}
        found = self.found(same, audits=[columns])
        assert [f.severity for f in found] == [Severity.WARNING] * told

    @pytest.mark.parametrize(("dtype", "told"), [("bfloat16", 0), ("float32", 1)])
    def test_a_tie_may_be_a_hit_or_a_miss_in_half_precision(self, dtype, told):
        """Of 2 batches of 16: one of 32."""
        columns = ("columns", 1, {"metrics": [ACCURACY], "outputs": [{"name": "", "dtype": dtype}]})
        batches = [("evaluate", 1, {"batches": 2})]
        signals = {"val_accuracy/reported": 9 / 32, "val_accuracy/recomputed": 8 / 32}
        assert len(self.found(signals, audits=[columns, *batches])) == told

    def test_accuracy_of_another_number_is_told_in_half_precision_too(self):
        half = {"metrics": [ACCURACY], "outputs": [{"name": "", "dtype": "bfloat16"}]}
        columns = ("columns", 1, half)
        signals = {"val_accuracy/reported": 0.9, "val_accuracy/recomputed": 0.4}
        assert self.found(signals, audits=[columns, ("evaluate", 1, {"batches": 20})])

    def test_what_the_number_is_instead_is_told(self):
        (found,) = self.found(
            {"accuracy/reported": 0.9, "accuracy/recomputed": 0.4, "accuracy/all": 0.9}
        )
        assert "over all positions, without mask and weights" in found.message

    def test_a_rounding_is_no_gap(self):
        assert not self.found({"accuracy/reported": 0.9, "accuracy/recomputed": 0.90001})

    def test_two_batches_are_not_enough(self):
        assert not self.found({"accuracy/reported": 0.9, "accuracy/recomputed": 0.4}, n=2)

    def test_validation_needs_one_pass(self):
        (found,) = self.found({"val_loss/reported": 1.0, "val_loss/recomputed": 2.0}, n=1)
        assert found.subject == "val_loss"
        assert "which data the validation really used" in found.suggestion

    def test_a_mean_over_many_validation_batches_may_round_more(self):
        signals = {"val_loss/reported": 1.0, "val_loss/recomputed": 1.001}
        assert not self.found(signals, n=1)
        passes = [("evaluate", 1, {"inside_fit": True, "batches": 10})]
        assert self.found(signals, n=1, audits=passes)

    def test_a_function_of_the_users_is_a_warning(self):
        own = ACCURACY | {"recomputed_by": "own function"}
        (found,) = self.found({"accuracy/reported": 0.9, "accuracy/recomputed": 0.4}, metric=own)
        assert found.severity is Severity.WARNING

    def test_an_update_of_the_users_may_mean_something_of_its_own(self):
        own = ACCURACY | {"recomputed_by": "overridden update_state"}
        assert not self.found({"accuracy/reported": 0.9, "accuracy/recomputed": 0.4}, metric=own)

    def test_a_train_step_of_the_users_may_show_any_loss(self):
        own = ("compile", 0, {"custom_train_step": True})
        with pytest.raises(NotTestable, match="train_step"):
            self.found({"loss/reported": 0.9, "loss/recomputed": 0.4}, audits=[own])

    def test_half_precision_outputs_may_round_differently_in_two_uses(self):
        half = ("columns", 1, {"metrics": [ACCURACY], "outputs": [{"dtype": "bfloat16"}]})
        signals = {"accuracy/reported": 0.9, "accuracy/recomputed": 0.895}
        assert self.found(signals)
        assert not self.found(signals, audits=[half])

    def test_nan_says_nothing_here(self):
        assert not self.found({"loss/reported": float("nan"), "loss/recomputed": 1.0})


class TestSampleWeightEffect:
    ARRIVED: ClassVar = {"sample_weight/given_mean": 0.3, "sample_weight/mean": 0.3}

    def found(self, signals, n=5, audits=()):
        signals = {name: [value] * n for name, value in signals.items()}
        return list(SampleWeightEffect().check(history(signals, audits=audits).view()))

    def test_weights_that_never_reach_the_loss_are_critical(self):
        (found,) = self.found({"sample_weight/given_mean": 0.3, "sample_weight/mean": 1.0})
        assert found.severity is None
        assert "mean weight of 0.3. 1 reached the loss" in found.message

    def test_class_weights_with_keys_of_text_are_told(self):
        (found,) = self.found({"sample_weight/declared_mean": 5.5, "sample_weight/given_mean": 1.0})
        assert found.subject == "class_weight"
        assert "asks for a mean weight of 5.5" in found.message

    @pytest.mark.parametrize(
        ("keys", "width", "told"),
        [
            *[("1234", 4, True), ("12", 1, True), ("013", 3, True)],
            *[("0123", 4, False), ("12", 3, False), ("01234", 4, False), ("ab", 4, False)],
        ],
    )
    def test_class_weights_counted_from_one_are_a_warning(self, keys, width, told):
        """Fewer keys than classes are a choice, and superfluous ones harmless."""
        for loss, severities in ("crossentropy", [Severity.WARNING] * told), ("mse", []):
            output = {"name": "", "shape": [None, width], "loss": loss}
            weights = ("fit", 0, {"class_weight": dict.fromkeys(keys, 2.0)})
            found = self.found(
                self.ARRIVED, audits=[weights, ("columns", 1, {"outputs": [output]})]
            )
            assert [f.severity for f in found] == severities

    def test_a_loss_that_ignores_its_weights_is_told(self):
        loss = {"loss/differentiated": 2.0, "loss/batch": 0.7, "loss/batch_unweighted": 2.0}
        (found,) = self.found(loss)
        assert found.subject == "loss"
        assert "`call`, not `__call__`" in found.suggestion

    def test_a_loss_that_is_neither_is_another_rules_business(self):
        loss = {"loss/differentiated": 3.0, "loss/batch": 0.7, "loss/batch_unweighted": 2.0}
        assert not self.found(loss)

    def test_weights_on_one_number_for_the_whole_batch_are_a_warning(self):
        weights = {"sample_weight/min": 0.2, "sample_weight/max": 5.0}
        (found,) = self.found(self.ARRIVED | weights | {"sample_weight/loss_values": 1.0})
        assert found.severity is Severity.WARNING
        assert "weigh between 0.2 and 5" in found.message

    def used(self, loss, again, other):
        facts = {"rows": 8, "loss": loss, "again": again, "other_weights": other}
        run = history(
            {name: [value] * 5 for name, value in self.ARRIVED.items()},
            audits=[("weights_used", 1, facts)],
        )
        return list(SampleWeightEffect().check(run.view()))

    def test_a_loss_of_the_users_that_stays_the_same_with_other_weights_is_told(self):
        (found,) = self.used(2.5, 2.5, 2.5)
        assert (found.subject, found.severity) == ("loss", None)

    def test_a_loss_that_weights_change_is_well_and_a_random_one_unknown(self):
        assert not self.used(2.5, 2.5, 3.1)
        assert not self.used(2.5, 2.4, 2.5)
        assert not self.used(0.0, 0.0, 0.0)

    def test_equal_weights_on_one_number_are_well(self):
        weights = {"sample_weight/min": 0.2, "sample_weight/max": 0.2}
        assert not self.found(self.ARRIVED | weights | {"sample_weight/loss_values": 1.0})

    def test_weights_that_arrive_are_well(self):
        assert not self.found({"sample_weight/given_mean": 0.3, "sample_weight/mean": 0.3000001})

    def test_weights_of_one_are_not_testable(self):
        words = ("mean", "min", "max")
        ones = {f"sample_weight/given_{word}": 1.0 for word in words} | {"sample_weight/mean": 1.0}
        with pytest.raises(NotTestable, match="every sample weight is 1"):
            self.found(ones)


class TestEpochAggregation:
    def found(self, shown, *, values=(2.0, 2.0, 3.5), sizes=(4.0, 4.0, 2.0), audits=(), **more):
        n = len(values)
        signals = {
            "loss/reported": [2.0] * (n - 1) + [shown],
            "loss/differentiated": list(values),
            "batch/size": list(sizes),
        }
        audit = ("epoch", n, {"epoch": 0, "first_step": 1, "last_step": n, "batches": n})
        return list(
            EpochAggregationMismatch().check(
                history(signals | more, audits=[audit, *audits]).view()
            )
        )

    def test_a_short_batch_that_weighs_as_a_full_one_is_critical(self):
        (found,) = self.found(2.5)
        assert found.severity is None
        assert "loss 2.5" in found.message
        assert "is 2.3" in found.message

    def test_a_mean_kept_in_bfloat16_may_err_by_its_rounding(self):
        half = [("columns", 1, {"outputs": [{"name": "", "loss_dtypes": ["bfloat16"]}]})]
        near = {"values": (2.0, 2.0, 2.05), "sizes": (4.0, 4.0, 2.0)}
        assert self.found(2.05, **near)
        assert not self.found(2.05, audits=half, **near)
        assert self.found(3.5, audits=half)

    def test_the_last_batch_in_the_place_of_the_epoch_is_a_warning(self):
        (found,) = self.found(3.5)
        assert found.severity is Severity.WARNING
        assert "the last batch alone" in found.title

    def test_a_part_of_the_loss_that_keras_averages_so_is_advice(self):
        parts = {"a_loss/batch": [2.0, 2.0, 3.5], "a_loss/reported": [2.0, 2.0, 2.5]}
        (found,) = self.found(2.3, **parts)
        assert (found.subject, found.severity) == ("a_loss", Severity.ADVICE)
        assert not self.found(2.3, **parts | {"a_loss/reported": [2.0, 2.0, 2.3]})

    def test_the_mean_over_samples_is_well(self):
        assert not self.found(2.3)

    def test_a_number_that_is_no_aggregate_at_all_is_another_rules_business(self):
        assert not self.found(7.0)

    def test_equal_batches_make_both_means_the_same(self):
        assert not self.found(2.5, sizes=(4.0, 4.0, 4.0))

    def test_a_loss_of_one_batch_beside_running_metrics_is_a_warning(self):
        (found,) = self.told(mae=[1.0, 1.0, 1.2])
        assert found.subject == "loss"
        assert found.severity is Severity.WARNING
        assert [w.value for w in found.witnesses] == [3.5, 2.3, 3.5]
        assert "beside mae" in found.message

    def test_where_all_is_of_one_batch_it_is_advice(self):
        (found,) = self.told()
        assert found.severity is Severity.ADVICE

    def test_a_metric_that_nobody_updates_shows_zero_for_the_epoch_which_is_critical(self):
        (found,) = self.told(epoch=0.0)
        assert (found.subject, found.severity) == ("loss", None)
        assert [w.value for w in found.witnesses] == [0.0, 2.3, 3.5]
        (found,) = self.told(epoch=0.0, returned=0.0)
        assert found.severity is Severity.WARNING

    def told(self, epoch=2.3, returned=3.5, **running):
        """The step returns its batch's loss; Keras' own mean over the epoch is in the logs."""
        metrics = [
            {"key": key, "recomputed_by": "reference", "mean_of": "samples"} for key in running
        ]
        reported = {"loss": epoch} | {key: values[-1] for key, values in running.items()}
        run = history(
            {
                "loss/reported": [2.0, 2.0, returned],
                "loss/differentiated": [2.0, 2.0, 3.5],
                "batch/size": [4.0, 4.0, 2.0],
                **{f"{key}/reported": values for key, values in running.items()},
                **{f"{key}/batch": [1.0, 1.0, 2.0] for key in running},
            },
            audits=[
                ("columns", 1, {"metrics": metrics}),
                ("epoch", 3, {"first_step": 1, "last_step": 3, "reported": reported}),
            ],
        )
        return list(EpochAggregationMismatch().check(run.view()))

    def test_a_masked_loss_is_told_once_as_advice(self):
        run = history(
            loss__reported=[5.0] * 4,
            loss__by_position=[2.6] * 4,
            loss__differentiated=[5.0] * 4,
            batch__size=[4.0] * 4,
            audits=[
                ("epoch", 2, {"first_step": 1, "last_step": 2}),
                ("epoch", 4, {"first_step": 3, "last_step": 4}),
            ],
        )
        (found,) = EpochAggregationMismatch().check(run.view())
        assert found.severity is Severity.ADVICE
        assert found.count == 2
        assert "loss 5. Over all positions that count it is 2.6" in found.message

    def test_before_the_first_epoch_ends_nothing_can_be_said(self):
        run = history(loss__reported=[1.0], loss__differentiated=[1.0], batch__size=[4.0])
        with pytest.raises(NotTestable, match="epoch"):
            list(EpochAggregationMismatch().check(run.view()))


class TestLogKeys:
    def found(self, *keys, own_step=False):
        audits = [
            ("compile", 0, {"custom_train_step": own_step}),
            ("log_keys", 9, {"epoch": 0, "keys": [dict(key) for key in keys]}),
        ]
        return list(LogKeyIntegrity().check(history(audits=audits).view()))

    def key(self, key, shown, result, owners=1):
        return {"key": key, "shown": shown, "result": result, "owners": owners, "object": key}

    def test_swapped_values_are_told_with_whose_they_are(self):
        first, _ = self.found(self.key("a", 0.4, 0.9), self.key("b", 0.9, 0.4))
        assert first.severity is None
        assert "The number shown belongs to b." in first.message

    def test_two_metrics_of_one_name_are_a_warning(self):
        (found,) = self.found(self.key("hits", 3.0, 3.0, owners=2))
        assert found.severity is Severity.WARNING
        assert "2 metrics share the name hits" in found.title

    def test_a_train_step_of_the_users_may_show_a_loss_of_its_own(self):
        """Keras' own tracker was never fed, and says 0."""
        assert not self.found(self.key("loss", 10.8, 0.0), own_step=True)

    def test_a_train_step_that_swaps_values_is_told_all_the_same(self):
        keys = self.key("a", 0.4, 0.9), self.key("b", 0.9, 0.4)
        assert len(self.found(*keys, own_step=True)) == 2

    def test_a_rounding_is_no_swap(self):
        assert not self.found(self.key("a", 0.9, 0.9000001))

    def test_a_metric_that_is_nan_agrees_with_itself(self):
        assert not self.found(self.key("a", float("nan"), float("nan")))


class TestMetricState:
    def found(self, after, *, own=True, facts=None):
        variable = {"name": "total", "initial": 0.0, "before_reset": 7.0, "after_reset": after}
        metric = {"key": "hits", "class": "Hits", "own_reset": own, "variables": [variable]}
        audit = ("metric_state", 8, {"epoch": 1, "metrics": [metric]})
        return list(MetricStateCarryover().check(history(facts=facts, audits=[audit]).view()))

    def test_state_that_survives_a_reset_is_told(self):
        (found,) = self.found(7.0)
        assert found.severity is Severity.WARNING
        assert "holds 7; when new it held 0" in found.message

    def test_of_a_metric_of_keras_it_is_critical(self):
        (found,) = self.found(7.0, own=False)
        assert found.severity is None

    def variable(self, before, after):
        return {"name": "total", "initial": None, "before_reset": before, "after_reset": after}

    def pair(self, *states):
        audits = [
            ("metric_state", 8 * (i + 1), {"metrics": [{"key": "hits", "variables": [state]}]})
            for i, state in enumerate(states)
        ]
        return list(MetricStateCarryover().check(history(audits=audits).view()))

    def test_state_that_only_grows_is_told_although_nobody_knows_how_it_began(self):
        (found,) = self.pair(self.variable(7.0, 7.0), self.variable(15.0, 15.0))
        assert "holds 15; after the reset before it held 7" in found.message

    def test_a_constant_among_the_variables_is_no_state(self):
        assert not self.pair(self.variable(7.0, 7.0), self.variable(7.0, 7.0))

    def test_a_reset_to_something_else_than_zero_is_a_reset(self):
        assert not self.pair(self.variable(9.0, 1.0), self.variable(15.0, 1.0))

    def test_state_that_is_new_again_is_well(self):
        assert not self.found(0.0)

    def test_a_metric_that_is_meant_to_go_on_is_left_alone(self):
        assert not self.found(7.0, facts=RunFacts(expect={"carried_metrics": ["hits"]}))


class TestModes:
    def found(self, inference, *, layers=(), epochs=3, updates=1000, momentum=None, **key):
        row = {"key": "accuracy", "training": 0.91, "spread": 0.0, "higher_is_better": True}
        row |= {"inference": inference} | key
        facts = {"rows": 256, "mode_layers": list(layers), "updates": updates, "keys": [row]}
        facts["momentum"] = momentum
        audits = [("train_eval", 10 * (i + 1), facts) for i in range(epochs)]
        return list(TrainEvalDisagreement().check(history(audits=audits).view()))

    def test_a_gap_that_no_layer_explains_is_a_warning(self):
        (found,) = self.found(0.5)
        assert found.severity is None
        assert "0.91 in training mode and 0.5 in inference mode" in found.message

    def test_three_rows_may_sit_on_a_threshold(self):
        assert not self.found(0.91 - 3 / 256)

    def test_dropout_makes_an_honest_gap(self):
        assert not self.found(0.97, layers=["dropout"])

    def test_inference_that_is_much_worse_and_stays_so_is_advice(self):
        (found,) = self.found(0.3, layers=["batch_normalization"], momentum=0.99)
        assert found.severity is Severity.ADVICE
        assert "`batch_normalization`" in found.message

    def test_young_statistics_are_given_time(self):
        assert not self.found(0.3, layers=["bn"], momentum=0.99, updates=400)

    def test_two_epochs_are_not_lasting(self):
        assert not self.found(0.3, layers=["bn"], momentum=0.99, epochs=2)

    def test_a_gap_within_the_spread_of_dropout_is_honest(self):
        assert not self.found(0.6, layers=["dropout"], spread=0.1)
