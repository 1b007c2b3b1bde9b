"""One watched call of `fit` or `evaluate`, from `set_model` to its end."""

from __future__ import annotations

import logging
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import keras

from trainsanity import backends, fit_arguments, identity
from trainsanity.boundary import Boundary
from trainsanity.errors import CannotAudit
from trainsanity.fit_arguments import FitArguments
from trainsanity.forward import fixed_batch
from trainsanity.probes import all_probes
from trainsanity.probes.probe import Probe
from trainsanity.run import Run
from trainsanity.settings import Settings
from trainsanity.stream import RunStream
from trainsanity.tape import DEPTH, READ_EVERY, Tape, TapeReader, TapeRows
from trainsanity.taps import Taps

log = logging.getLogger("trainsanity")

SAMPLE_ROWS = 8  # of the training data, kept in the process for audits
START_UP_SECONDS = 0.5  # that audits of the sample may take at a time
LAST_SECONDS = 3.0  # that those left at the end of training may take at least
READ_SECONDS = 0.4  # the tape is read after this time even if few batches have run
SLOW_READ_SECONDS = 1.0  # readings that belong to no step, such as memory


# Model -> the session that watches it.
_watching: weakref.WeakKeyDictionary[Any, weakref.ref[Session]] = weakref.WeakKeyDictionary()


class Session:
    """Brings model, taps, probes and stream together; every entry goes through the boundary.

    Args:
        arguments: what the user passed to the watched call.
        params: gives Keras' callback parameters, known from `on_train_begin` on.
    """

    def __init__(
        self,
        model: Any,
        settings: Settings,
        run_id: str,
        arguments: FitArguments,
        probe_data: Any,
        params: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.model = model
        self.run_id = run_id
        self._settings = settings
        self._arguments = arguments
        self._probe_data = probe_data
        self._params = params
        self._boundary = Boundary(self._report_failure)
        self._stream: RunStream | None = None
        self._run: Run | None = None
        self._probes: list[Probe] = []
        self._taps: Taps | None = None
        self._train: TapeReader | None = None
        self._test: TapeReader | None = None
        self._wrapped: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {}
        self._test_executions = 0
        self._looked_for_sample = False
        self._sample_shown = False
        self._auditors: list[Probe] = []
        self._opened = time.monotonic()
        self._begun = False
        self._ended = False
        self._in_test = False
        self._last_read = 0.0
        self._last_slow_read = 0.0
        self._last_alerts: list[dict[str, Any]] = []
        self._stop = False

    # what users may ask

    @property
    def run_url(self) -> str:
        return self._stream.run_url if self._stream else ""

    @property
    def alerts(self) -> list[dict[str, Any]]:
        return self._stream.alerts if self._stream else []

    # before Keras makes its functions

    def attach(self) -> None:
        self._boundary.call("callback", self._take_over)
        if not self._ended:
            self._boundary.call("callback", self._attach)

    def _take_over(self) -> None:
        """Only one session may watch a model: the first of one call, or the latest of
        several calls.
        """
        known = _watching.get(self.model)
        other = known() if known is not None else None
        if other is not None and not other._ended:
            iterator = self._arguments.get("epoch_iterator")
            if iterator is not None and iterator is other._arguments.get("epoch_iterator"):
                self._ended = True
                log.warning(
                    "trainsanity: two SanityCallbacks in one call; only the first one watches."
                )
                return
            # Its `fit` was left by an exception whose traceback keeps it alive.
            other.abandon()
        _watching[self.model] = weakref.ref(self)

    def _attach(self) -> None:
        backend = backends.active()
        kind = "evaluate" if self._arguments.call == "evaluate" else "fit"
        self._stream = RunStream(self._settings, self.run_id, self._header(kind), self._hear)
        self._run = run = Run(self.model, backend, self._stream, self._settings, kind=kind)
        run.optimizer = getattr(self.model, "optimizer", None)
        run.guard = self._boundary.call
        run.fit = self._arguments
        run.sample_rows = fixed_batch(self.model) or SAMPLE_ROWS
        run.sample = self._sample(run)
        self._probes = [
            probe
            for make in all_probes()
            if (probe := self._boundary.call(make.name, make, run)) is not None
        ]
        self._tell("on_begin")
        if self.model.built:
            self._show_sample()
        self._boundary.call("taps", self._install_taps)
        self._watch_frame()

    def _sample(self, run: Run) -> tuple[Any, Any, Any] | None:
        if self._probe_data is not None:
            x, y, *weight = self._probe_data
            return (x, y, weight[0] if weight else None)
        sample: tuple[Any, Any, Any] | None = self._boundary.call(
            "sample", fit_arguments.sample_of_arrays, self._arguments, run.sample_rows
        )
        return sample

    def _install_taps(self) -> None:
        run = self._run
        assert run is not None
        reason = _why_step_must_stay(self.model)
        if reason is not None:
            run.not_testable["taps"] = reason
            return
        steps = int(self.model.steps_per_execution or 1)
        depth, width = max(DEPTH, 4 * steps), _width(self.model)
        train, test = (Tape(run.backend, depth, width) for _ in range(2))
        train.carry(run.kept)
        self._train, self._test = TapeReader(train, run.backend), TapeReader(test, run.backend)
        self._taps = Taps(run, self._probes, self._boundary, train, test)
        self._taps.install()

    def _watch_frame(self) -> None:
        """Ends the run when `fit` is left by an exception, of which callbacks are not told."""
        iterator = self._arguments.get("epoch_iterator")
        if iterator is not None:
            weakref.finalize(iterator, self.abandon)

    def _header(self, kind: str) -> dict[str, Any]:
        settings = self._settings
        name = settings.run_name or f"{self.model.name} {time.strftime('%H:%M:%S')}"
        return {
            "project": settings.project,
            "name": name,
            "tags": list(settings.tags),
            "kind": kind,
            "session_id": identity.session_id(),
            "started_at": time.time(),
            "keras_version": keras.__version__,
            "backend": keras.backend.backend(),
            "config": dict(settings.config),
            "expect": settings.expect.as_facts(),
            "environment": {"host": identity.host()},
        }

    # Keras' hooks

    def begin(self, kind: str) -> None:
        if self._run is None or self._ended:
            return
        self._begun = True
        self._run.kind = kind
        self._run.shared["declared_steps"] = self._params().get("steps")
        self._say_begin()
        if kind == "fit":
            self._boundary.call("callback", self._wrap, "train_function", self._around_training)

    def _wrap(self, name: str, around: Callable[..., Any]) -> None:
        """Puts `around(function, ...)` around one of the functions that Keras has made."""
        original = getattr(self.model, name)
        if original is None or getattr(original, "is_trainsanity", False):
            return

        def function(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        function.is_trainsanity = True  # type: ignore[attr-defined]
        self._wrapped[name] = (function, original)
        setattr(self.model, name, function)

    def _around_training(self, original: Callable[..., Any], *args: Any) -> Any:
        """One execution of the train function; hooks for batches would make Keras dispatch
        callbacks in step.
        """
        run = self._run
        assert run is not None
        args = self._boundary.call("sample", self._catch_sample, args, default=args)
        run.state = args[0] if len(args) > 1 else None
        self._tell("before_step", run.step + 1)
        run.state = None
        try:
            result = original(*args)
        except run.backend.end_of_data_errors():
            raise
        except BaseException as error:
            if not self._is_ours(error):
                self.abandon()
                raise
            result = self._without_taps(error)(*args)
        run.step += self._batches_of_one_execution()
        self._tell("after_step", run.step)
        if self._train is not None:
            self._boundary.call("tape", self._train.note, self.model, result)
        if self._is_time_to_read():
            self._read_train()
        if self._stop:
            self.model.stop_training = True
        return result

    def _catch_sample(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Keeps the first rows of the first batch where the data comes from a Python iterator."""
        run = self._run
        assert run is not None
        if run.sample is not None or self._looked_for_sample:
            return args
        self._looked_for_sample = True
        caught = run.backend.peek(args[-1])
        if caught is None:
            return args
        batch, iterator = caught
        run.sample = fit_arguments.sample_of_batch(batch, run.sample_rows)
        return (*args[:-1], iterator)

    def _batches_of_one_execution(self) -> int:
        """With `steps_per_execution` the last execution of an epoch may be shorter; corrected at
        its end.
        """
        run = self._run
        assert run is not None
        steps = int(self.model.steps_per_execution or 1)
        declared = run.shared.get("declared_steps")
        if steps == 1 or not declared:
            return steps
        left = run.epoch_first_step + int(declared) - 1 - run.step
        return min(steps, left) if left > 0 else steps

    def _around_testing(self, original: Callable[..., Any], *args: Any) -> Any:
        result = original(*args)
        self._test_executions += 1
        if self._test is not None:
            self._boundary.call("tape", self._test.note, self.model, result)
        steps = int(self.model.steps_per_execution or 1)
        if self._test_executions % max(1, READ_EVERY // steps) == 0:
            self._read_test()
        return result

    def _is_ours(self, error: BaseException) -> bool:
        """Whether the compiled step failed in an operation that one of our taps has put there."""
        text = str(error)
        ours = ("trainsanity/probes/", "trainsanity/backends/", "trainsanity/tape.py")
        return self._taps is not None and self._taps.installed and any(p in text for p in ours)

    def _without_taps(self, error: BaseException) -> Callable[..., Any]:
        """The last resort: the plain step, so that training goes on. One batch of data is lost to
        it.
        """
        log.warning(
            "trainsanity: an operation of a tap failed in the compiled step; the taps are "
            "removed and "
            "training goes on without them from the next batch.",
            exc_info=error,
        )
        self._report_failure("taps", error, "".join(traceback.format_exception(error)))
        assert self._taps is not None
        self._train = self._test = None
        self._taps.remove()
        self.model.make_train_function()
        plain: Callable[..., Any] = self.model.train_function
        self._boundary.call("callback", self._wrap, "train_function", self._around_training)
        return plain

    def epoch_begin(self, epoch: int) -> None:
        if self._run is None:
            return
        self._run.epoch = epoch
        self._run.epoch_first_step = self._run.step + 1
        self._tell("on_epoch_begin", epoch)

    def _is_time_to_read(self) -> bool:
        if self._train is None or self._run is None:
            return False
        every = self._settings.update_freq
        if every == "epoch":
            return self._run.step - self._train.seen >= self._train.tape.depth // 2
        if isinstance(every, int):
            return self._run.step - self._train.seen >= min(every, self._train.tape.depth // 2)
        behind = self._run.step - self._train.seen
        return behind >= READ_EVERY or time.monotonic() - self._last_read >= READ_SECONDS

    def epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        if self._run is None:
            return
        self._read_train(whole=True)
        if self._train is not None and self._is_taped:
            self._run.step = self._train.seen
        self._run.shared["taped"] = self._is_taped
        self._run.shared["progress_total"] = self._params().get("steps")
        self._slow_readings(force=True)
        self._audit(START_UP_SECONDS)
        self._show_sample()
        self._tell("on_epoch_end", epoch, dict(logs))

    @property
    def _is_taped(self) -> bool:
        """Whether the tape runs: its count is then the one of the batches."""
        return self._train is not None and "tape" not in self._boundary.off

    def _show_sample(self) -> None:
        """Lets probes run audits on the captured rows, once, at a moment when the model is
        whole.
        """
        run = self._run
        if run is None or self._sample_shown or not self.model.built:
            return
        if run.sample is None:
            caught = self._boundary.call("sample", run.backend.caught_sample, run)
            if caught is not None:
                run.sample = fit_arguments.sample_of_batch(caught, run.sample_rows)
        if run.sample is None:
            return
        self._sample_shown = True
        self._auditors = sorted(self._probes, key=lambda probe: probe.cost)
        self._audit(START_UP_SECONDS)

    def _audit(self, seconds: float) -> None:
        """Lets probes audit the sample until the time is up; the others wait for an epoch end."""
        run = self._run
        if run is None or not self._auditors:
            return
        started = time.monotonic()
        while self._auditors and time.monotonic() - started < seconds:
            self._tell_one(self._auditors.pop(0), "on_sample")
        run.shared.pop("passes", None)  # the tensors take memory

    def _audit_rest(self) -> None:
        """At the end of training: what is left, as far as the share of the time allows it."""
        spent = time.monotonic() - self._opened
        self._audit(max(LAST_SECONDS, self._settings.audit_budget * spent))
        while self._auditors:
            probe = self._auditors.pop(0)
            if type(probe).on_sample is not Probe.on_sample:
                self._say_not_testable(probe, "audits had used up their share of the training time")

    def test_begin(self) -> None:
        if self._run is None or self._ended:
            return
        self._in_test = True
        if not self._begun:
            self.begin("evaluate")
        self._boundary.call("callback", self._wrap, "test_function", self._around_testing)
        if self._test is not None:
            # Rows of passes that were not ours, such as `evaluate` inside another callback.
            self._boundary.call("tape", self._test.read, True)
        self._tell("on_test_begin")

    def test_end(self, logs: Mapping[str, Any]) -> None:
        if self._run is None or not self._in_test:
            return
        self._in_test = False
        self._run.shared["progress_total"] = self._params().get("steps")
        self._read_test(whole=True)
        self._tell("on_test_end", dict(logs))
        if self._run.kind == "evaluate":
            self.end("finished")

    def end(self, state: str) -> None:
        """The run is over; idempotent."""
        if self._ended:
            return
        self._read_train(whole=True)
        self._slow_readings(force=True)
        self._boundary.call("callback", self._audit_rest)
        self._tell("on_end")
        self._boundary.call("taps", self._remove_taps)
        self._tell("on_released")
        self._close(state)

    def abandon(self) -> None:
        """The watched call was left without its end: an exception, or the next call has begun."""
        if not self._ended:
            self._boundary.call("callback", self._read_train)
            self._close("failed" if self._begun else "finished")

    def _close(self, state: str) -> None:
        self._ended = True
        self._boundary.call("taps", self._remove_taps)
        self._tell("on_closed")
        if self._stream is None:
            return
        report = self._boundary.call("stream", self._stream.close, state)
        if report is not None and self._begun:
            self._say_end(report)

    def _remove_taps(self) -> None:
        for name, (ours, original) in self._wrapped.items():
            if getattr(self.model, name) is ours:
                setattr(self.model, name, original)
        if self._taps is not None:
            self._taps.remove()

    # reading

    def _read_train(self, *, whole: bool = False) -> None:
        """`whole` where the model's variables are in place, as at the end of an epoch."""
        if self._train is None or self._run is None:
            return
        self._last_read = time.monotonic()
        rows = self._boundary.call("tape", self._train.read, whole)
        if rows is not None and len(rows):
            self._pass_on(rows, "on_rows", "latest")
        self._slow_readings()

    def _read_test(self, *, whole: bool = False) -> None:
        if self._test is None or self._run is None:
            return
        rows = self._boundary.call("tape", self._test.read, whole)
        if rows is not None and len(rows):
            self._pass_on(rows, "on_test_rows", "test_latest")

    def _pass_on(self, rows: TapeRows, hook: str, latest: str) -> None:
        run = self._run
        assert run is not None
        made: dict[str, Any] = {}
        for probe in self._probes:
            made.update(self._boundary.call(probe.name, getattr(probe, hook), rows, default={}))
        shown = {k: v for k, v in rows.columns.items() if not k.startswith("_")}
        columns = {**shown, **made}
        run.shared[latest] = {name: float(values[-1]) for name, values in columns.items()}
        if run.kind == "evaluate":
            run.step = int(rows.steps[-1])
        if hook == "on_rows" or run.kind == "evaluate":
            self._boundary.call("stream", run.emit, rows.steps, columns)
        if rows.lost:
            self._boundary.call("tape", self._report_lost, rows)

    def _report_lost(self, rows: TapeRows) -> None:
        assert self._run is not None
        reason = f"{rows.lost} batches were overwritten before they could be read"
        self._run.audit("thinned", {"signal": "*", "reason": reason, "stride": 1})

    def _slow_readings(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if force or now - self._last_slow_read >= SLOW_READ_SECONDS:
            self._last_slow_read = now
            self._tell("on_sample_time")

    def _tell(self, hook: str, *args: Any) -> None:
        for probe in self._probes:
            self._tell_one(probe, hook, *args)

    def _tell_one(self, probe: Probe, hook: str, *args: Any) -> None:
        self._boundary.call(probe.name, self._hear_out, probe, hook, *args)

    def _hear_out(self, probe: Probe, hook: str, *args: Any) -> None:
        try:
            getattr(probe, hook)(*args)
        except CannotAudit as reason:
            self._say_not_testable(probe, str(reason))

    def _say_not_testable(self, probe: Probe, reason: str) -> None:
        assert self._run is not None
        self._run.audit(probe.audit or probe.name, {"not_testable": reason})

    # people

    def _report_failure(self, part: str, error: BaseException, text: str) -> None:
        if self._run is not None:
            facts = {"probe": part, "error": f"{type(error).__name__}: {error}", "traceback": text}
            self._run.audit("probe_failed", facts)

    def _hear(self, alert: dict[str, Any]) -> None:
        """A new or changed alert, told by the server; in the sender's thread."""
        action = self._settings.on_alert
        if callable(action):
            self._boundary.call("on_alert", action, alert)
            return
        known = [a for a in self._last_alerts if a["id"] == alert["id"]]
        if known or alert.get("state") != "open":
            return
        self._last_alerts.append(alert)
        if action == "stop" and alert["severity"] == "critical":
            self._stop = True
        if action in ("warn", "stop"):
            print(_alert_text(alert), file=sys.stderr, flush=True)

    def _say_begin(self) -> None:
        if not self._settings.verbose:
            return
        where = self.run_url or f"offline, {self._settings.spool_dir}"
        print(f"trainsanity: watching this run: {where}", file=sys.stderr, flush=True)

    def _say_end(self, report: Any) -> None:
        if not self._settings.verbose:
            return
        open_alerts = [a for a in self.alerts if a.get("state") in ("open", "acknowledged")]
        counts = ", ".join(
            f"{n} {severity}"
            for severity in ("critical", "warning", "advice")
            if (n := sum(a["severity"] == severity for a in open_alerts))
        )
        if report.settled:
            text = f"{counts or 'no alerts'}: {self.run_url}"
        else:
            text = f"{counts + ' so far. ' if counts else ''}{report.hint}"
        print(f"trainsanity: {text}", file=sys.stderr, flush=True)


def _why_step_must_stay(model: Any) -> str | None:
    """Why the compiled step of an earlier `fit` must not be made anew; None where it may.

    A step that Keras traced before keeps what was true then: trainable flags, values of Python
    callables.
    Making it anew would change how this model trains, so it is left alone and the taps stay out.
    """
    if model.train_function is None:
        return None
    compiled = getattr(model, "_compiled_trainable_state", None) or {}
    if any(layer.trainable != flag for layer, flag in compiled.items()):
        return (
            "`trainable` was changed since compile, and the compiled step is that of an earlier fit"
        )
    if callable(getattr(getattr(model, "optimizer", None), "_learning_rate", None)):
        return "the compiled step of an earlier fit holds the value of a Python learning rate"
    return None


def _width(model: Any) -> int:
    """Columns the tape may need, by the number of metrics, outputs, inputs and embeddings."""
    compiled = getattr(model, "_compile_metrics", None)
    named = (
        keras.tree.flatten([compiled._user_metrics, compiled._user_weighted_metrics])
        if compiled
        else []
    )
    outputs = len(keras.tree.flatten(getattr(model, "outputs", None) or [0]))
    embeddings = sum(isinstance(x, keras.layers.Embedding) for x in model._flatten_layers())
    inputs = len(keras.tree.flatten(getattr(model, "inputs", None) or [0]))
    return 52 + outputs * (32 + 12 * len(named)) + 4 * embeddings + 5 * inputs


def _alert_text(alert: Mapping[str, Any]) -> str:
    lines = [f"trainsanity [{alert['severity'].upper()}] {alert['title']}", f"  {alert['message']}"]
    if alert.get("suggestion"):
        lines.append(f"  What to do: {alert['suggestion']}")
    return "\n".join(lines)
