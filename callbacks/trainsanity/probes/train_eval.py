"""The same rows in training mode and in inference mode."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from trainsanity.difference import numpy_of
from trainsanity.errors import CannotAudit
from trainsanity.forward import call_model, refused, untouched, values_as_now
from trainsanity.origin import is_of_keras
from trainsanity.probes.probe import Probe
from trainsanity.recording import rows_of

PASSES = 4  # in training mode, each with other random numbers


class TrainEval(Probe):
    """Makes the audit `train_eval` of the loss at epoch ends, on the captured rows."""

    name = "train_eval"

    def on_epoch_sample(self, epoch: int) -> None:
        reason = self._why_not()
        if reason is not None:
            if epoch == 0:
                self.run.audit(self.name, {"not_testable": reason})
            return
        model = self.run.model
        mode_layers = [x for x in model._flatten_layers() if _has_modes(x)]
        may_have = [x for x in model._flatten_layers() if _is_asked_of_the_mode(x)]
        count = PASSES if mode_layers or may_have else 1
        with untouched(model):
            passes = [self._loss(training=True) for _ in range(count)]
        with untouched(model):
            inference = self._loss(training=False)
        if not mode_layers and len(set(passes)) > 1:  # random numbers of no generator of a layer
            mode_layers = may_have
        momenta = [float(x.momentum) for x in mode_layers if hasattr(x, "moving_mean")]
        optimizer = self.run.optimizer
        self.run.audit(
            self.name,
            {
                "rows": rows_of(self.run.sample[0]),
                "passes": len(passes),
                "mode_layers": [layer.name for layer in mode_layers],
                "updates": int(self.run.backend.read(optimizer._iterations)) if optimizer else 0,
                "momentum": max(momenta, default=None),
                "keys": [
                    {
                        "key": "loss",
                        "training": float(np.mean(passes)),
                        "spread": float(np.std(passes)),
                        "inference": inference,
                        "higher_is_better": False,
                    }
                ],
            },
        )

    def _why_not(self) -> str | None:
        run = self.run
        if run.sample is None or run.sample[1] is None:
            return "no labelled sample of the data could be taken; pass probe_data=(x, y)"
        loss = getattr(run.model, "_compile_loss", None)
        if loss is None or not is_of_keras(type(run.model).compute_loss):
            return "the loss is computed by the model itself"
        return None

    def _loss(self, *, training: bool) -> float:
        """The compiled loss without added losses."""
        x, y, weight = self.run.sample
        prediction = call_model(self.run.model, x, training=training)
        compiled = self.run.model._compile_loss
        if not compiled.built:
            raise CannotAudit("the loss has not been built")
        state = [v for metric in compiled.metrics for v in metric.variables]
        with values_as_now(state), refused("the loss of the captured rows raises"):
            value = compiled(y, prediction, weight)
        if len(value.shape):
            raise CannotAudit("the loss has no reduction")
        return float(numpy_of(value))


def _has_modes(layer: Any) -> bool:
    """Whether training is known to change what this layer gives."""
    if not getattr(layer, "_call_has_training_arg", False):
        return False
    if not is_of_keras(type(layer)):  # statistics of batches, random numbers
        held = ("_non_trainable_variables", "_seed_generators")
        return any(getattr(layer, name, None) for name in held)
    if isinstance(layer, keras.Model):
        return False
    if getattr(layer, "rate", None) or hasattr(layer, "moving_mean"):
        return True
    if any(getattr(layer, name, 0.0) for name in ("dropout", "recurrent_dropout", "stddev")):
        return True
    known = ("Dropout", "Random", "Noise", "Augment", "BatchNorm", "Spectral")
    # What other libraries' layers do is not seen.
    others = ("TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer")
    return any(word in type(layer).__name__ for word in (*known, *others))


def _is_asked_of_the_mode(layer: Any) -> bool:
    """Whether code of the user's own learns which mode it is in."""
    return getattr(layer, "_call_has_training_arg", False) and not is_of_keras(type(layer))
