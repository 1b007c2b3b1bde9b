"""What audits tell of layers; a client may have sent anything in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def layers_of(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of an audit, in its order."""
    layers = facts.get("layers")
    return [one for one in layers if isinstance(one, Mapping)] if isinstance(layers, list) else []


def shape_text(shape: Any) -> str:
    """`(None, 40, 16)`"""
    if not isinstance(shape, (list, tuple)):
        return ""
    return "(" + ", ".join("None" if size is None else str(size) for size in shape) + ")"
