"""Cases of the zoo, which is made for TensorFlow, on the other backends."""

from __future__ import annotations

import keras
import pytest
from tests.zoo.bugs import logits_not_used
from tests.zoo.case import Case, all_cases, run

# Of each kind some; masks on JAX have a file of their own.
NAMES = {
    "attribute_lr",
    "branch_overwritten",
    "class_weight_keys",
    "duplicate_layers",
    "evaluate_cached",
    "head_without_loss",
    "loss_broadcast",
    "metric_lost_on_reload",
    "order_repeats",
    "steps_not_held",
    "weights_on_one_number",
}
OF_MASKS = {"layer_without_masking", "mask_from_predictions", "mask_lost_at_plus"}
BACKEND = keras.backend.backend()

pytestmark = pytest.mark.skipif(BACKEND == "tensorflow", reason="tests/zoo has them all")


def cases() -> list[Case]:
    names = NAMES | (OF_MASKS if BACKEND == "torch" else set())
    return [case for case in all_cases() if case.name in names]


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_rule_speaks_and_the_twin_is_left_alone(case: Case) -> None:
    outcome = run(case)
    assert not outcome.twin
    assert outcome.found, f"{case.rule} did not speak; others did: {outcome.others}"


def test_a_crossentropy_of_a_softmax_is_cut_off() -> None:
    """Only on TensorFlow does Keras find the logits."""
    keras.utils.set_random_seed(7)
    (found,) = logits_not_used.healthy().judge().of("loss-precision-lost")
    shown, true = (witness.value for witness in found.witnesses)
    assert shown < 0.5 * true
