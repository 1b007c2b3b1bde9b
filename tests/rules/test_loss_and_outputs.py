"""The loss, its parts and its elements; outputs that are no probabilities; NaN."""

import numpy as np
import pytest

from trainsanity.rules import NotTestable, RunFacts, Severity, history
from trainsanity.rules.history import Block
from trainsanity.rules.loss_broadcast import LossBroadcast
from trainsanity.rules.loss_decomposition_mismatch import LossDecompositionMismatch
from trainsanity.rules.nonfinite_propagation import NonfinitePropagation
from trainsanity.rules.output_range_mismatch import OutputRangeMismatch


class TestBroadcast:
    def found(self, elements, expected, audits=()):
        run = history(
            loss__elements=[float(elements)],
            loss__expected_elements=[float(expected)],
            audits=audits,
        )
        return list(LossBroadcast().check(run.view()))

    def test_each_label_against_each_output_is_critical(self):
        shapes = {"outputs": [{"shape": [None, 1], "label_shape": [None]}]}
        (found,) = self.found(32 * 32, 32, audits=[("columns", 1, shapes)])
        assert found.severity is None
        assert "labels have shape (N,), the outputs (N, 1)" in found.message

    def test_one_number_for_the_batch_is_a_way_to_write_a_loss(self):
        assert not self.found(1, 32)

    def test_a_loss_for_every_feature_is_another(self):
        assert not self.found(32 * 7, 32 * 7)

    def test_pairs_of_samples_may_be_meant(self):
        """A contrastive loss over outputs of 16 features compares every pair."""
        (found,) = self.found(64 * 64, 64 * 16)
        assert found.severity is Severity.ADVICE

    def test_pairs_of_scores_may_be_meant(self):
        """A loss for ranking compares every score with every other one."""
        shapes = {"outputs": [{"shape": [None, 1], "label_shape": [None, 1]}]}
        (found,) = self.found(32 * 32, 32, audits=[("columns", 1, shapes)])
        assert found.severity is Severity.ADVICE

    def ranks(self, as_given, same_shape, alone):
        losses = {"as_given": as_given, "same_shape": same_shape, "alone": alone}
        row = {"name": "", "loss": "Mine", "label_shape": [8], "shape": [8, 1]} | losses
        return self.found(32, 32, audits=[("loss_ranks", 1, {"outputs": [row]})])

    def test_a_mean_inside_of_the_loss_does_not_hide_it(self):
        (found,) = self.ranks(2.5, 1.0, 1.0000001)
        assert found.severity is None
        assert "labels have shape (8,), the outputs (8, 1)" in found.message

    def test_a_loss_that_aligns_its_shapes_is_well(self):
        assert not self.ranks(1.0, 1.0, 1.0000001)
        assert not self.ranks(1.0, 2.5, 1.0), "one that wants flat labels"

    def test_a_loss_over_pairs_is_meant_with_either_shape(self):
        assert not self.ranks(2.5, 2.5, 0.0)

    @pytest.mark.parametrize(
        ("loss", "labels", "activation", "told"),
        [
            ("mse", [None, 1], "softmax", 1),
            ("mse", [None, 3], "softmax", 0),
            ("mse", [None, 1], "linear", 0),  # an ensemble of three
            ("sparse_categorical_crossentropy", [None, 1], "softmax", 0),
        ],
    )
    def test_class_numbers_are_no_values(self, loss, labels, activation, told):
        output = {"shape": [None, 3], "label_shape": labels, "loss": loss, "activation": activation}
        found = self.found(96, 96, audits=[("columns", 1, {"outputs": [output]})])
        assert [f.severity for f in found] == [Severity.WARNING] * told

    def test_a_batch_of_one_has_nothing_to_broadcast(self):
        assert not self.found(1, 1)


class TestDecomposition:
    def found(self, used, total, added=0.0, audits=(), n=4):
        run = history(
            loss__differentiated=[used] * n,
            loss__batch=[total] * n,
            loss__added=[added] * n,
            audits=audits,
        )
        return list(LossDecompositionMismatch().check(run.view()))

    def test_regularizers_that_are_not_trained_are_told(self):
        (found,) = self.found(2.0, 2.3, added=0.3)
        assert found.severity is None
        assert "they are not trained" in found.message

    def test_added_losses_that_count_twice_are_told(self):
        (found,) = self.found(2.6, 2.3, added=0.3)
        assert "they are counted twice" in found.message

    def test_parts_that_sum_are_well(self):
        assert not self.found(2.3, 2.3000002, added=0.3)

    @pytest.mark.parametrize(("dtype", "unit"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8)])
    def test_a_loss_in_half_precision_may_err_by_its_rounding(self, dtype, unit):
        output = {"name": "", "loss_dtypes": ["float32", dtype]}
        told = [("columns", 1, {"outputs": [output]})]
        assert not self.found(2.3, 2.3 * (1 + 3 * unit), added=0.3, audits=told)
        (found,) = self.found(2.0, 2.3, added=0.3, audits=told)
        assert f"{dtype} rounding of one batch" in found.certainty

    def test_parts_that_nearly_cancel_are_judged_by_their_size(self):
        assert not self.found(0.01, 0.0, added=-1e4)

    def test_a_compute_loss_of_the_users_may_sum_as_it_likes(self):
        with pytest.raises(NotTestable, match="compute_loss of its own"):
            self.found(2.0, 2.3, audits=[("compile", 0, {"custom_compute_loss": True})])


class TestOutputRange:
    def found(self, least, most, *, logits, n=60, sums=None, facts=None, metrics=(), **output):
        output = {"name": "o", "from_logits": logits, "loss": "binary_crossentropy"} | output
        signals = {"outputs/min": [least] * n, "outputs/max": [most] * n}
        if sums is not None:
            signals |= {"outputs/sum_min": [sums[0]] * n, "outputs/sum_max": [sums[1]] * n}
        audits = [("columns", 1, {"outputs": [output], "metrics": list(metrics)})]
        run = history(signals, facts=facts, audits=audits)
        return list(OutputRangeMismatch().check(run.view()))

    def test_logits_taken_for_probabilities_are_a_warning(self):
        (found,) = self.found(-4.0, 3.0, logits=False)
        assert found.severity is None
        assert "the outputs reach -4" in found.message

    def test_probabilities_taken_for_probabilities_are_well(self):
        assert not self.found(0.0, 1.0 + 1e-7, logits=False)

    def test_shares_that_do_not_sum_to_one_are_scaled_by_keras(self):
        assert not self.found(0.0, 3.0, logits=False, loss="categorical_crossentropy")

    def test_sums_of_one_in_every_batch_are_no_logits(self):
        jax = RunFacts(backend="jax")
        (found,) = self.found(0.0, 1.0, logits=True, sums=(1 - 1e-7, 1 + 1e-7), facts=jax)
        assert found.severity is None
        assert "Softmax is applied twice" in found.message

    def test_tensorflow_finds_the_logits_behind_a_softmax(self):
        tensorflow = RunFacts(backend="tensorflow")
        (found,) = self.found(0.0, 1.0, logits=True, sums=(1.0, 1.0), facts=tensorflow)
        assert found.severity is Severity.ADVICE

    def test_a_sigmoid_at_the_end_is_no_logit(self):
        (found,) = self.found(0.1, 0.9, logits=True, activation="sigmoid")
        assert "by the sigmoid at the end" in found.message

    def test_logits_may_lie_between_zero_and_one_by_chance(self):
        assert not self.found(0.1, 0.9, logits=True, activation="linear")
        assert not self.found(0.1, 0.9, logits=True, sums=(0.7, 1.6))

    def test_a_softmax_along_another_axis_is_a_warning(self):
        softmax = {"loss": "sparse_categorical_crossentropy", "activation": "softmax"}
        (found,) = self.found(0.0, 0.4, logits=False, sums=(0.3, 0.9), **softmax)
        assert found.severity is None
        assert "the outputs sum to 0.3 along it instead of 1" in found.message
        assert not self.found(0.0, 1.0, logits=False, sums=(1 - 1e-6, 1.0), **softmax)
        of_float64 = {"dtype": "float64", "shape": [None, 3], **softmax}  # measured in float32
        assert not self.found(0.0, 1.0, logits=False, sums=(1 - 1e-7, 1 + 2e-7), **of_float64)
        assert not self.found(0.0, 0.4, logits=False, sums=(0.3, 0.9), loss="mean_squared_error")
        assert not self.found(0.0, 0.4, logits=False, sums=(0.3, 0.9), axis=1, **softmax)

    def test_a_metric_with_a_threshold_of_probabilities_on_logits_is_a_warning(self):
        accuracy = {"key": "accuracy", "output": "o", "threshold": 0.5}
        (found,) = self.found(-4.0, 3.0, logits=True, metrics=[accuracy])
        assert (found.severity, found.subject) == (None, "accuracy")
        assert "reach -4. A logit of 0.5 is a probability of 0.622" in found.message
        assert not self.found(-4.0, 3.0, logits=True, metrics=[accuracy | {"threshold": None}])
        assert not self.found(-4.0, 3.0, logits=True, metrics=[accuracy | {"output": "p"}])
        assert not self.found(0.0, 1.0, logits=True, metrics=[accuracy])

    def test_a_few_batches_are_not_enough(self):
        assert not self.found(0.0, 1.0, logits=True, sums=(1.0, 1.0), n=49)

    def test_a_loss_that_knows_no_logits_is_not_testable(self):
        with pytest.raises(NotTestable, match="probabilities or logits"):
            self.found(0.0, 1.0, logits=None)


class TestNonfinite:
    stages = ("inputs", "outputs", "loss", "gradient", "weights")

    def found(self, audits=(), shown=(0.5, 0.5, 0.5, 0.5), **stages):
        signals = {f"{s}/nonfinite": list(stages.get(s, (0, 0, 0, 0))) for s in self.stages}
        run = history(signals | {"accuracy/reported": list(shown)}, audits=audits)
        return list(NonfinitePropagation().check(run.view()))

    def test_weights_alone_are_enough(self):
        """As where torch compiles the step: nothing else of it is measured."""
        run = history(
            inputs__nonfinite=[0.0, 0.0, 0.0],
            weights__nonfinite=[0.0, 3.0, 3.0],
            accuracy__reported=[0.4, 0.4, 0.4],
        )
        (alert,) = NonfinitePropagation().check(run.view())
        assert alert.title.startswith("NaN or infinity in the weights since step 2")
        assert "without `jit_compile`" in alert.suggestion

    def test_weights_that_are_nan_under_a_finite_accuracy_are_critical(self):
        (found,) = self.found(gradient=(0, 3, 3, 3), weights=(0, 3, 3, 3), loss=(0, 0, 1, 1))
        assert found.severity is None
        assert found.first_step == 2
        assert "in the gradients since step 2" in found.title
        assert "Keras still shows accuracy 0.5" in found.message

    def test_a_loss_that_everybody_sees_is_nan_is_a_warning(self):
        nan = float("nan")
        (found,) = self.found(loss=(0, 1, 1, 1), shown=(0.5, nan, nan, nan))
        assert found.severity is Severity.WARNING

    def of_some_steps(self, loss, **others):
        """`others` are of the steps at which all probes have their turn: step -> amount."""
        run = history({"loss/nonfinite": loss, "accuracy/reported": [0.5] * len(loss)})
        for stage, amounts in others.items():
            values = np.array([list(amounts.values())], float)
            run.append(Block((f"{stage}/nonfinite",), np.array(list(amounts)), values))
        return list(NonfinitePropagation().check(run.view()))

    def test_names_the_first_step_where_not_every_step_was_looked_at_in_full(self):
        inputs = {1: 0, 2: 0, 3: 2, 4: 0, 5: 0}
        turns = {"outputs": {1: 0, 5: 9}, "gradient": {1: 0, 5: 7}, "weights": {1: 0, 5: 7}}
        (found,) = self.of_some_steps([0, 0, 1, 1, 1], inputs=inputs, **turns)
        assert found.title.startswith("NaN or infinity in the inputs since step 3")
        assert "may have begun" not in found.message
        (found,) = self.of_some_steps([0, 0, 1, 1, 1], **turns)
        assert found.title.startswith("NaN or infinity in the loss since step 3")
        assert "begun there: the outputs and the weights after the step before." in found.message
        assert "lower the learning rate" in found.suggestion
        turns["outputs"] |= {3: 4, 4: 4}
        (found,) = self.of_some_steps([0, 0, 1, 1, 1], **turns)
        assert "begun there: the weights after the step before." in found.message
        turns["weights"] |= {2: 0, 3: 7, 4: 7}
        (found,) = self.of_some_steps([0, 0, 1, 1, 1], **turns)
        assert found.title.startswith("NaN or infinity in the outputs since step 3")
        assert "may have begun" not in found.message

    def test_one_batch_that_was_skipped_is_no_fault(self):
        assert not self.found(loss=(0, 1, 0, 0), gradient=(0, 5, 0, 0))

    def test_planned_infinities_of_loss_scaling_are_no_fault(self):
        scaled = ("compile", 0, {"optimizer": {"class": "LossScaleOptimizer"}})
        assert not self.found(gradient=(9, 9, 9, 0), audits=[scaled])

    def test_nan_in_the_data_is_named_as_the_cause(self):
        (found,) = self.found(inputs=(0, 0, 2, 2), outputs=(0, 0, 4, 4), loss=(0, 0, 1, 1))
        assert "in the inputs" in found.title
        assert "Clean the data" in found.suggestion

    def test_missing_values_that_a_layer_fills_are_advice(self):
        (found,) = self.found(inputs=(2, 2, 2, 2))
        assert found.subject == "inputs"
        assert found.severity is Severity.ADVICE

    def test_a_layer_that_swallows_what_the_model_made_is_a_warning(self):
        layers = [
            {"name": "log", "class": "Log", "entering": 0, "leaving": 6},
            {"name": "my_relu", "class": "MyRelu", "entering": 6, "leaving": 0, "site": "m.py:8"},
        ]
        (found,) = self.found(audits=[("nonfinite_flow", 1, {"layers": layers})])
        assert found.subject == "my_relu"
        assert found.severity is Severity.WARNING
        assert "made inside the model" in found.message

    def test_a_layer_that_fills_gaps_of_the_data_is_advice(self):
        layers = [{"name": "impute", "class": "Impute", "entering": 6, "leaving": 0}]
        (found,) = self.found(audits=[("nonfinite_flow", 1, {"layers": layers})])
        assert found.severity is Severity.ADVICE

    def test_finite_training_is_well(self):
        assert not self.found()
