"""Shapes, layers, weights, dtypes, modes and states: declared against real."""

from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainsanity.rules import NotTestable, RunFacts, Severity, history
from trainsanity.rules.dtype_policy_mismatch import DtypePolicyMismatch
from trainsanity.rules.mode_flag_lost import ModeFlagLost
from trainsanity.rules.shape_declared_vs_actual import ShapeDeclaredVsActual
from trainsanity.rules.state_reset_missing import StateResetMissing
from trainsanity.rules.structure_mismatch import StructureMismatch
from trainsanity.rules.untracked_weights import UntrackedWeights


def judge(rule, audit, **facts):
    return list(rule.check(history(audits=[(audit, 1, facts)]).view()))


class TestShapes:
    OUTPUT = {
        "name": "head",
        "class": "Head",
        "what": "output",
        "declared_by": "compute_output_shape",
        "actual": [32, 18, 5],
    }

    def found(self, **row):
        return judge(ShapeDeclaredVsActual(), "shapes", layers=[self.OUTPUT | row])

    def test_a_false_dimension_is_critical_with_both_shapes(self):
        (alert,) = self.found(declared=[None, 18, 6])
        assert alert.severity is None
        assert [w.value for w in alert.witnesses] == ["(None, 18, 6)", "(32, 18, 5)"]

    def test_another_rank_is_critical(self):
        (alert,) = self.found(declared=[None, 18, 6, 5])
        assert alert.severity is None

    @given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.data())
    def test_hiding_any_dimension_contradicts_nothing(self, actual, data):
        hidden = data.draw(st.lists(st.booleans(), min_size=len(actual), max_size=len(actual)))
        declared = [None if h else a for h, a in zip(hidden, actual, strict=True)]
        assert not self.found(declared=declared, actual=actual)

    def test_a_fixed_batch_size_may_differ_from_the_captured_sample(self):
        assert not self.found(declared=[64, 18, 5])

    def test_a_dimension_that_the_layer_forgets_is_advice(self):
        lost = {"declared": [None, None, 5], "inputs_known": True, "seen": 2}
        (alert,) = self.found(**lost)
        assert alert.severity is Severity.ADVICE
        assert not self.found(**(lost | {"inputs_known": False}))
        assert not self.found(**(lost | {"seen": 1}))

    def test_a_batch_axis_inside_the_result_is_advice(self):
        """A contrastive loss does that on purpose."""
        (alert,) = self.found(declared=[None, None, 5], follows_batch=[1])
        assert alert.severity is Severity.ADVICE
        assert "axis 1" in alert.title

    def test_a_layer_built_without_a_shape_is_a_warning(self):
        (alert,) = self.found(what="input", declared_by="build config", declared=None)
        assert alert.severity is Severity.WARNING

    def test_a_false_output_is_not_hidden_by_advice_about_the_input(self):
        rows = [
            self.OUTPUT | {"declared": [None, 18, 6]},
            self.OUTPUT | {"what": "input", "declared": [None, 9, 5]},
        ]
        alerts = judge(ShapeDeclaredVsActual(), "shapes", layers=rows)
        assert [(a.subject, a.severity) for a in alerts] == [
            ("head", None),
            ("head input", Severity.ADVICE),
        ]

    def test_a_shared_layer_may_see_other_lengths_than_it_was_built_for(self):
        (alert,) = self.found(what="input", declared_by="build config", declared=[None, 9, 5])
        assert alert.severity is Severity.ADVICE


class TestStructure:
    LAYER = {
        "name": "a",
        "class": "Dense",
        "path": "a",
        "listed": True,
        "ran": 2,
        "parameters": 6,
        "parameters_with_gradient": 6,
        "frozen": False,
    }

    def found(self, *rows):
        return judge(StructureMismatch(), "structure", layers=[self.LAYER | r for r in rows])

    @pytest.mark.parametrize(
        ("row", "word"),
        [
            ({"ran": 0, "parameters_with_gradient": 0}, "never runs"),
            ({"listed": False}, "not part of the model"),
            ({"parameters": 12}, "owns more"),
        ],
    )
    def test_what_is_listed_and_what_runs_must_be_the_same(self, row, word):
        (alert,) = self.found(row)
        assert word in alert.title

    @pytest.mark.parametrize(
        "row",
        [
            {"ran": 0, "frozen": True},  # a teacher kept as attribute
            {"ran": 0, "parameters": 0},  # a dropout that is not used
            {"parameters_with_gradient": None},
            {"ran": 0},  # it gets a gradient, so compute_loss calls it
            {"parameters": 12, "parameters_with_gradient": 0},  # dead-weights says more of it
        ],
        ids=str,
    )
    def test_near_misses_stay_quiet(self, row):
        assert not self.found(row)

    def test_a_train_step_of_its_own_makes_it_advice(self):
        """The generator of a GAN runs there alone."""
        row = self.LAYER | {"ran": 0, "parameters_with_gradient": None}
        audits = [("compile", 0, {"custom_train_step": True}), ("structure", 1, {"layers": [row]})]
        (alert,) = StructureMismatch().check(history(audits=audits).view())
        assert alert.severity is Severity.ADVICE

    def test_a_container_is_not_blamed_for_its_unused_copy(self):
        outer = {"path": "td", "parameters": 12}
        copy = {"path": "td/copy", "ran": 0, "parameters_with_gradient": 0}
        (alert,) = self.found(outer, copy)
        assert alert.subject == "td/copy"


class TestUntracked:
    ROW = {"name": "w", "elements": 3, "trainable": True, "layer": "lambda", "gradient_norm": 0.1}

    def found(self, **row):
        rows = [self.ROW | row]
        return judge(UntrackedWeights(), "variables_read", read=3, tracked=2, untracked=rows)

    def test_a_weight_in_a_lambda_is_named_with_both_counts(self):
        (alert,) = self.found(site="model.py:17")
        assert [w.value for w in alert.witnesses] == [2, 3]
        assert "model.py:17" in alert.message

    def test_constants_and_tables_are_left_out(self):
        assert not self.found(trainable=False)

    def test_a_weight_that_the_loss_does_not_depend_on_is_advice(self):
        assert self.found(gradient_norm=0.0)[0].severity is Severity.ADVICE
        assert self.found(gradient_norm=None)[0].severity is None

    OF_LOSS: ClassVar = {"of_loss": True, "moved": 0.0, "steps": 40, "layer": None}

    def test_a_weight_of_the_loss_that_nobody_moves_is_told(self):
        (alert,) = self.found(**self.OF_LOSS)
        assert alert.subject == "the loss: w"
        assert "moved by 0 in 40 steps" in alert.message

    def test_a_weight_of_the_loss_that_somebody_moves_is_well(self):
        assert not self.found(**self.OF_LOSS | {"moved": 0.1})
        assert not self.found(**self.OF_LOSS | {"steps": 9})

    def test_a_network_that_judges_the_outputs_is_advice(self):
        network = self.OF_LOSS | {"layer": "vgg"}
        assert self.found(**network)[0].severity is Severity.ADVICE
        assert self.found(**network, made_in_loss=True)[0].severity is None


class TestDtypes:
    LAYER = {"name": "act", "policy": "mixed_float16", "compute": "float16", "symbolic": "float16"}

    def found(self, **row):
        return judge(DtypePolicyMismatch(), "dtypes", layers=[self.LAYER | row])

    def test_a_cast_to_floatx_under_mixed_precision_is_found(self):
        (alert,) = self.found(actual="float32")
        assert [w.value for w in alert.witnesses] == ["float16", "float32"]

    def test_a_layer_of_keras_that_keeps_more_digits_is_advice(self):
        (alert,) = self.found(actual="float32", of_keras=True)
        assert alert.severity is Severity.ADVICE
        (alert,) = self.found(symbolic="float32", actual="float16", of_keras=True)
        assert alert.severity is None

    def test_a_layer_whose_symbolic_output_admits_it_is_advice(self):
        (alert,) = self.found(symbolic="float32", actual="float32")
        assert alert.severity is Severity.ADVICE

    @pytest.mark.parametrize(
        ("backend", "last", "subjects"),
        [
            ("jax", "float32", ["64 bits", "half"]),
            ("jax", "float64", ["cut", "half"]),
            ("tensorflow", "float32", ["cut", "half", "last"]),
        ],
    )
    def test_jax_that_makes_32_bits_of_64_is_told_once(self, backend, last, subjects):
        wide = {"policy": "float64", "compute": "float64", "symbolic": "float64"}
        rows = [
            {"name": "cut", **wide, "actual": "float32"},
            {"name": "last", **wide, "actual": last},
            {"name": "never run", **wide},
            self.LAYER | {"name": "half", "actual": "float32"},
        ]
        run = history(
            audits=[("dtypes", 1, {"layers": rows})], facts=RunFacts(id="1", backend=backend)
        )
        found = list(DtypePolicyMismatch().check(run.view()))
        assert sorted(f.subject for f in found) == subjects
        told = [f for f in found if f.subject == "64 bits"]
        assert all("jax_enable_x64" in f.suggestion for f in told)

    @pytest.mark.parametrize(("actual", "told"), [("float32", 1), ("float64", 0)])
    def test_products_of_fewer_digits_are_told_once(self, actual, told):
        wide = {"policy": "float64", "compute": "float64", "symbolic": "float64"}
        rows = [{"name": name, **wide, "actual": "float64"} for name in ("first", "second")]
        products = {"layers": ["first", "second"], "actual": actual}
        facts = {"layers": rows, "float64_products": products}
        run = history(audits=[("dtypes", 1, facts)], facts=RunFacts(id="1", backend="torch"))
        found = list(DtypePolicyMismatch().check(run.view()))
        assert [f.subject for f in found] == ["64 bits"] * told

    def test_a_float32_head_on_purpose_is_left_alone(self):
        assert not self.found(own_policy=True, actual="float32")
        assert not self.found(actual="float16")


def effect(largest):
    return {"largest": largest, "scale": 2.0, "elements": 64, "dtype": "float32", "noise": 0.0}


class TestMode:
    LAYER = {
        "name": "dropout",
        "class": "Dropout",
        "effect": "random",
        "rate": 0.5,
        "trainable": True,
        "received": [False],
        "alone": effect(2.0),
        "acted": effect(0.0),
    }

    def found(self, **row):
        return judge(ModeFlagLost(), "mode", layers=[self.LAYER | row])

    TOLD: ClassVar = {"received": [True], "acted": effect(2.0)}

    def in_step(self, received, entered_with=None, *, own=True, entered_model=True, **row):
        step = {"received": [received], "entered_with": [entered_with]}
        row = self.LAYER | self.TOLD | row | {"in_step": step | {"entered_model": entered_model}}
        audits = [("compile", 0, {"custom_train_step": own}), ("mode", 1, {"layers": [row]})]
        return list(ModeFlagLost().check(history(audits=audits).view()))

    def test_a_train_step_that_tells_nobody_that_it_trains_is_found(self):
        (alert,) = self.in_step(False)
        assert alert.severity is None
        assert "self(x, training=True)" in alert.suggestion

    def test_a_part_of_the_model_that_is_told_nothing_is_advice(self):
        (alert,) = self.in_step(None, entered_model=False)
        assert alert.severity is Severity.ADVICE

    def test_a_train_step_may_say_what_it_means(self):
        assert not self.in_step(True, True)
        assert not self.in_step(False, False)
        assert not self.in_step(False, own=False)
        assert not self.in_step(False, effect="statistics", trainable=False)

    def test_dropout_that_is_told_to_rest_and_rests_is_found(self):
        (alert,) = self.found(switched_at="my_model")
        assert alert.severity is None
        assert "my_model" in alert.message

    @pytest.mark.parametrize(
        "row",
        [
            {"received": [True], "acted": effect(2.0)},
            {"received": [True]},  # augmentation that by chance did nothing
            {"received": [False], "acted": effect(2.0)},  # decides by itself
            {"declared": True},  # base(x, training=False) in a functional model
            {"effect": "statistics", "trainable": False},  # frozen batch norm
            {"effect": "statistics", "switched_model": True},  # fine-tuning in a subclass
        ],
        ids=str,
    )
    def test_near_misses_stay_quiet(self, row):
        assert not self.found(**row)

    def test_a_whole_backbone_switched_off_in_call_is_advice(self):
        (alert,) = self.found(switched_model=True)
        assert alert.severity is Severity.ADVICE

    def test_a_model_without_dropout_or_with_rate_zero_is_not_testable(self):
        with pytest.raises(NotTestable, match="no layer"):
            self.found(rate=0.0, alone=effect(0.0))

    def test_statistics_that_move_in_inference_are_found(self):
        state = [{"path": "bn/mean", "moved": 0.1, "scale": 1.0}]
        (alert,) = judge(ModeFlagLost(), "mode", layers=[], inference_state=state)
        assert alert.subject == "bn/mean"


class TestReset:
    LAYER = {"name": "bi", "class": "MyBidirectional", "by": "reset_state", "before": 0.8}

    def found(self, **row):
        return judge(StateResetMissing(), "state_reset", layers=[self.LAYER | row])

    def test_a_reset_that_does_nothing_is_critical(self):
        (alert,) = self.found(after=0.8)
        assert alert.severity is None

    def test_a_reset_to_another_state_may_be_meant(self):
        (alert,) = self.found(after=0.3)
        assert alert.severity is Severity.WARNING

    def test_a_reset_that_works_is_quiet(self):
        assert not self.found(after=0.0)


def test_an_audit_that_could_not_be_made_gives_its_reason():
    with pytest.raises(NotTestable, match="no sample was captured"):
        judge(ShapeDeclaredVsActual(), "shapes", not_testable="no sample was captured")
