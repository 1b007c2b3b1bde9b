"""The demo's four trainings, and the numbers that tell each one's story."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trainsanity_server


@dataclass(frozen=True)
class Contrast:
    """Two signals to be told beside each other.

    Attributes:
        shown, true: signals: what Keras showed, and what is so.
        text_shown, text_true: what to say, with one place for the number.
    """

    shown: str
    true: str
    text_shown: str
    text_true: str

    def told(self, last: Mapping[str, float]) -> tuple[str, str]:
        """Both sentences, from the signals' last values; a signal that is missing says so."""
        return _filled(self.text_shown, last.get(self.shown)), _filled(
            self.text_true, last.get(self.true)
        )


def _filled(text: str, value: float | None) -> str:
    return text.format(value) if value is not None else re.sub(r"\{.*?\}", "(not measured)", text)


@dataclass(frozen=True)
class Story:
    """One training.

    Attributes:
        script: file under examples/demo.
        run_name: the name that the script gives its run.
        contrasts: what to compare in the last line.
    """

    script: str
    run_name: str
    contrasts: tuple[Contrast, ...]

    @property
    def path(self) -> Path:
        return scripts_folder() / self.script

    def line(self, run: Mapping[str, Any], last: Mapping[str, float], url: str) -> str:
        """What Keras reported, what is true, where to look.

        Args:
            run: the run as the API gives it.
            last: each signal's last value.
            url: address of the run's page.
        """
        told = [contrast.told(last) for contrast in self.contrasts]
        shown = ", ".join(dict.fromkeys(shown for shown, _ in told))
        true = ", ".join(true for _, true in told)
        return f"{self.run_name}: Keras reported {shown}; true: {true}; {_alerts(run)}, see {url}"


def _alerts(run: Mapping[str, Any]) -> str:
    counts = [f"{n} {severity}" for severity, n in run["alert_counts"].items() if n]
    return "alerts: " + ", ".join(counts) if counts else "no alerts"


_OVER_REAL_TOKENS = Contrast(
    "accuracy/reported", "accuracy/unmasked", "accuracy {:.3f}", "{:.3f} over real tokens"
)

STORIES = (
    Story("residual_plus.py", "residual written x + y", (_OVER_REAL_TOKENS,)),
    Story("residual_add.py", "residual written Add()", (_OVER_REAL_TOKENS,)),
    Story(
        "small_embedding.py",
        "embedding left at 50 rows",
        (
            Contrast(
                "accuracy/reported",
                "embedding:embedding/id_max",
                "accuracy {:.3f} and no error",
                "ids up to {:.0f} in the last batch, without such rows in the table",
            ),
        ),
    ),
    Story(
        "hidden_learning_rate.py",
        "learning rate and weights not used",
        (
            Contrast(
                "learning_rate/declared",
                "learning_rate/effective",
                "learning rate {:.2g}",
                "the weights moved by {:.2g}",
            ),
            Contrast(
                "accuracy/reported",
                "accuracy/weighted",
                "accuracy {:.3f}",
                "{:.3f} with sample weights",
            ),
        ),
    ),
)


def scripts_folder() -> Path:
    """In a wheel the scripts lie in the package, in a checkout under examples/."""
    package = Path(trainsanity_server.__file__).parent
    installed = package / "examples" / "demo"
    return installed if installed.is_dir() else package.parents[1] / "examples" / "demo"
