"""Paths, gradients, replicas and masked positions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainsanity.rules import NotTestable, RunFacts, Severity, history
from trainsanity.rules.gradient_mismatch import GradientMismatch
from trainsanity.rules.mask_semantics import MaskSemantics
from trainsanity.rules.nondeterminism import Nondeterminism
from trainsanity.rules.path_disagreement import PathDisagreement


def difference(largest, **more):
    base = {"scale": 1.0, "elements": 64, "dtype": "float32", "noise": 0.0}
    return base | {"largest": largest} | more


def judge(rule, audit, facts=None, **content):
    return list(rule.check(history(facts=facts, audits=[(audit, 1, content)]).view()))


class TestLostMask:
    """Of a layer that takes a mask and gets none."""

    LOST = {"name": "add", "class": "Add", "operation": True, "site": "model.py:41"}

    def found(self, *largest):
        base = {"class": "LSTM", "kind": "lost", "uses_mask": True, "lost_at": self.LOST}
        rows = [
            {"layer": f"lstm_{i}", "difference": difference(x)} | base
            for i, x in enumerate(largest)
        ]
        return judge(MaskSemantics(), "mask_semantics", checks=rows)

    def test_the_operator_that_lost_it_is_named_once(self):
        (alert,) = self.found(0.3, 0.4)
        assert alert.severity is Severity.WARNING
        assert "`add` (operator `+`, model.py:41)" in alert.message
        assert "lstm_0 (LSTM)" in alert.message
        assert "Add()([x, y])" in alert.suggestion

    def test_padding_that_changes_nothing_is_left_alone(self):
        assert not self.found(1e-7)


class TestPaths:
    def found(self, largest=0.5, noise=0.0, **row):
        base = {"subject": "output", "kind": "execution", "ways": ["eager", "graph"]}
        row = base | {"difference": difference(largest, noise=noise)} | row
        return judge(PathDisagreement(), "paths", comparisons=[row])

    def test_eager_and_graph_that_compute_different_things_are_critical(self):
        (alert,) = self.found()
        assert alert.severity is None
        assert alert.subject == "output: eager / graph"

    def test_a_narrow_excess_is_only_a_warning(self):
        """A maximum may flip in a rounding."""
        (alert,) = self.found(largest=2e-3)
        assert alert.severity is Severity.WARNING

    @pytest.mark.parametrize("kind", ["batch", "mirror", "spelling"])
    def test_what_may_be_by_design_is_a_warning(self, kind):
        (alert,) = self.found(kind=kind)
        assert alert.severity is Severity.WARNING

    def test_similarities_within_the_batch_say_so_by_their_shape(self):
        (alert,) = self.found(kind="batch", declared_follows_batch=True)
        assert alert.severity is Severity.ADVICE

    def test_dropout_that_stays_on_is_not_testable(self):
        with pytest.raises(NotTestable, match="agree with itself"):
            self.found(noise=0.3)

    @given(st.floats(0, 2e-2))
    def test_half_precision_under_another_compiler_is_quiet(self, largest):
        half = difference(largest, dtype="float16")
        assert not self.found(difference=half)

    def test_a_batch_axis_inside_the_result_gives_other_shapes(self):
        shapes = {"largest": float("inf"), "scale": 0.0, "elements": 0, "dtype": "float32"}
        (alert,) = self.found(kind="batch", difference=shapes)
        assert "of other shapes" in alert.title
        assert alert.severity is Severity.ADVICE  # similarities of a contrastive loss do that too

    def test_nan_in_one_way_alone_is_told_as_such(self):
        (alert,) = self.found(difference=difference(0.0, nonfinite=[0, 7]))
        assert "0 NaN or infinite elements against 7" in alert.message


class TestGradients:
    CHECK = {
        "subject": "dense",
        "automatic": 0.9,
        "numeric": [0.91, 0.902, 0.9],
        "roundings": [1e-5, 1e-4, 1e-3],
        "nonfinite": 0,
        "loss": 1.2,
    }

    def found(self, **row):
        return judge(GradientMismatch(), "gradient_check", checks=[self.CHECK | row])

    def test_a_cut_gradient_is_advice_with_both_slopes(self):
        (alert,) = self.found(automatic=0.3)
        assert GradientMismatch.severity is Severity.ADVICE
        assert [w.value for w in alert.witnesses] == [0.3, 0.902]

    @given(st.floats(0.85, 0.95))
    def test_a_gradient_that_fits_is_quiet(self, automatic):
        assert not self.found(automatic=automatic)

    def test_slopes_below_the_rounding_are_not_told_apart(self):
        assert not self.found(automatic=0.0, numeric=[0.003, 0.001, 0.002])

    def test_a_kink_is_not_testable(self):
        with pytest.raises(NotTestable, match="no clear slope"):
            self.found(numeric=[0.9, 0.5, 0.1])

    def test_a_finite_loss_with_a_nan_gradient_is_found(self):
        (alert,) = self.found(nonfinite=3, automatic=float("nan"))
        assert alert.witnesses[1].value == 3

    def test_an_infinite_loss_has_no_gradient_to_blame(self):
        assert not self.found(nonfinite=0, automatic=float("nan"), loss=float("inf"))


class TestReplicas:
    def found(self, hashes, deterministic=True):
        facts = RunFacts(expect={"deterministic": deterministic})
        return judge(Nondeterminism(), "replicas", facts, hashes=hashes, steps=5)

    def test_two_hashes_contradict_declared_determinism(self):
        (alert,) = self.found(["a", "b"])
        assert alert.severity is None
        assert not self.found(["a", "a"])

    def test_nobody_declared_determinism(self):
        with pytest.raises(NotTestable, match="not declared"):
            self.found(["a", "b"], deterministic=False)


class TestMasks:
    def found(self, **row):
        base = {"layer": "rnn", "class": "LSTM", "kind": "padding", "uses_mask": True}
        return judge(
            MaskSemantics(), "mask_semantics", checks=[base | {"difference": difference(0.3)} | row]
        )

    def test_a_layer_that_takes_the_mask_and_ignores_it_is_a_warning(self):
        assert self.found()[0].severity is Severity.WARNING

    def test_a_convolution_that_passes_the_mask_on_is_advice(self):
        assert self.found(uses_mask=False)[0].severity is Severity.ADVICE

    def test_looking_ahead_against_the_declaration_is_critical(self):
        assert self.found(kind="future")[0].severity is None

    def test_rounding_at_valid_outputs_is_quiet(self):
        assert not self.found(difference=difference(1e-6))

    def test_masked_outputs_follow_their_flag(self):
        zeros = {"kind": "masked_output", "declared": "carried state", "actual": "zeros"}
        (alert,) = self.found(**zeros)
        assert [w.value for w in alert.witnesses] == ["carried state", "zeros"]
        assert not self.found(**(zeros | {"declared": "zeros"}))

    def test_layers_with_noise_cannot_be_compared(self):
        with pytest.raises(NotTestable):
            self.found(difference=difference(0.3, noise=0.5))
