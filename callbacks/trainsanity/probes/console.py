"""What the process prints while it trains: how much, of which kind, and from where.

What is printed may hold the user's data, so no text is kept but that of warnings by installed
packages.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

from trainsanity import call_sites
from trainsanity.errors import CannotAudit
from trainsanity.frames import PYTHON, outward, package_of
from trainsanity.printed import Listener
from trainsanity.probes.probe import Probe

# What Keras prints above an epoch (keras/src/callbacks/progbar_logger.py).
HEADER = re.compile(r"^\s*Epoch (\d+)/\d+\s*$")
# As Python's logging, absl and TensorFlow begin a line about an error, and as Python ends one.
ERROR = re.compile(
    r"^(ERROR|CRITICAL|FATAL)\b|^[EF]\d{4} \d\d:|: [EF] \w+/|^Traceback \(most recent|^\w*Error: "
)
# How TensorFlow tells of what is deprecated (tensorflow/python/util/deprecation.py).
DEPRECATED = re.compile(r"\bFrom (?P<file>\S+\.py)(?::\d+)?:.*\bdeprecated\b")
KINDS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
RUN = re.compile(r"([^\w\s\b])\1*")
MOST_LINE = 10_000  # characters of an unfinished line that are kept
MOST_TEXTS = 20  # different origins told of in one epoch

# Files of ours that only call on what the user's training calls anyway.
WRAPPERS = (
    "console.py",
    "printed.py",
    "announced.py",
    "session.py",
    "taps.py",
    "observed.py",
    "boundary.py",
)
_OURS = str(Path(__file__).resolve().parents[1])


@dataclass
class _Printed:
    """What was printed since the last epoch ended."""

    lines: int = 0
    bytes: int = 0
    longest_run: int = 0  # of one sign, on one line
    sign: str = ""
    between: int = 0  # lines written to stderr into the unfinished line of the progress bar
    headers: list[int] = field(default_factory=list)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)  # kind, origin
    between_origin: str = ""
    warnings: Counter[tuple[str, str, str, bool]] = field(default_factory=Counter)


class Console(Probe):
    """Makes the audit `console`; listens at the `write` of the two streams, which go on as they
    were.
    """

    name = "console"

    def __init__(self, run: Any) -> None:
        super().__init__(run)
        self._printed = _Printed()
        self._open: dict[int, str] = {}  # stream -> its unfinished line
        self._run = ("", 0)  # sign and length of the run that the last write ended with
        self._bar_is_open = False
        guard = run.guard
        self._listener = Listener(
            lambda *heard: guard(self.name, self._hear, *heard),
            lambda *heard: guard(self.name, self._hear_warning, *heard),
        )
        self._can_hear = False

    def on_begin(self) -> None:
        if self.run.guard is not None:
            self._can_hear = self._listener.listen(sys.stdout, sys.stderr)

    # listening

    def _hear(self, stream: Any, text: str, frame: FrameType | None) -> None:
        if "trainsanity" in text[:64] or not text:
            return
        printed, is_bar = self._printed, _is_bar(frame)
        printed.bytes += len(text.encode("utf-8", "replace"))
        before = self._open.get(id(stream), "")
        foreign = not is_bar and self._bar_is_open and stream is not sys.stdout
        if foreign and text.strip() and not text.startswith("\n"):
            printed.between += 1
            printed.between_origin = printed.between_origin or _origin(frame)
        *whole, rest = (before + text).split("\n")
        self._measure_runs(text)
        for line in whole:
            self._read(_visible(line), frame)
        self._open[id(stream)] = _visible(rest)[-MOST_LINE:]
        if is_bar or (stream is sys.stdout and whole):
            self._bar_is_open = is_bar and bool(self._open[id(stream)].strip())

    def _measure_runs(self, text: str) -> None:
        """The longest run of one sign on one line, also where each write adds a single one."""
        printed, (sign, carried) = self._printed, self._run
        self._run = ("", 0)
        for found in RUN.finditer(text):
            length = len(found[0]) + (carried if found.start() == 0 and found[1] == sign else 0)
            if length > printed.longest_run:
                printed.longest_run, printed.sign = length, found[1]
            if found.end() == len(text):
                self._run = (found[1], length)

    def _read(self, line: str, frame: FrameType | None) -> None:
        printed = self._printed
        printed.lines += 1
        if header := HEADER.match(line):
            printed.headers.append(int(header[1]))
        elif (error := ERROR.search(line)) and len(printed.errors) < MOST_TEXTS:
            printed.errors[error[0].strip(" :"), _origin(frame)] += 1
        elif (told := DEPRECATED.search(line)) and package_of(told["file"]) is not None:
            self._count_warning("deprecation", told["file"], line)

    def _hear_warning(
        self, message: Any, category: Any, frame: FrameType | None, filename: str, lineno: int
    ) -> None:
        blamed = _caller_of(frame, filename, lineno)
        if issubclass(category, KINDS) and not _is_ours(frame):
            self._count_warning(category.__name__, blamed, str(message))

    def _count_warning(self, category: str, filename: str, text: str) -> None:
        package, found = package_of(filename), self._printed.warnings
        shown = "" if package is None else text.strip()[:200]
        key = (category, package or Path(filename).stem, shown, package is None)
        if key in found or len(found) < MOST_TEXTS:
            found[key] += 1

    # handing in

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        self._hand_in(epoch, self.run.step - self.run.epoch_first_step + 1)

    def on_test_end(self, logs: Mapping[str, Any]) -> None:
        if self.run.kind == "evaluate":
            self._hand_in(None, int(self.run.shared.get("test_batches") or 0))

    def _hand_in(self, epoch: int | None, batches: int) -> None:
        if not self._can_hear:
            raise CannotAudit("neither stdout nor stderr can be listened to")
        printed, self._printed = self._printed, _Printed()
        self.run.audit(
            self.name,
            {
                "epoch": epoch,
                "lines": printed.lines,
                "bytes": printed.bytes,
                "batches": batches,
                "headers": printed.headers,
                "longest_run": {"sign": printed.sign, "length": printed.longest_run},
                "interruptions": {"lines": printed.between, "origin": printed.between_origin},
                "error_lines": [
                    {"kind": kind, "origin": origin, "count": n}
                    for (kind, origin), n in printed.errors.items()
                ],
                "warnings": list(_warning_rows(printed)),
            },
        )

    def on_closed(self) -> None:
        self._listener.stop()


def _warning_rows(printed: _Printed) -> Iterator[dict[str, Any]]:
    for (category, package, text, user_code), count in printed.warnings.items():
        yield {
            "category": category,
            "package": package,
            "text": text,
            "count": count,
            "user_code": user_code,
        }


def _visible(line: str) -> str:
    """What is left of a line where parts of it were overwritten."""
    return next((part for part in reversed(re.split("[\r\b]+", line)) if part), "")


def _is_bar(frame: FrameType | None) -> bool:
    """Whether Keras' progress bar writes."""
    bar = ("utils/progbar.py", "utils\\progbar.py")
    return any(f.f_code.co_filename.endswith(bar) for f in islice(outward(frame), 4))


def _caller_of(frame: FrameType | None, file: str, line: int) -> str:
    """The file whose call is to blame: the one named, or, where the warning names the very line
    that raised it, the next one outward.
    """
    callers = (f for f in outward(frame) if f.f_code.co_filename != warnings.__file__)
    raised = next(callers, None)
    if raised is None or (raised.f_code.co_filename, raised.f_lineno) != (file, line):
        return file
    files = (f.f_code.co_filename for f in callers)
    return next((other for other in files if other != file), file)


def _is_ours(frame: FrameType | None) -> bool:
    """Whether a probe of ours made the call: its frame comes before any of the user's."""
    for filename in (f.f_code.co_filename for f in outward(frame)):
        if filename.startswith(_OURS):
            if not filename.endswith(WRAPPERS):
                return True
        elif package_of(filename) is None:
            return False
    return False


def _origin(frame: FrameType | None) -> str:
    """What wrote: a place in the user's code where a user's frame is innermost, else the
    installed package.
    """
    for caller in outward(frame):
        filename = caller.f_code.co_filename
        package = package_of(filename)
        if package is None and not filename.startswith(_OURS):
            return call_sites.site_of_frame(caller) or ""
        if package not in (None, PYTHON):
            return str(package)
    return PYTHON
