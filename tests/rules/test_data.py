"""Order, coverage, overlap and drift of the data, and how it is scaled and balanced."""

import pytest

from trainsanity.rules import NotTestable, RunFacts, Severity, history
from trainsanity.rules.class_imbalance import ClassImbalance
from trainsanity.rules.data_coverage import DataCoverage
from trainsanity.rules.data_order_repeat import DataOrderRepeat
from trainsanity.rules.input_drift import InputDrift
from trainsanity.rules.input_not_normalized import InputNotNormalized
from trainsanity.rules.validation_overlap import ValidationOverlap


class TestOrder:
    def found(
        self,
        *orders,
        shuffle=True,
        batches=32,
        expect=None,
        epochs=None,
        data="tf.data",
        backend="",
    ):
        numbers = epochs or range(len(orders))
        audits = [
            ("data_epoch", 10 * (i + 1), {"epoch": n, "order": order, "distinct_batches": batches})
            for i, (n, order) in enumerate(zip(numbers, orders, strict=True))
        ]
        facts = RunFacts(expect=expect or {}, backend=backend)
        fit = {"shuffle": shuffle, "data": data}
        run = history(facts=facts, audits=[("fit", 0, fit), *audits])
        return list(DataOrderRepeat().check(run.view()))

    def test_the_same_order_again_is_a_warning_where_the_user_declared_shuffling(self):
        (found,) = self.found("a", "a", expect={"shuffle": True})
        assert found.severity is None
        assert "epoch 2 saw its 32 different batches in exactly the order of epoch 1" in (
            found.message
        )

    def test_the_default_of_fit_is_no_more_than_advice(self):
        (found,) = self.found("a", "a")
        assert found.severity is Severity.ADVICE
        assert "Keras" not in found.message

    def test_arrays_on_tensorflow_are_the_frameworks_doing(self):
        (found,) = self.found("a", "a", data="arrays", backend="tensorflow")
        assert found.severity is Severity.ADVICE
        assert "Keras on TensorFlow does this to arrays" in found.message

    def test_another_order_is_well(self):
        assert not self.found("a", "b", "a")

    def test_an_order_that_is_meant_is_not_testable(self):
        """Time series, curricula."""
        with pytest.raises(NotTestable, match="no shuffling was declared"):
            self.found("a", "a", shuffle=False)

    def test_the_users_word_counts_more_than_the_argument(self):
        assert self.found("a", "a", shuffle=None, expect={"shuffle": True})
        with pytest.raises(NotTestable):
            self.found("a", "a", shuffle=True, expect={"shuffle": False})

    def test_tiny_data_repeats_by_chance(self):
        with pytest.raises(NotTestable, match="by chance"):
            self.found("a", "a", batches=9)

    def test_epochs_that_do_not_follow_are_not_compared(self):
        assert not self.found("a", "a", epochs=[0, 5])


class TestCoverage:
    def found(self, *, fit=None, expect=None, inputs__mean=(0.1, 0.1), **facts):
        facts = {"epoch": 0, "batches": 10, "rows": 100, "dataset_rows": 100} | facts
        audits = [("fit", 0, fit or {}), ("data_epoch", 10, facts)]
        inputs = {"inputs__mean": list(inputs__mean), "inputs__std": [1.0, 1.0]}
        run = history(facts=RunFacts(expect=expect or {}), audits=audits, **inputs)
        return list(DataCoverage().check(run.view()))

    def test_rows_that_never_come_are_told(self):
        (found,) = self.found(rows=80)
        assert "has 100 rows; epoch 1 saw 80" in found.message

    def test_one_batch_again_and_again_in_the_place_of_the_declared_rows_is_a_warning(self):
        """The rows add up."""
        (found,) = self.found(distinct_batches=1, dataset_rows=None, expect={"data_rows": 100})
        assert found.severity is None
        assert "10 batches, 100 rows in all" in found.message

    def test_one_batch_again_and_again_may_be_a_first_test(self):
        (found,) = self.found(
            distinct_batches=1, dataset_rows=None, fit={"steps_per_epoch": 10, "data": "generator"}
        )
        assert found.severity is Severity.ADVICE

    def test_sparse_rows_that_have_a_fingerprint_in_common_are_no_repetition(self):
        with pytest.raises(NotTestable):
            self.found(distinct_batches=1, dataset_rows=None, inputs__mean=[0.1, 0.2])

    def test_a_few_batches_of_arrays_may_be_the_same(self):
        assert not self.found(distinct_batches=1, fit={"data": "arrays"})

    def test_a_dropped_last_batch_is_usual(self):
        assert not self.found(rows=96, dataset_rows=99)

    def test_an_epoch_that_was_stopped_is_no_fault(self):
        assert not self.found(rows=20, stopped=True)

    def test_steps_per_epoch_is_a_choice(self):
        with pytest.raises(NotTestable, match="steps_per_epoch"):
            self.found(rows=20, fit={"steps_per_epoch": 2})

    def test_a_stream_of_unknown_length_is_not_testable(self):
        with pytest.raises(NotTestable, match="data_rows"):
            self.found(dataset_rows=None)

    def test_a_stream_of_declared_length_is(self):
        assert self.found(rows=80, dataset_rows=None, expect={"data_rows": 100})


class TestOverlap:
    def found(self, shared, rows=200, twins=0):
        facts = {"validation_rows": rows, "shared": shared}
        facts |= {"train_rows": 1000, "train_duplicates": twins}
        run = history(audits=[("validation_overlap", 5, facts)])
        return list(ValidationOverlap().check(run.view()))

    def test_a_leak_is_a_warning(self):
        (found,) = self.found(50)
        assert found.severity is None
        assert "50 of 200 validation rows (25 %)" in found.message

    def test_no_shared_row_is_well(self):
        assert not self.found(0)

    def test_small_discrete_data_has_honest_duplicates(self):
        assert not self.found(120, twins=600)

    def test_more_than_its_own_duplicates_is_a_leak(self):
        assert self.found(200, twins=600)

    def test_a_handful_of_rows_says_nothing(self):
        with pytest.raises(NotTestable, match="fewer than 20"):
            self.found(19, rows=19)


class TestDrift:
    def epochs(self, *means, noise=0.01):
        values = [m + noise * (-1) ** i for m in means for i in range(10)]
        audits = [
            (
                "epoch",
                10 * (i + 1),
                {"epoch": i, "first_step": 10 * i + 1, "last_step": 10 * i + 10},
            )
            for i in range(len(means))
        ]
        run = history(inputs__mean=values, inputs__std=[0.3] * len(values), audits=audits)
        return list(InputDrift().check(run.view()))

    def test_inputs_that_wander_between_epochs_are_told(self):
        (found,) = self.epochs(0.5, 0.5, 0.9)
        assert "epoch 3 is 0.9; in the first epoch it was 0.5" in found.message

    def test_epochs_seen_in_part_are_not_compared(self):
        thinned = {"signal": "inputs/mean, inputs/std", "reason": "it takes long", "stride": 9}
        signals = {"inputs/mean": [0.5] * 9, "inputs/std": [0.3] * 9}
        run = history(signals, audits=[("thinned", 9, thinned)])
        with pytest.raises(NotTestable, match="not measured at every batch: it takes long"):
            list(InputDrift().check(run.view()))

    def test_augmentation_noise_is_usual(self):
        assert not self.epochs(0.5, 0.52, 0.48, noise=0.05)

    @pytest.mark.parametrize(
        ("shift", "spread", "told"),
        [(2.0, 0.017, True), (2.0, 60.0, True), (9.0, 1.0, True), (0.4, 1.3, False)],
    )
    def test_validation_data_of_another_scale_is_told(self, shift, spread, told):
        """Normalized twice, not at all, or only divided."""
        other = {"rows": 200, "shift": shift, "spread": spread}
        raw = ("raw_data", 0, {"inputs": [{"name": "x", "rows": 256, "validation": other}]})
        run = history(inputs__mean=[0.0], inputs__std=[1.0], audits=[raw])
        assert ["validation data"] * told == [f.subject for f in InputDrift().check(run.view())]

    def test_borders_that_were_black_before_are_no_fault(self):
        raw = ("raw_data", 0, {"inputs": [{"name": "x", "border_zero": 0.9}]})
        signals = {f"inputs/{w}": [v] * 30 for w, v in {"mean": 0.1, "std": 0.3}.items()}
        run = history(signals | {"inputs/border_zero": [0.92] * 30}, audits=[raw])
        assert not list(InputDrift().check(run.view()))


class TestScale:
    def found(self, mean, std, n=30):
        run = history(inputs__mean=[mean] * n, inputs__std=[std] * n)
        return list(InputNotNormalized().check(run.view()))

    @pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.3), (-0.5, 0.5), (0.1, 0.05)])
    def test_usual_scales_are_well(self, mean, std):
        assert not self.found(mean, std)

    def test_raw_pixels_are_told(self):
        (found,) = self.found(120.0, 60.0)
        assert "Their mean is 120" in found.message

    def test_next_to_nothing_is_told(self):
        assert self.found(0.0, 1e-4)

    def test_inputs_of_zero_have_no_scale(self):
        assert not self.found(0.0, 0.0)

    def test_a_few_batches_are_not_enough(self):
        assert not self.found(120.0, 60.0, n=19)


class TestImbalance:
    def found(self, accuracy, counts=None, weighted=False, epochs=3):
        output = {"counts": counts or {"0": 950, "1": 50}, "weighted": weighted}
        output |= {"accuracy": "accuracy", "shown": accuracy}
        audits = [("label_counts", i + 1, {"outputs": [output]}) for i in range(epochs)]
        return list(ClassImbalance().check(history(audits=audits).view()))

    def test_accuracy_of_the_constant_answer_is_told(self):
        (found,) = self.found(0.95)
        assert "Class 0 makes up 95 % of the labels" in found.message

    def test_a_model_that_learns_more_is_well(self):
        assert not self.found(0.97)

    def test_balanced_classes_are_nobodys_business(self):
        assert not self.found(0.5, counts={"0": 500, "1": 480})

    def test_weights_are_the_remedy_already(self):
        assert not self.found(0.95, weighted=True)

    def test_the_first_epochs_are_given_time(self):
        assert not self.found(0.95, epochs=2)
