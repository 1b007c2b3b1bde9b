"""How programs of these tests tell what they found: as JSON on their last line."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]


def answer_of(program: str, *arguments: str, **environment: str) -> Any:
    """Runs a module of this folder in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", f"tests.distributed.{program}", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


def digest(arrays: Iterable[Any]) -> str:
    """The same for arrays that are the same to the bit."""
    found = hashlib.blake2b()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def told(run: Any) -> dict[str, Any]:
    """A spooled run as plain data; NaN becomes None."""
    judgement = run.judge()
    return {
        "signals": {
            name: [None if np.isnan(v) else float(v) for v in run.signal(name)[1]]
            for name in run.names
        },
        "failed": [audit.facts for audit in run.audits("probe_failed")],
        "said": [[rule.id, f.message] for rule, f in judgement.at_least("warning")],
        "verdicts": judgement.verdicts,
    }
