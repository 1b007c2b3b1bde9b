"""How programs of these tests tell what they found: as JSON on their last line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

ROOT = Path(__file__).parents[2]


def answer_of(program: str, *arguments: str, **environment: str) -> Any:
    """Runs a module of this folder in a process of its own."""
    (answer,) = answers_of(program, [arguments], **environment)
    return answer


def answers_of(program: str, calls: list[tuple[str, ...]], **environment: str) -> list[Any]:
    """Runs it several times at once."""
    with contextlib.ExitStack() as stack:
        started = [_started(stack, program, arguments, environment) for arguments in calls]
        return [_answer(*each) for each in started]


def _started(
    stack: contextlib.ExitStack, program: str, arguments: tuple[str, ...], environment: Any
) -> tuple[subprocess.Popen[str], IO[str]]:
    # A pipe that nobody reads would fill up.
    errors = stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 - the stack's
    process = subprocess.Popen(
        [sys.executable, "-m", f"tests.distributed.{program}", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", ""))
            ),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    stack.enter_context(process)
    stack.callback(process.kill)
    return process, errors


def _answer(process: subprocess.Popen[str], errors: IO[str]) -> Any:
    output, _ = process.communicate(timeout=240)
    errors.seek(0)
    assert process.returncode == 0, errors.read()[-4000:]
    return json.loads(output.splitlines()[-1])


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
        "not_testable": run.audits("columns")[-1].facts["not_testable"],
        "processes": [audit.facts for audit in run.audits("processes")],
    }
