"""A run's programs: the present phase's are waited for, later phases' compile while it trains."""

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bert_jax.cli import COMPILING, UserError
from bert_jax.parallel import sharding
from bert_jax.parallel.programs import compile_together
from bert_jax.training.inputs import Inputs, PhaseInputs

Step = Callable[..., Any]


class Compilation:
    """The compiled training steps of a run's phases, each with its memory checked.

    So a phase that does not fit ends the run minutes after its start, not after the phase before.
    """

    def __init__(self, inputs: Inputs):
        self._inputs = inputs
        self._steps: dict[int, concurrent.futures.Future[tuple[Step, int]]] = {}

    def step(self, number: int) -> tuple[Step, int]:
        """The training step of a phase, (state, batch) -> (state, metrics), and bytes per device.

        The phase's evaluation is compiled, too.

        Raises:
          UserError: one of them does not fit into the devices' memory.
        """
        if number not in self._steps:
            self._compile(number)
        return self._steps[number].result()

    def begin_later(self, number: int) -> None:
        """Begins to compile the phases after this one, one after the other."""
        later = [n for n in range(number + 1, len(self._inputs.phases)) if n not in self._steps]
        for later_number in later:
            self._steps[later_number] = concurrent.futures.Future()

        def compile_all() -> None:
            for later_number in later:
                self._compile(later_number)

        if not later:
            return
        # A daemon, and known to cli.run by its name: an interrupted run does not wait for it.
        threading.Thread(target=compile_all, name=COMPILING, daemon=True).start()

    def check(self) -> None:
        """Raises what has gone wrong in the background."""
        for future in self._steps.values():
            if future.done():
                future.result()

    def _compile(self, number: int) -> None:
        future = self._steps.setdefault(number, concurrent.futures.Future())
        try:
            future.set_result(_compiled(self._inputs, self._inputs.phases[number]))
        except BaseException as error:
            future.set_exception(error)


def _compiled(inputs: Inputs, part: PhaseInputs) -> tuple[Step, int]:
    mesh, phase = inputs.mesh, part.phase
    state = phase.abstract_state(inputs.model, mesh)
    shapes = part.data.batch_shapes(phase.config.batch_size)
    eval_shapes = [data.batch_shapes(part.eval_rows) for data in part.eval_data.values()]
    one_of_each = {tuple(x.shape for x in each.values()): each for each in eval_shapes}
    advice = (
        f"take a smaller {phase.flag('batch_size')} or more {phase.flag('accumulate_steps')}, set "
        "--config.model.remat=dots (or full), or split the parameters with --config.mesh.fsdp"
    )
    try:
        compiled = part.train_step.lower(state, sharding.abstract_batch(shapes, mesh)).compile()
        compile_together(
            [
                (part.eval_step, (state.params, sharding.abstract_batch(each, mesh)))
                for each in one_of_each.values()
            ]
        )
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        cause = str(error).strip().splitlines()[0]
        if "vmem" in str(error):  # on-chip memory, which a kernel takes whatever the batch
            advice = "set --config.model.attention=xla"
        raise UserError(f"{_of(phase)} does not fit into memory ({cause}): {advice}") from None
    # What lies there while the parameters are evaluated.
    moments = bytes_held((state.opt_state, state.ema))
    evaluating = [bytes_needed(program) + moments for program in part.eval_step.programs.values()]
    needed = max([bytes_needed(compiled), *evaluating])
    available = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if available and needed > available:
        raise UserError(
            f"{_of(phase)} needs {needed / 2**30:.1f} GiB per device, which has "
            f"{available / 2**30:.1f}: {advice}"
        )
    constants = part.train_step.constants
    return (lambda state, batch: compiled(state, batch, *constants)), needed


def _of(phase: Any) -> str:
    return f"the step of the phase from step {phase.start:,}" if phase.number else "the step"


def bytes_needed(compiled: jax.stages.Compiled) -> int:
    """Memory of a device that the compiled step takes: state, batch, results, temporaries."""
    memory = compiled.memory_analysis()
    if memory is None:  # a backend that does not say
        return 0
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def bytes_held(tree: Any) -> int:
    """Memory of a device that arrays of these shapes and shardings take."""
    return sum(
        x.dtype.itemsize * int(np.prod(x.sharding.shard_shape(x.shape)))
        for x in jax.tree.leaves(tree)
    )
