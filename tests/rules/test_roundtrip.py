"""Before saving and after loading."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainsanity.rules import NotTestable, Severity, history
from trainsanity.rules.roundtrip_behaviour import RoundtripBehaviour
from trainsanity.rules.roundtrip_structure import RoundtripStructure


def judge(rule, **facts):
    return list(rule.check(history(audits=[("roundtrip", 90, facts)]).view()))


def output(largest, noise=0.0):
    facts = {"largest": largest, "scale": 1.0, "elements": 64, "dtype": "float32", "noise": noise}
    return {"name": "output", "difference": facts}


def metric(before, after, samples=64, key="accuracy"):
    return {"key": key, "before": before, "after": after, "samples": samples}


def behaviour(largest, *metrics, noise=0.0):
    return judge(RoundtripBehaviour(), outputs=[output(largest, noise)], metrics=list(metrics))


def test_a_name_that_now_means_another_metric_is_told_apart_from_lost_weights():
    (alert,) = behaviour(0.0, metric(0.91, 0.1))
    assert "another function" in alert.message
    alerts = behaviour(0.7, metric(0.91, 0.1))
    assert {a.subject for a in alerts} == {"output output", "accuracy"}
    assert not any("another function" in a.message for a in alerts)


@given(st.integers(0, 64), st.integers(-2, 2), st.floats(1e-9, 9e-4))
def test_two_samples_may_flip_where_outputs_are_rounded(correct, flipped, largest):
    after = min(64, max(0, correct + flipped))
    assert not behaviour(largest, metric(correct / 64, after / 64))


def test_nothing_flips_where_outputs_are_bit_equal():
    assert behaviour(0.0, metric(63 / 64, 62 / 64))


@given(st.floats(0, 1e6), st.floats(-1e-6, 1e-6))
def test_a_loss_summed_twice_is_the_same_loss(loss, error):
    assert not behaviour(0.0, metric(loss, loss * (1 + error), key="loss"))


def test_a_model_that_is_random_in_inference_is_not_testable():
    with pytest.raises(NotTestable, match="agree with itself"):
        behaviour(0.5, metric(0.9, 0.1), noise=0.5)


SAME = {
    "trainable_before": ["a/kernel"],
    "trainable_after": ["a/kernel"],
    "weights": {"before": 2, "after": 2},
    "layers": [{"name": "a", "class_before": "m.A", "class_after": "m.A"}],
    "optimizer": {"before": "SGD", "after": "SGD", "changed": []},
    "optimizer_slots": {"before": 4, "after": 4},
    "output_names": {"before": ["a"], "after": ["a"]},
    "strict_json": None,
}


def change(path, before, after):
    return {"config_changed": [{"path": path, "before": before, "after": after}]}


def optimizer(after, *changed, slots=4):
    facts = {"before": "SGD", "after": after, "changed": [*changed]}
    return {"optimizer": facts, "optimizer_slots": {"before": 4, "after": slots}}


def policy(after, *, of_keras, kind="zoo.Scale"):
    policies = {"policy_before": "mixed_float16", "policy_after": after}
    layer = {"name": "a", "of_keras": of_keras, "class_before": kind, "class_after": kind}
    return {"layers": [layer | policies]}


@pytest.mark.parametrize(
    ("facts", "subject", "severity"),
    [
        ({"trainable_after": ["a/kernel", "e/table"]}, "trainable weights", None),
        ({"weights": {"before": 3, "after": 2}}, "weights", None),
        ({"optimizer_slots": {"before": 4, "after": 0}}, "optimizer slots", None),
        (optimizer("RMSprop", "momentum", slots=6), "optimizer", None),
        (optimizer("SGD", "momentum"), "optimizer", None),
        (
            {"layers": [{"name": "a", "class_before": "m.A", "class_after": "m.B"}]},
            "a",
            None,
        ),
        (
            {"weights_changed": [{"path": "a/kernel", "difference": output(1e-9)["difference"]}]},
            "a/kernel",
            None,
        ),
        (policy("float32", of_keras=False), "dtype policy of a", Severity.WARNING),
        (policy("float32", of_keras=True), "dtype policy of a", Severity.ADVICE),
        (change("a/activation", "relu", "linear"), "config: a/activation", Severity.WARNING),
        ({"strict_json": "Infinity at line 3"}, "saved configuration", Severity.WARNING),
        ({"output_names": {"before": ["a"], "after": ["b"]}}, "output names", Severity.WARNING),
    ],
    ids=str,
)
def test_each_part_that_comes_back_different_is_named(facts, subject, severity):
    (alert,) = judge(RoundtripStructure(), **(SAME | facts))
    assert (alert.subject, alert.severity) == (subject, severity)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"optimizer_slots": None},  # saved without its optimizer
        change("a/rate", 0.1, 0.10000000149),  # stored as float32
        {"weights_changed": [{"path": "a/kernel", "difference": output(0.0)["difference"]}]},
        {
            "weights_changed": [
                {"path": f"d/{name}", "difference": output(0.1)["difference"]}
                for name in ("kernel", "lora_kernel_a", "lora_kernel_b")
            ]
        },
        {"trainable_after": None},
        policy("mixed_float16", of_keras=False),
        policy("float32", of_keras=True, kind="keras.src.layers.core.input_layer.InputLayer"),
        change("layers[1].config.trainable", False, True),  # a nested Sequential, frozen
    ],
    ids=str,
)
def test_near_misses_stay_quiet(facts):
    assert not judge(RoundtripStructure(), **(SAME | facts))


def test_dtypes_of_tensors_between_layers_are_said_once_as_advice():
    dtypes = [
        {"path": f"layers[{i}].inbound_nodes[0].args[0].config.dtype", "before": a, "after": b}
        for i, (a, b) in enumerate([("bfloat16", "float32")] * 2)
    ]
    (alert,) = judge(RoundtripStructure(), **(SAME | {"config_changed": dtypes}))
    assert (alert.subject, alert.severity) == ("dtype of tensors", Severity.ADVICE)
    assert "layers[0]" in alert.message
