"""Compiled programs: jitted functions on a mesh, for batches of several shapes."""

import concurrent.futures
import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class MeshJit:
    """A jitted function that is called, traced or lowered with the mesh set.

    Attributes:
      constants: further arguments of every call. Written into the program, one that differs would
        make another program of it, to be recompiled.
    """

    function: jax.stages.Wrapped
    mesh: Mesh
    constants: tuple[Any, ...] = ()

    def __call__(self, *args: Any) -> Any:
        with jax.set_mesh(self.mesh):
            return self.function(*args, *self.constants)

    def trace(self, *args: Any) -> jax.stages.Traced:
        with jax.set_mesh(self.mesh):
            return self.function.trace(*args, *self.constants)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        with jax.set_mesh(self.mesh):
            return self.function.lower(*args, *self.constants)


@dataclasses.dataclass(frozen=True)
class ShapeCache:
    """A function of a batch, its last argument, of several shapes; see `compile_together`."""

    function: MeshJit
    programs: dict[Any, jax.stages.Compiled] = dataclasses.field(default_factory=dict)

    @staticmethod
    def key(batch: Any) -> tuple[tuple[int, ...], ...]:
        return tuple(x.shape for x in jax.tree.leaves(batch))

    def __call__(self, *args: Any) -> Any:
        program = self.programs.get(self.key(args[-1]))
        return program(*args, *self.function.constants) if program else self.function(*args)


def compile_together(
    calls: Sequence[tuple[ShapeCache, tuple[Any, ...]]],
    compiled: Callable[[], None] = lambda: None,
) -> None:
    """Compiles functions for these arguments side by side: one compilation keeps one core busy.

    Args:
      compiled: called, in this thread, after each that is done.
    """

    one_at_a_time = threading.Lock()  # Flax, when it makes modules, is not made for threads

    def compile_one(call: tuple[ShapeCache, tuple[Any, ...]]) -> None:
        by_shape, args = call
        with one_at_a_time:
            lowered = by_shape.function.lower(*args)
        by_shape.programs[ShapeCache.key(args[-1])] = lowered.compile()

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for future in concurrent.futures.as_completed([pool.submit(compile_one, c) for c in calls]):
            future.result()
            compiled()


def compiler_options(mesh: Mesh, by_length: bool = False) -> dict[str, Any]:
    """What XLA is asked for beyond its defaults.

    Args:
      by_length: the program is compiled for each of several lengths; else it is the training step.
    """
    platform = mesh.devices.flat[0].platform
    if platform == "cpu":
        # Moments are updated where they lie, without copies: 1.6 times as fast an update.
        options: dict[str, Any] = {"xla_cpu_copy_insertion_use_region_analysis": True}
        if by_length:
            # A third less work, and programs as fast (docs/explanation/performance.md).
            options["xla_cpu_parallel_codegen_split_count"] = 1
            options["xla_backend_optimization_level"] = 1
        return options
    if platform == "tpu" and mesh.shape["fsdp"] > 1:
        # No windowed einsums, which gather parameters piece by piece between small matmuls: whole,
        # they arrive while the layer before computes (docs/explanation/performance.md).
        return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}
    return {}
