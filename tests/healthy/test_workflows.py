"""Nothing is said at `warning` or above about ordinary ways to train."""

from __future__ import annotations

import keras
import pytest
from tests.healthy.workflows import Workflow, workflows_of


@pytest.mark.parametrize(
    "train", workflows_of(keras.backend.backend()), ids=lambda train: train.__name__
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # what Keras has to say is not tested here
def test_is_left_alone(train: Workflow) -> None:
    keras.backend.clear_session()
    keras.utils.set_random_seed(11)
    runs = train()
    for run in runs if isinstance(runs, list) else [runs]:
        said = [(rule.id, f.subject, f.message) for rule, f in run.judge().at_least("warning")]
        assert said == []
        failed = [a.facts["probe"] + ": " + a.facts["error"] for a in run.audits("probe_failed")]
        assert failed == []
