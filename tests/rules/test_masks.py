"""Masks that are lost, cover too much, or do not follow their targets."""

import pytest

from trainsanity.rules import NotTestable, RunFacts, Severity, history
from trainsanity.rules.mask_coverage_mismatch import MaskCoverageMismatch
from trainsanity.rules.mask_target_misaligned import MaskTargetMisaligned

N = 25
ACCURACY = {
    "key": "accuracy",
    "kind": "SparseCategoricalAccuracy",
    "recomputed_by": "reference",
}
JAX = RunFacts(backend="jax", keras_version="3.15.1")


def coverage(*, real=0.34, loss=0.34, metric=None, credit=0.0, uncounted=0.0):
    metric = loss if metric is None else metric
    return {
        "mask/input_coverage": [real] * N,
        "mask/loss_coverage": [loss] * N,
        "mask/metric_coverage": [metric] * N,
        "mask/padding_credit": [credit] * N,
        "mask/real_uncounted": [uncounted] * N,
    }


def numbers(shown, true, everything=None):
    signals = {"accuracy/reported": [shown] * N, "accuracy/unmasked": [true] * N}
    return signals | ({} if everything is None else {"accuracy/all": [everything] * N})


def flow(name, *, legal=None, aligned=True, **layer):
    layers = [{"name": name, "legal": legal, **layer}]
    return (
        "mask_flow",
        0,
        {"layers": layers, "outputs": {"o": {"aligned": aligned, "first_lost": name}}},
    )


def judge(signals, *audits, facts=None, metric=ACCURACY):
    columns = ("columns", 1, {"metrics": [metric]})
    run = history(signals, facts=facts, audits=[columns, *audits])
    return list(MaskCoverageMismatch().check(run.view()))


class TestLostMask:
    lost = coverage(loss=1.0, credit=0.66) | numbers(0.56, 0.22)

    def test_tells_both_numbers_the_operator_and_the_line(self):
        operator = {"class": "Add", "operation": True, "site": "model.py:41"}
        (found,) = judge(self.lost, flow("add_1", **operator))
        assert found.message.startswith(
            "Keras reports accuracy 0.56. Over the positions that are not padding it is 0.22. "
            "The mask died at `add_1` (operator `+`, model.py:41)."
        )
        assert found.subject == "add_1"
        assert found.severity is None
        assert "Add()([x, y])" in found.suggestion
        assert [w.value for w in found.witnesses[:2]] == [0.56, 0.22]

    def test_tells_how_to_mend_a_layer_of_the_users(self):
        (found,) = judge(self.lost, flow("scale", **{"class": "Scale", "site": "model.py:7"}))
        assert "`scale` (layer Scale, model.py:7)" in found.message
        assert "supports_masking = True" in found.suggestion

    def test_speaks_without_the_audit_too(self):
        (found,) = judge(self.lost)
        assert found.subject == "output"
        assert "0.22" in found.message

    def test_with_the_audit_takes_the_place_of_what_was_said_without(self):
        (before,) = judge(self.lost)
        (after,) = judge(self.lost, flow("scale", **{"class": "Scale", "site": "model.py:7"}))
        assert after.replaces == (before.subject,)
        assert before.replaces == ()

    def test_shows_the_loss_where_no_metric_is_compiled(self):
        loss = {"loss/reported": [0.9] * N, "loss/unmasked": [2.1] * N}
        (found,) = judge(coverage(loss=1.0, credit=0.66) | loss)
        assert "Keras reports loss 0.9" in found.message

    @pytest.mark.parametrize(
        "end",
        [
            flow("pool", legal=True, **{"class": "GlobalAveragePooling1D"}),
            flow("lstm", legal=True, **{"class": "LSTM"}),
            flow("flatten", aligned=False, **{"class": "Flatten"}),
        ],
    )
    def test_is_silent_where_a_mask_may_end(self, end):
        """An encoder ends the mask; what a decoder makes of its vector has other positions."""
        with pytest.raises(NotTestable, match="may end"):
            judge(self.lost, end)

    def test_is_silent_where_no_mask_arrives_and_none_was_lost(self):
        """An autoencoder: the LSTM ends the mask, RepeatVector makes positions of its own."""
        outputs = {"o": {"aligned": True, "mask": None, "first_lost": None}}
        with pytest.raises(NotTestable, match="may end"):
            judge(self.lost, ("mask_flow", 0, {"layers": [], "outputs": outputs}))

    def test_blames_attention_that_takes_the_mask_off_its_inputs(self):
        """Keras 3.15: the residual around MultiHeadAttention finds its input without a mask."""
        layers = [
            {"name": "mha", "class": "MultiHeadAttention", "inputs": ["embedding", "embedding"]},
            {"name": "add", "class": "Add", "inputs": ["embedding", "mha"]},
        ]
        outputs = {"o": {"aligned": True, "mask": None, "first_lost": "add"}}
        (found,) = judge(self.lost, ("mask_flow", 0, {"layers": layers, "outputs": outputs}))
        assert "goes into `mha`, and Keras' MultiHeadAttention takes the mask off" in found.message
        assert "h = LayerNormalization()(x)" in found.suggestion

    def test_is_not_testable_without_a_mask(self):
        with pytest.raises(NotTestable, match="mask/input_coverage"):
            judge(numbers(0.5, 0.5))

    def test_is_silent_where_weights_of_zero_do_the_work_of_the_mask(self):
        assert not judge(coverage(loss=1.0, credit=0.0) | numbers(0.22, 0.22))

    def test_is_silent_where_the_loss_leaves_padding_out_itself(self):
        """Of a loss of the user's no credit is measured, and the numbers agree."""
        signals = coverage(loss=1.0) | numbers(0.22, 0.22)
        del signals["mask/padding_credit"]
        assert not judge(signals)

    def test_is_silent_in_batches_without_padding(self):
        assert not judge(coverage(real=1.0, loss=1.0) | numbers(0.3, 0.3))

    def test_is_silent_about_a_rounding_of_a_share(self):
        assert not judge(coverage(real=1 / 3, loss=1 / 3 + 3e-8) | numbers(0.3, 0.3))

    def test_names_the_output_of_several(self):
        signals = {
            name.replace("mask/", "mask:tags/"): values
            for name, values in coverage(loss=1.0, credit=0.66).items()
        }
        (found,) = judge(signals)
        assert found.subject == "output tags"


class TestMetricsAlone:
    signals = coverage(metric=1.0) | numbers(0.56, 0.22)

    def test_on_jax_it_is_the_framework_with_its_version(self):
        (found,) = judge(self.signals, facts=JAX)
        assert found.subject == "training metrics"
        assert found.title == "Keras 3.15.1 on JAX counts padding in training metrics"
        assert "fault of Keras 3.15.1 on JAX, not of your model" in found.message
        assert found.severity is None

    def test_on_jax_a_mask_lost_in_the_model_is_the_models(self):
        lost = coverage(loss=1.0, metric=1.0, credit=0.66) | numbers(0.56, 0.22)
        (found,) = judge(lost, flow("add_1", **{"class": "Add", "operation": True}), facts=JAX)
        assert found.subject == "add_1"

    def test_elsewhere_it_is_the_output(self):
        (found,) = judge(self.signals)
        assert found.subject == "output"
        assert "The loss gets the mask, the metrics do not." in found.message

    def test_is_silent_while_padding_changes_no_number(self):
        assert not judge(coverage(metric=1.0) | numbers(0.22, 0.22), facts=JAX)

    def test_a_function_of_the_users_may_leave_padding_out_itself(self):
        own = ACCURACY | {"recomputed_by": "own function"}
        assert not judge(self.signals, metric=own)

    def test_a_weighted_metric_means_something_else(self):
        assert not judge(self.signals, metric=ACCURACY | {"weighted": True})


class TestMetricThatThrowsItsMaskAway:
    own = ACCURACY | {"kind": "MyAccuracy", "recomputed_by": "overridden update_state"}

    def test_is_told_with_both_numbers(self):
        (found,) = judge(coverage() | numbers(0.56, 0.22, everything=0.56), metric=self.own)
        assert found.subject == "accuracy"
        assert "MyAccuracy has an `update_state` of its own" in found.message

    def test_may_mean_something_of_its_own(self):
        assert not judge(coverage() | numbers(0.4, 0.22, everything=0.56), metric=self.own)


class TestMaskThatCoversTooMuch:
    def test_hides_errors_and_is_a_warning(self):
        """A mask made from predictions leaves the most confident position: 100 % accuracy."""
        layer = {"class": "MostConfident", "produced": True, "mask_in": 1.0, "mask_out": 0.1}
        audit = ("mask_flow", 0, {"layers": [{"name": "confident", "site": "m.py:9", **layer}]})
        signals = coverage(real=1.0, loss=0.1, uncounted=0.9) | numbers(1.0, 0.31)
        (found,) = judge(signals, audit)
        assert found.severity is Severity.WARNING
        assert found.subject == "confident"
        assert "Keras reports accuracy 1. Over the positions that are not padding it is 0.31" in (
            found.message
        )
        assert "90 %" in found.title

    def test_that_ends_on_padding_is_critical(self):
        """Padding becomes the most confident position of all."""
        layer = {"class": "MostConfident", "mask_in": 0.34, "mask_out": 0.05}
        audit = ("mask_flow", 0, {"layers": [{"name": "confident", **layer}]})
        signals = coverage(loss=0.05, credit=0.9, uncounted=0.99) | numbers(1.0, 0.25)
        (found,) = judge(signals, audit)
        assert found.severity is None
        assert found.subject == "confident"
        assert "Keras reports accuracy 1." in found.message
        assert "90 % of what the loss counts is padding" in found.message

    def test_that_makes_it_harder_is_only_told(self):
        """A masked language model scores the positions it was not shown."""
        signals = coverage(real=1.0, loss=0.15, uncounted=0.85) | numbers(0.2, 0.8)
        (found,) = judge(signals)
        assert found.severity is Severity.ADVICE

    def loss(self, shown, true):
        """On JAX metrics count every position, whatever the mask."""
        signals = coverage(loss=0.1, metric=1.0, uncounted=0.7) | numbers(0.22, 0.2)
        return signals | {"loss/reported": [shown] * N, "loss/unmasked": [true] * N}

    def test_is_told_beside_metrics_that_count_padding(self):
        found = judge(self.loss(0.11, 0.82), facts=JAX)
        assert [f.subject for f in found] == ["training metrics", "output"]
        assert found[1].severity is Severity.WARNING
        assert "Keras reports loss 0.11. Over the positions" in found[1].message

    def test_that_leaves_the_loss_as_it_is_is_advice(self):
        found = judge(self.loss(0.8, 0.82), facts=JAX)
        assert found[1].severity is Severity.ADVICE

    def test_without_metrics_is_advice(self):
        """What is scored on purpose, such as answers alone, may be easier than the rest."""
        signals = {k: v for k, v in self.loss(0.11, 0.82).items() if "accuracy" not in k}
        (found,) = judge(signals)
        assert found.severity is Severity.ADVICE

    def test_metrics_that_are_given_the_mask_say_more_than_the_loss(self):
        signals = self.loss(0.11, 0.82) | {"mask/metric_coverage": [0.1] * N}
        (found,) = judge(signals)
        assert found.severity is Severity.ADVICE

    def test_for_a_few_batches_is_not_spoken_of(self):
        signals = coverage() | {"mask/real_uncounted": [0.5] * 19 + [0.0] * 6}
        assert not judge(signals | numbers(1.0, 0.3))


class TestShiftedTargets:
    def found(self, *, credit=0.1, most=1.0, follows=1.0, lost=0.0, n=5):
        run = history(
            mask__target_padding=[credit] * n,
            mask__target_padding_most=[most] * n,
            mask__target_next_input=[follows] * n,
            mask__padding_credit=[lost] * n,
        )
        return list(MaskTargetMisaligned().check(run.view()))

    def test_credit_for_padding_after_the_end_is_told(self):
        (found,) = self.found()
        assert found.severity is None
        assert "10 % of what the loss and the metrics count" in found.message
        assert "100 % of the targets equal the next input" in found.certainty

    def test_in_long_rows_it_is_advice(self):
        (found,) = self.found(credit=0.002)
        assert found.severity is Severity.ADVICE

    def test_a_class_that_is_numbered_like_padding_is_none(self):
        """Tags of which 0 is an honest one."""
        with pytest.raises(NotTestable, match="may be a real class"):
            self.found(follows=0.03)

    def test_more_than_one_a_row_is_no_shift(self):
        assert not self.found(most=7.0)

    def test_a_lost_mask_is_the_business_of_another_rule(self):
        assert not self.found(lost=0.5)

    def test_two_batches_say_too_little(self):
        assert not self.found(n=2)

    def test_rows_that_fill_their_length_give_no_credit(self):
        assert not self.found(credit=0.0, most=0.0)
