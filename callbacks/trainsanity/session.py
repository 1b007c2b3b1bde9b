"""One watched call of `fit` or `evaluate`, from `set_model` to its end."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import keras

from trainsanity import backends, compiled, forks, forward, optimizers, processes, unwarned
from trainsanity.boundary import Boundary
from trainsanity.compiled import CompiledFunctions
from trainsanity.executions import batches_of, counting, steps_per_execution
from trainsanity.forward import fixed_batch
from trainsanity.keras_versions import why_too_old
from trainsanity.listeners import Listeners
from trainsanity.origin import is_of_keras
from trainsanity.outside import Outside
from trainsanity.probes import all_probes
from trainsanity.processes import NoStream
from trainsanity.readings import Readings
from trainsanity.run import Run, header_of
from trainsanity.sample_audits import SampleAudits
from trainsanity.settings import Settings
from trainsanity.stream import RunStream
from trainsanity.tape import Tape, TapeReader
from trainsanity.taps import Taps
from trainsanity.terminal import Terminal
from trainsanity.watched_call import WatchedCall
from trainsanity.wrappers import Wrappers

if TYPE_CHECKING:
    from trainsanity.link import Link

log = logging.getLogger("trainsanity")

SAMPLE_ROWS = 8  # of the training data, kept in the process for audits
Function = Callable[..., Any]

# Model -> the session that watches it now.
_watching: weakref.WeakKeyDictionary[Any, weakref.ref[Session]] = weakref.WeakKeyDictionary()


class Session:
    """Brings model, taps, probes and stream together; every entry goes through the boundary.

    Args:
        call: the call to watch; falsy for a loop of the user's own.
        params: gives Keras' callback parameters, known from `on_train_begin` on.
    """

    def __init__(
        self,
        model: Any,
        settings: Settings,
        run_id: str,
        call: WatchedCall,
        probe_data: Any,
        params: Callable[[], Mapping[str, Any]],
    ) -> None:
        self.model = model
        self.run_id = run_id
        self.ended = False
        self._rests = False  # another callback of ours watches the same call, or nothing can be
        self._call = call
        self._settings = settings
        self._probe_data = probe_data
        self._params = params
        self._boundary = Boundary(self._report_failure)
        self._terminal = Terminal(settings)
        self._listeners = Listeners([], self._boundary)
        self._stream: RunStream | NoStream | None = None
        self._link: Link | None = None  # with processes that train the same model
        self._run: Run | None = None
        self._readings: Readings | None = None
        self._audits: SampleAudits | None = None
        self._taps: Taps | None = None
        self._outside: Outside | None = None
        self._functions: CompiledFunctions | None = None
        self._makers = Wrappers()
        self._wrapped: dict[str, tuple[Function, Function]] = {}  # name -> (ours, Keras')
        self._made: dict[str, list[Function]] = {}  # name -> ours and Keras', all of this call
        self._plain: dict[str, Function] = {}  # name -> what ours pass on to when all is over
        self._test_pass: int | None = None  # id of the frame of the test pass under way
        self._begun = False
        self._open_epoch: int | None = None
        self._stop = self._has_refused_stop = False
        self._ending = threading.RLock()  # held while what a left call has measured is handed in
        self._is_certainly_left = False
        self._has_seen_left = False
        self._has_said_end = False
        self._stand_in: Any = None  # for the result of the batch that a failure of ours has lost

    # what users may ask

    @property
    def run_url(self) -> str:
        return self._stream.run_url if self._stream else ""

    @property
    def alerts(self) -> list[dict[str, Any]]:
        return list(self._stream.alerts) if self._stream else []

    # which call this is about

    @property
    def is_attached(self) -> bool:
        """Whether the session watches a call, or stands aside for another one that does."""
        return self._run is not None or self._rests

    @property
    def is_of_other_thread(self) -> bool:
        return bool(self._call) and not self._call.is_of_this_thread()

    def is_watching(self) -> bool:
        """Whether the watched call is still running in this thread."""
        return bool(self._call) and not self._call.is_left(sys._getframe(1))

    def is_left(self) -> bool:
        """Whether the watched call is over without having said so."""
        return self._call.is_left(sys._getframe(1))

    def is_own_hook(self) -> bool:
        """Whether Keras calls a hook on behalf of the watched call, not of another one of the same
        model inside it.
        """
        if not self._call:
            return True
        call = self._call
        return call.is_of_this_thread() and call.own_test_pass(sys._getframe(1)) is not None

    # before Keras makes its functions

    def attach(self) -> None:
        """Puts the taps in; in a loop of the user's own not before it begins."""
        self._boundary.call("callback", self._attach)

    def _attach(self) -> None:
        reason = why_too_old(keras.__version__) or self._why_not_here()
        if reason is not None:
            self.ended = self._rests = True
            log.warning("%s", reason)
            return
        if self._is_second():
            return
        unwarned.begin(self)
        _watching[self.model] = weakref.ref(self)
        forks.keep(self)
        # Objects of ours must not move on the numbers in the names of the user's.
        with forward.names_untouched():
            self._open_run()
            self._boundary.call("taps", self._install_taps)
        iterator = self._call.iterator
        if iterator is not None:
            # `fit` may be left by an exception, of which callbacks are not told.
            weakref.finalize(iterator, self._iterator_is_gone).atexit = False
        atexit.register(self.abandon)

    def _why_not_here(self) -> str | None:
        reason = backends.active().why_not_in_this_process(self.model)
        return None if reason is None else f"training is not watched here: {reason}"

    def _is_second(self) -> bool:
        """Whether another callback of ours watches this call; one that was left is ended here, and
        taken off the model where that is all that is left to do.
        """
        reference = _watching.get(self.model)
        other = reference() if reference is not None else None
        if other is None:
            return False
        if not other.ended and other._call and not other.is_left():
            self.ended = self._rests = True
            self.run_id = other.run_id
            log.warning("another SanityCallback watches this call already; this one rests")
            return True
        other.abandon()
        return False

    def _open_run(self) -> None:
        arguments = self._call.arguments
        kind = "evaluate" if arguments.call == "evaluate" else "fit"
        backend = backends.active()
        is_first = backend.process() == 0
        self._stream = self._open_stream(kind) if is_first else NoStream()
        self._run = run = Run(self.model, backend, self._stream, self._settings, kind=kind)
        run.optimizer = getattr(self.model, "optimizer", None)
        run.guard = self._boundary.call
        run.fit = arguments
        run.sample_rows = fixed_batch(self.model) or SAMPLE_ROWS
        run.replicas = backend.replicas(self.model)
        run.processes = backend.processes(self.model)
        run.shared["is_keras_step"] = is_of_keras(self.model.train_step)
        makes = [make for make in all_probes() if is_first or make.in_all_processes]
        probes = [self._boundary.call(make.name, make, run) for make in makes]
        probes = [probe for probe in probes if probe is not None]
        self._listeners = Listeners(probes, self._boundary)
        self._readings = Readings(run, self._listeners, self._boundary)
        self._audits = SampleAudits(run, self._listeners, self._boundary)
        self._audits.take(self._probe_data)
        self._listeners.tell("on_begin")
        for name, optimizer in optimizers.of_model(self.model).items():
            if optimizer.built and kind == "fit":
                variables = optimizer._trainable_variables
                self._listeners.tell("on_optimizer", name, optimizer, variables)
        if run.processes > 1:
            run.not_testable["processes"] = processes.NOT_YET
        self._audits.begin()

    def _open_stream(self, kind: str) -> RunStream:
        header = header_of(self.model, self._settings, kind)
        return RunStream(self._settings, self.run_id, header, self._hear, on_beat=self._beat)

    def _install_taps(self) -> None:
        run, readings = self._run, self._readings
        assert run is not None
        assert readings is not None
        self._functions = CompiledFunctions(self.model)
        self._replace_makers()
        reason = compiled.why_step_must_stay(self.model) or run.backend.why_untappable(self.model)
        if reason is not None:
            run.not_testable["taps"] = reason
            if run.backend.follows_code(self.model):
                train, test = self._make_tapes(run)
                self._outside = Outside(run, self._listeners, self._boundary, train, test)
                readings.train, readings.test = (TapeReader(t, run.backend) for t in (train, test))
            return
        train, test = self._make_tapes(run)
        train.carry(run.kept)
        self._taps = Taps(run, self._listeners, self._boundary, self._functions, train, test)
        reason = self._taps.install()
        if reason is not None:
            run.not_testable["taps"] = reason
            return
        readings.train, readings.test = (TapeReader(t, run.backend) for t in (train, test))
        self._functions.clear()

    def _make_tapes(self, run: Run) -> list[Tape]:
        """For training and for test batches."""
        steps = steps_per_execution(self.model)
        depth = max(run.backend.TAPE_DEPTH, 4 * steps)
        width = run.backend.CELLS * _columns(self.model)
        return [Tape(run.backend, depth, width) for _ in range(2)]

    def _replace_makers(self) -> None:
        """Keras asks for its functions at the begin of every call: the moment to see that ours was
        left, or compiled anew.
        """
        for name in ("make_train_function", "make_test_function"):
            self._makers.put(self.model, name, self._maker(name, getattr(self.model, name)))

    def _maker(self, name: str, original: Function) -> Function:
        def make(*args: Any, **kwargs: Any) -> Any:
            if self.ended or self.is_left():
                self.abandon()
                return original(*args, **kwargs)
            if self._taps is not None and self._taps.installed:
                self._boundary.call("taps", self._taps.renew)
            made = original(*args, **kwargs)
            self._boundary.call("taps", self._note_made, name.removeprefix("make_"))
            self._boundary.call("taps", self._wrap_functions)
            return made

        return make

    def _note_made(self, name: str) -> None:
        run, functions, made = self._run, self._functions, getattr(self.model, name)
        known = self._made.setdefault(name, [])
        if any(made is each for each in known):
            return
        known.append(made)
        if run is not None:
            run.optimizer = getattr(self.model, "optimizer", None)  # may have been compiled anew
        if name == "train_function" and functions is not None and run and run.shared.get("traces"):
            functions.made_anew()

    def _wrap_functions(self) -> None:
        if self._taps is not None and self._taps.installed:
            self._taps.tap_optimizers()
        if self._begun:
            self._wrap("train_function", self._around_training)
            self._wrap("test_function", self._around_testing)

    def _wrap(self, name: str, around: Function) -> None:
        """Puts `around(function, caller, args)` around one of the functions that Keras has made."""
        original = getattr(self.model, name)
        if original is None or original is self._wrapped.get(name, (None,))[0]:
            return

        def function(*args: Any) -> Any:
            results: list[Any] = []

            def execute(*given: Any) -> Any:
                results.append(self._plain.get(name, original)(*given))
                functions = self._functions
                if functions is not None and functions.tracing is not None:
                    self._boundary.call("callback", functions.has_traced, given)
                return results[-1]

            try:
                return around(execute, sys._getframe(1), args)
            except BaseException:
                keep = backends.active().keep_state
                self._boundary.call("callback", keep, self.model, args, *results)
                raise

        self._wrapped[name] = (function, original)
        self._made.setdefault(name, []).append(function)
        setattr(self.model, name, function)

    # Keras' hooks

    def begin(self, kind: str) -> None:
        run = self._run
        if run is None or self.ended or self._begun:  # as where a list has one callback twice
            return
        self._begun = True
        run.kind = kind
        run.shared["declared_steps"] = self._call.arguments.declared_steps
        run.shared["progress_total"] = self._params().get("steps")
        if isinstance(self._stream, RunStream):
            self._terminal.begin(self.run_url)
        if self._functions is not None and self._taps is not None:
            # Already made where callbacks were gathered in a list before the call began.
            make = (
                self.model.make_train_function if kind == "fit" else self.model.make_test_function
            )
            make()
        self._boundary.call("taps", self._wrap_functions)
        if run.processes > 1:
            self._boundary.call("processes", self._meet)

    def _meet(self) -> None:
        """Begins to speak with the processes that train the same model."""
        run, readings = self._run, self._readings
        assert run is not None
        assert readings is not None
        probes = self._listeners.hearing("on_rows")
        self._link = readings.link = processes.link(run, probes, self._boundary, self._beat)

    def _hear_others(self, *, waits: bool) -> None:
        """What the other processes have measured until the end."""
        link, readings, run = self._link, self._readings, self._run
        if link is None or readings is None or run is None:
            return
        end = link.finish if waits else link.close
        end()
        readings.pass_on_together()
        reason = link.why_not()
        if reason is None:
            run.not_testable.pop("processes", None)
        else:
            run.not_testable["processes"] = reason

    def epoch_begin(self, epoch: int) -> None:
        if self._run is None or self.ended or self._open_epoch == epoch:
            return
        self._open_epoch = epoch
        self._run.epoch = epoch
        self._run.epoch_first_step = self._run.step + 1
        with forward.names_untouched():
            self._listeners.tell("on_epoch_begin", epoch)

    def epoch_end(self, epoch: int, logs: Mapping[str, Any]) -> None:
        run, readings, audits = self._run, self._readings, self._audits
        if run is None or readings is None or audits is None or self.ended:
            return
        if self._open_epoch is None:
            return
        self._open_epoch = None
        readings.read_train(whole=True)
        taped = readings.taped_step
        run.shared["taped"] = taped is not None
        if taped is not None:
            run.step = taped
        readings.slow(force=True)
        audits.at_epoch_end(epoch)
        self._listeners.tell("on_epoch_end", epoch, dict(logs))
        readings.send()

    def test_begin(self) -> None:
        run, readings = self._run, self._readings
        if run is None or readings is None or self.ended:
            return
        if not self._begun:
            self.begin("evaluate")
        frame = self._call.own_test_pass(sys._getframe(1)) if self._call else None
        self._test_pass = 0 if frame is None else id(frame)
        self._boundary.call("taps", self._wrap_functions)
        readings.begin_test()
        run.shared["test_batches"] = 0
        self._listeners.tell("on_test_begin")

    def test_end(self, logs: Mapping[str, Any]) -> None:
        run, readings = self._run, self._readings
        if run is None or readings is None or self.ended or self._test_pass is None:
            return
        self._test_pass = None
        readings.read_test(whole=True)
        self._listeners.tell("on_test_end", dict(logs))
        readings.end_test(logs)
        if run.kind == "evaluate":
            self.end("finished")

    def end(self, state: str) -> None:
        """The run is over; idempotent."""
        if self.ended or self._readings is None or self._audits is None:
            return
        self._readings.read_train(whole=True)
        self._readings.slow(force=True)
        self._boundary.call("processes", functools.partial(self._hear_others, waits=True))
        self._boundary.call("callback", backends.active().part, self.model)
        self._boundary.call("callback", self._audits.end)
        self._listeners.tell("on_end")
        self._boundary.call("removal", self._remove)  # also where the taps have failed
        self._boundary.call("callback", self._audits.released)
        self._close(state)
        self._let_go()

    def abandon(self) -> None:
        """The watched call was left without its end: an exception, or the next call has begun."""
        with self._ending:
            if not self.ended:
                self._read_rest()
                self._close(self._state_when_left)
            self._boundary.call("removal", self._remove)  # also where the taps have failed
            self._let_go()

    @property
    def _state_when_left(self) -> str:
        return "failed" if self._begun else "finished"

    def _read_rest(self) -> None:
        if self._readings is not None:
            # Keras has put its variables back by now.
            read = functools.partial(self._readings.read_train, whole=True)
            self._boundary.call("callback", read)

    def _iterator_is_gone(self) -> None:
        """A finalizer, which may come at any point of any thread: here nobody may be waited for,
        and an interrupt would be lost.
        """
        self._is_certainly_left = True

    def _beat(self) -> None:
        self._boundary.call("callback", self._look_if_left)

    def _look_if_left(self) -> None:
        """In the writing thread: an exception may have left the call, also while somebody keeps its
        traceback, as notebooks do for the last one, and with it the iterator.
        """
        if self.ended or self._has_seen_left:
            return
        if not (self._is_certainly_left or self._call.is_known_left()):
            return
        self._has_seen_left = True
        threading.Thread(target=self._tell_that_left, name="trainsanity-end", daemon=True).start()

    def _tell_that_left(self) -> None:
        """Ends the run. The model is left to the thread that works with it, at its next call."""
        with self._ending:
            if not self.ended:
                self._read_rest()
                self._close(self._state_when_left)
                self._let_go()

    def leave_to_parent(self) -> None:
        """In a forked child: the run is the parent's, and here a backend whose threads are gone
        would wait for them forever.
        """
        self._ending = threading.RLock()  # another thread may have held it
        self.ended = True
        self._listeners.tell("on_closed")

    def _fail(self, args: tuple[Any, ...]) -> None:
        """The step has failed; the call is about to be left, but is still running."""
        if self._run is not None and self._run.is_stateless:
            # Keras will put the state back by the places of the variables, the tape's among them.
            readings = self._readings
            if readings is not None:
                self._boundary.call("tape", lambda: readings.read_before(args, training=True))
            self._boundary.call("callback", self._close, "failed")
        else:
            self.abandon()

    def _close(self, state: str) -> None:
        self.ended = True
        self._boundary.call("processes", self._part)
        self._listeners.tell("on_closed")
        self._close_stream(state)

    def _part(self) -> None:
        """Tells of the other processes what is known, and lets go of them."""
        self._hear_others(waits=False)
        if self._link is not None and self._run is not None:
            self._run.audit("processes", self._link.facts())
        self._link = None

    def _close_stream(self, state: str) -> None:
        if self._stream is None:
            return
        # Not "stream": where that is off, the run must come to its end all the same.
        report = self._boundary.call("end of the stream", self._stream.close, state)
        if report is not None and self._begun and not self._has_said_end:
            self._has_said_end = True
            self._terminal.end(report, self.alerts, self.run_url)

    def _remove(self) -> None:
        """Leaves the model as it would be without us."""
        reference = _watching.get(self.model)
        if reference is not None and reference() is self:
            del _watching[self.model]
            forks.release(self)
        if self._functions is None:
            return
        self._makers.take_off()
        if self._taps is not None:
            self._taps.remove()
        self._plain = self._functions.put_back(self._made)
        self._made.clear()
        self._functions = self._taps = self._outside = None
        self._wrapped.clear()

    def _let_go(self) -> None:
        """The callback may live on; data, tapes and copies of weights need not."""
        atexit.unregister(self.abandon)
        unwarned.end(self)
        self._run = self._readings = self._audits = None
        self._listeners = Listeners([], self._boundary)
        self._call = self._call.forgotten()

    # executions of the compiled functions

    def _around_training(self, original: Function, caller: FrameType, args: Any) -> Any:
        """One execution of the train function; hooks for batches would make Keras dispatch
        callbacks in step.
        """
        run, readings, audits = self._run, self._readings, self._audits
        if self.ended or run is None or readings is None or audits is None:
            return original(*args)
        if not self._call.is_caller(caller):
            return self._run_foreign(original, args, training=True)
        try:
            args = audits.peek(args)
            audits.before_execution(args)
            run.state = args[0] if len(args) > 1 else None
            self._listeners.tell_of_step("before_step", run.step + 1)
            run.state = None
            if run.assignments:
                args = self._assigned(run, args)
            args = counting(run, args)
            with self._as_traced(run):
                began = time.perf_counter()
                result = self._seen(original, training=True)(*args)
                run.pace.ran(time.perf_counter() - began)
        except run.backend.end_of_data_errors():
            if self._stand_in is None:
                raise
            # Keras expects a batch more, and would warn of data that ran out.
            result, self._stand_in = self._stand_in, None
            return result
        except BaseException as error:
            if not self._is_ours(error):
                self._fail(args)
                raise
            result = self._without_taps(error, args)
        batches = batches_of(run, args[-1], self._written)
        run.step += batches
        run.state = run.backend.state_of(result)
        self._listeners.tell_of_step("after_step", run.step)
        run.state = None
        readings.after_training(result, batches)
        if self._stop:
            self.model.stop_training = True
        return result

    def _assigned(self, run: Run, args: Any) -> Any:
        values = run.assignments.copy()
        run.assignments.clear()
        assigned = run.backend.assigned
        return self._boundary.call("callback", assigned, self.model, args, values, default=args)

    def _around_testing(self, original: Function, caller: FrameType, args: Any) -> Any:
        readings = self._readings
        if self.ended or readings is None or self._run is None:
            return original(*args)
        is_own = self._test_pass is not None and (
            id(caller) == self._test_pass or (self._test_pass == 0 and not self._call)
        )
        if not is_own:
            return self._run_foreign(original, args, training=False)
        result = self._seen(original, training=False)(*args)
        batches = steps_per_execution(self.model)
        self._run.shared["test_batches"] += batches
        readings.after_testing(result, batches)
        return result

    def _seen(self, function: Function, *, training: bool) -> Function:
        outside = self._outside
        return function if outside is None else outside.around(function, training=training)

    def _run_foreign(self, original: Function, args: Any, *, training: bool) -> Any:
        """A pass that somebody else has begun inside the watched call: not measured."""
        assert self._readings is not None
        assert self._run is not None
        readings = self._readings
        self._run.shared["foreign_at"] = self._run.step
        self._boundary.call("tape", lambda: readings.read_before(args, training=training))
        result = original(*args)
        self._boundary.call("tape", lambda: readings.after_foreign(result, training=training))
        return result

    def _as_traced(self, run: Run) -> Any:
        """What an earlier step of this model was traced with holds for this one too."""
        functions = self._functions
        if run.shared.get("traces") or functions is None or functions.traced is None:
            return contextlib.nullcontext()
        return functions.traced.in_force()

    def _written(self) -> int | None:
        reader = self._readings.train if self._readings is not None else None
        return None if reader is None else self._boundary.call("tape", reader.written)

    def _is_ours(self, error: BaseException) -> bool:
        """Whether the compiled step failed in an operation that one of our taps has put there."""
        if self._taps is None or not self._taps.installed or self._run is None:
            return False
        return bool(self._run.backend.is_our_failure(error))

    def _without_taps(self, error: BaseException, args: tuple[Any, ...]) -> Any:
        """The last resort: the plain step, so that training goes on. One batch of data is lost to
        it.
        """
        log.warning(
            "an operation of a tap failed in the compiled step; the taps are removed and training "
            "goes on without them from the next batch.",
            exc_info=error,
        )
        run = self._run
        assert run is not None
        assert self._taps is not None
        assert self._readings is not None
        assert self._functions is not None
        run.shared["lost_at"] = run.step
        text = "".join(traceback.format_exception(error))
        run.note_failure("taps", error, text, lost="one batch of data")
        self._readings.train = self._readings.test = None
        self._taps.remove()
        self._functions.clear()
        self.model.make_train_function()
        _, plain = self._wrapped["train_function"]
        result = plain(*args)
        if run.shared.get("declared_steps"):
            self._stand_in = result
        return result

    # people

    def _report_failure(self, part: str, error: BaseException, text: str) -> None:
        if self._run is not None:
            self._run.note_failure(part, error, text)

    def _hear(self, alert: dict[str, Any]) -> None:
        """A new or changed alert, told by the server; in the sender's thread."""
        action = self._settings.on_alert
        if callable(action):
            self._boundary.call("on_alert", unwarned.theirs, action, alert)
            return
        if alert.get("state") != "open":
            return
        if action == "stop" and alert["severity"] == "critical":
            self._end_training()
        if action in ("warn", "stop"):
            self._terminal.alert(alert)

    def _end_training(self) -> None:
        """At the next batch."""
        processes = 1 if self._run is None else self._run.processes
        if processes == 1:
            self._stop = True
        elif not self._has_refused_stop:
            self._has_refused_stop = True
            log.warning(
                "on_alert='stop' does not end this training: %d processes train one model, and the "
                "others would wait for ever for the one that stops.",
                processes,
            )


def _columns(model: Any) -> int:
    """Columns the tape may need, by metrics, outputs, embeddings and optimizers; generous, for a
    cell is 4 bytes a row.
    """
    metrics = getattr(model, "_compile_metrics", None)
    given = [metrics._user_metrics, metrics._user_weighted_metrics] if metrics else []
    named = len(keras.tree.flatten(given))
    outputs = len(keras.tree.flatten(getattr(model, "outputs", None) or [0]))
    inputs = len(keras.tree.flatten(getattr(model, "inputs", None) or [0]))
    embeddings = sum(isinstance(x, keras.layers.Embedding) for x in model._flatten_layers())
    return 96 + outputs * (48 + 12 * named) + 8 * inputs + 4 * embeddings
