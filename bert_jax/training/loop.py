"""The pretraining loop, from top to bottom: inputs, state, phases, steps, evaluation, the end."""

import collections
import contextlib
import logging
import math
from collections.abc import Generator, Iterator
from typing import Any

import jax
import ml_collections
from etils import epath

from bert_jax.cli import Interrupted
from bert_jax.models import heads
from bert_jax.objectives.base import Batch, Scalars
from bert_jax.parallel import distributed, sharding
from bert_jax.runs import checkpoint, telemetry
from bert_jax.runs.state import TrainState, init_state, reset_moments
from bert_jax.training import evaluation
from bert_jax.training.compilation import Compilation
from bert_jax.training.guard import Guard
from bert_jax.training.inputs import Inputs, PhaseInputs, open_inputs
from bert_jax.training.reporting import Reporter
from bert_jax.training.warm_start import warm_start


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    stop: distributed.StopSignal | None = None,
    show: bool = False,
) -> dict[str, float]:
    """Pretrains as `config` says, resuming from the last checkpoint in `workdir` if there is one.

    Args:
      stop: what may ask for a stop, entered by the caller; None: nothing does.
      show: whether progress is printed.

    Returns:
      The last evaluation's metrics (or the last training step's, with evaluation turned off).

    Raises:
      UserError: data, model, mesh and workdir do not fit each other; or the loss went wrong more
        often than `config.guard` allows.
      Interrupted: asked to stop; the state is saved.
    """
    workdir, stop = epath.Path(workdir), stop or distributed.StopSignal()

    # Inputs: all phases' data and programs, checked; the same in all processes.
    with distributed.shared_errors():
        telemetry.check_wandb(config.wandb_project)
        inputs = open_inputs(config)
    distributed.check_alike(inputs.facts(config))
    mesh, model = inputs.mesh, inputs.model
    first_phase = inputs.phases[0].phase

    with contextlib.ExitStack() as closing:
        # State: a checkpoint in workdir > config.init_from > fresh parameters.
        store = closing.enter_context(
            checkpoint.CheckpointStore(workdir, config, inputs.tokenizer, inputs.identity)
        )
        if store.latest_step is not None:
            state = store.restore(first_phase.abstract_state(model, mesh))
        else:
            state = init_state(
                lambda key: heads.init_params(model, key),
                first_phase.optimizer,
                mesh,
                config.seed,
                with_ema=config.ema_decay > 0,
            )
            if config.init_from:
                with distributed.shared_errors():
                    state = warm_start(
                        *(state, config.init_from, model.config, inputs.tokenizer),
                        partial=config.init_partial,
                        new_rows=config.init_new_rows,
                    )
        step = int(state.step)
        guard = Guard(config.guard, workdir, step)
        with distributed.shared_errors():
            report = Reporter(config, workdir, inputs, step, show)
            closing.callback(report.close)
        report.begin(step, sharding.memory_of(state).describe())

        # A run that was killed while it evaluated has saved the step before.
        if is_evaluated(config, step):
            part = next(part for part in inputs.phases if step <= part.phase.stop)
            is_missing = distributed.as_in_first(report.evaluated_loss(step)) is None
            with report.pause("evaluating"):
                if is_missing and not evaluate(part, state, step, config, report, stop):
                    raise interrupted(stop, step, workdir)
                keep_if_best(store, state.params, step, config, part, report)
        if step >= config.num_steps:
            report.note(
                f"{workdir} is trained to the end already: {step:,} steps, "
                f"config.num_steps={config.num_steps}"
            )
            return report.last

        compilation = Compilation(inputs)
        for number, part in enumerate(inputs.phases):
            phase = part.phase
            if step >= phase.stop:
                continue

            # A phase: its programs, its moments, its batches from the present step on.
            report.phase(part)
            if phase.reset_moments and step == phase.start:
                state = reset_moments(state, phase.optimizer, mesh)
            with report.pause("compiling"):
                train_step, needed = compilation.step(number)
            report.note(f"  compiled; {needed / 2**30:.2f} GiB per device")
            compilation.begin_later(number)
            running: collections.deque[tuple[int, Scalars]] = collections.deque()
            is_restored = False  # and no batch was accepted since
            steps = step - phase.start, phase.stop - phase.start
            with part.data.batches(mesh, *steps, part.first_row) as batches:
                for batch in report.batches(batches):
                    # The step.
                    report.before_step(step + 1)
                    state, metrics = train_step(state, batch)
                    step += 1
                    running.append((step, metrics))
                    stopping = stop.asked()
                    evaluating = is_evaluated(config, step)
                    saving = stopping or step == phase.stop or step % config.checkpoint_every == 0

                    # Its metrics, one step late: the device is busy with this step while the host
                    # reads the last; unless what follows reads the state, or dispatching has waited
                    # for the step, as it does on CPUs.
                    is_read_now = evaluating or saving or guard.rolls_back or is_synchronous()
                    while len(running) > (0 if is_read_now else 1):
                        number_read, metrics = running.popleft()
                        values = report.step(number_read, metrics, part)
                        if values.pop("accepted"):
                            is_restored = False
                            continue
                        guard.skipped(number_read, values, origin(part, number_read))
                        if guard.rolls_back and not is_restored and store.latest_step is not None:
                            state = roll_back(store, state, part, inputs)
                            is_restored = True
                    compilation.check()
                    store.check()

                    # Saving comes first: what is due is safe whatever the evaluation is cut by.
                    if saving:
                        with report.pause("saving"):
                            store.save(step, state, before_it_counts=report.flush)
                    if evaluating and not stopping:
                        with report.pause("evaluating"):
                            if evaluate(part, state, step, config, report, stop):
                                keep_if_best(store, state.params, step, config, part, report)
                            else:
                                stopping = True
                                store.save(step, state, before_it_counts=report.flush)
                    if stopping and (step < config.num_steps or evaluating):
                        raise interrupted(stop, step, workdir)

        # The end: all is on disk before it is said.
        store.wait()
        report.finish(step)
        return report.last


def is_evaluated(config: ml_collections.ConfigDict, step: int) -> bool:
    """Whether an evaluation follows a step."""
    due = step == config.num_steps or (config.eval_every and step % config.eval_every == 0)
    return bool(step and config.eval_every and due)


def evaluate(
    part: PhaseInputs,
    state: TrainState,
    step: int,
    config: ml_collections.ConfigDict,
    report: Reporter,
    stop: distributed.StopSignal,
) -> bool:
    """Evaluates on the phase's held-out sets; False if a stop was asked for meanwhile.

    Beside the parameters their moving average, where there is one, as "eval_ema_…".
    """
    metrics: dict[str, float] = {}
    of_ema = {"ema_": state.ema} if state.ema is not None else {}
    for prefix, data in part.eval_data.items():
        for name_of_params, params in {"": state.params, **of_ema}.items():
            batches = data.eval_batches(
                part.train_step.mesh, config.eval_batches, part.phase.config.accumulate_steps
            )
            try:
                results = evaluation.evaluate(
                    part.eval_step, params, unless_stopped(batches, stop), part.losses
                )
            except Interrupted:
                return False
            metrics |= {f"{prefix}{name_of_params}{name}": x for name, x in results.items()}
    report.evaluated(step, metrics)
    return True


def unless_stopped(
    batches: Generator[Batch, None, None], stop: distributed.StopSignal
) -> Iterator[Batch]:
    """`batches`; Interrupted is raised after one if a stop was asked for."""
    with contextlib.closing(batches):
        for batch in batches:
            yield batch
            if stop.asked():
                raise Interrupted


def keep_if_best(
    store: checkpoint.CheckpointStore,
    params: Any,
    step: int,
    config: ml_collections.ConfigDict,
    part: PhaseInputs,
    report: Reporter,
) -> None:
    """Saves the parameters in best/ if their evaluation was the best of the phase."""
    loss = distributed.as_in_first(report.evaluated_loss(step))
    if config.keep_best and loss is not None and math.isfinite(loss):
        store.save_if_best(step, params, loss, part.phase.start)


def roll_back(
    store: checkpoint.CheckpointStore, state: Any, part: PhaseInputs, inputs: Inputs
) -> Any:
    """The last checkpoint's state as that of the present step."""
    step = jax.device_get(state.step)
    saved = store.roll_back(state)
    if part.phase.reset_moments and int(saved.step) <= part.phase.start:
        saved = reset_moments(saved, part.phase.optimizer, inputs.mesh)
    logging.warning(
        f"rolled back to the parameters of step {int(saved.step):,}; the batches since then are "
        "skipped"
    )
    return saved.replace(step=jax.device_put(step, saved.step.sharding))


def origin(part: PhaseInputs, step: int) -> dict[str, Any]:
    """Where the examples of a step's batch lie."""
    batch_size = part.phase.config.batch_size
    first = part.first_row + (step - 1 - part.phase.start) * batch_size
    return part.data.origin(first, first + batch_size)


def is_synchronous() -> bool:
    """Whether a step is over when the call returns that dispatches it."""
    return jax.default_backend() == "cpu"


def interrupted(stop: distributed.StopSignal, step: int, workdir: epath.Path) -> Interrupted:
    return Interrupted(
        f"stopped by {stop.received or 'SIGTERM'}: step {step:,} is saved in {workdir}; the same "
        "command resumes from there"
    )
