from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainsanity.rules.comparison import maps, measured, merged, text, unit_roundoff
from trainsanity.rules.history import RunHistory, RunView, history
from trainsanity.rules.rule import Finding, Rule, Severity, Witness
from trainsanity.wire import Audit


@dataclass(frozen=True)
class DtypePolicyMismatch(Rule):
    """A layer computes in another dtype than it declares.

    Compares: the dtype of a layer's symbolic output and of its policy with the dtype of the real
    tensor; float64 with the dtype in which Keras multiplies it. Layers that were given a dtype of
    their own are left out, as a float32 head under mixed precision is good practice. Layers of
    Keras itself that return more digits than they declare (CategoryEncoding in Keras 3.15) are
    advice: nobody's numbers suffer.

    Why: half precision that is not there costs twice the memory; half precision where float32
    was declared costs digits.

    Try: cast to the layer's compute_dtype instead of floatx(). On JAX, allow 64 bits where the
    policy is float64: JAX makes float32 of it by itself.

    Source: TensorFlow issue 40687: relu with a threshold ignored the float16 policy. JAX
    documentation, "Default dtypes and the X64 flag".
    """

    id = "dtype-policy-mismatch"
    severity = Severity.WARNING
    needs = ("audit:dtypes",)

    @staticmethod
    def fires_on() -> RunHistory:
        """An activation that casts to floatx under mixed_float16."""
        return history(audits=[("dtypes", 1, {"layers": [_LAYER | {"actual": "float32"}]})])

    @staticmethod
    def quiet_on() -> RunHistory:
        """A float32 head on purpose."""
        head = _LAYER | {"own_policy": True, "symbolic": "float32", "actual": "float32"}
        return history(audits=[("dtypes", 1, {"layers": [_LAYER, head]})])

    def check(self, run: RunView) -> list[Finding]:
        found: list[Finding | None] = []
        for audit in measured(run, "dtypes"):
            rows = maps(audit.facts, "layers")
            truncated = _truncated(rows) if run.facts.backend == "jax" else []
            if truncated:
                found.append(_truncates(audit, len(truncated)))
            found.append(_multiplies(audit, run.facts.backend))
            found += [_check(audit, row) for row in rows if row not in truncated]
        return merged(f for f in found if f is not None)


def _truncated(rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Layers that declare float64 and return float32; none where a single one returns float64."""
    declared = [
        row
        for row in rows
        if "float64" in (text(row, "symbolic"), text(row, "compute"))
        and "float" in (text(row, "actual") or "")
    ]
    return declared if {text(row, "actual") for row in declared} == {"float32"} else []


def _truncates(audit: Audit, layers: int) -> Finding:
    return Finding(
        subject="64 bits",
        title="JAX computes in float32 what is declared float64",
        message=f"Layers that declare float64 and return float32: {layers:,}, all of them. "
        "JAX makes 32 bits of 64, in weights too, unless it is told otherwise at the start.",
        witnesses=(
            Witness("policy", "float64", "dtype"),
            Witness("real output", "float32", "dtype"),
        ),
        suggestion="Set JAX_ENABLE_X64=1 before Python starts, or call "
        "jax.config.update('jax_enable_x64', True) before all else; or declare float32.",
        first_step=audit.step,
        last_step=audit.step,
        certainty="dtypes are compared exactly.",
    )


def _multiplies(audit: Audit, backend: str) -> Finding | None:
    """Where Keras makes products of float64 in fewer digits."""
    products = audit.facts.get("float64_products")
    if not isinstance(products, Mapping) or text(products, "actual") != "float32":
        return None
    named = products.get("layers")
    layers = len(named) if isinstance(named, list) else 0
    return Finding(
        subject="64 bits",
        title=f"Keras on {backend} multiplies float64 in float32",
        message=f"Layers that multiply float64 and return it: {layers:,}. Here keras.ops.matmul "
        "makes the product of two float64 tensors in float32, so that of the digits that float64 "
        "shows about 7 are right. This is a fault of Keras, not of your model.",
        witnesses=(
            Witness("factors", "float64", "dtype"),
            Witness("their product", "float32", "dtype"),
        ),
        suggestion="Declare float32, which is as exact here and faster; or train on TensorFlow, or "
        "on JAX with 64 bits allowed, where products are made in float64.",
        first_step=audit.step,
        last_step=audit.step,
        certainty="dtypes are compared exactly, for a product of two small matrices.",
    )


def _check(audit: Audit, row: Mapping[str, Any]) -> Finding | None:
    symbolic, compute, actual = (text(row, key) for key in ("symbolic", "compute", "actual"))
    if actual is None or row.get("own_policy"):
        return None
    if symbolic is not None and symbolic != actual:
        finer = unit_roundoff(actual) < unit_roundoff(symbolic)
        severity = Severity.ADVICE if row.get("of_keras") and finer else None
        return _finding(audit, row, "symbolic output", symbolic, actual, severity)
    if compute is not None and compute != actual:
        return _finding(audit, row, "policy", compute, actual, Severity.ADVICE)
    return None


def _finding(
    audit: Audit,
    row: Mapping[str, Any],
    declared_by: str,
    declared: str,
    actual: str,
    severity: Severity | None,
) -> Finding:
    name = text(row, "name") or "?"
    site = f" at {text(row, 'site')}" if text(row, "site") else ""
    return Finding(
        subject=name,
        title=f"{name} declares {declared} and returns {actual}",
        message=(
            f"{name} ({text(row, 'class') or 'layer'}{site}) has policy "
            f"{text(row, 'policy') or '?'}; its {declared_by} says {declared}, the real output is "
            f"{actual}. A cast inside the layer, or a constant of another dtype, decides "
            "instead of the policy."
        ),
        witnesses=(
            Witness(declared_by, declared, "dtype"),
            Witness("real output", actual, "dtype"),
        ),
        suggestion=(
            "Cast to self.compute_dtype inside the layer, or give the layer dtype="
            f"{actual!r} if that is what you want."
        ),
        first_step=audit.step,
        last_step=audit.step,
        severity=severity,
        certainty="dtypes are compared exactly.",
    )


_LAYER = {
    "name": "activation",
    "class": "Activation",
    "policy": "mixed_float16",
    "own_policy": False,
    "compute": "float16",
    "symbolic": "float16",
    "actual": "float16",
}
