"""How arrays lie on the devices: the mesh, and one rule table for every parameter.

Mesh axes: `data` replicates parameters and splits the batch; `fsdp` splits both parameters and the
batch; `tensor` splits heads, feed-forward width and vocabulary (Megatron's layout). The optimizer's
moments have their parameter's paths inside them, so the same table serves them.
"""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert_jax.cli import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# (path regex, spec of the last dimensions); the first match counts. Leading dimensions that a spec
# leaves out (the stacked layers of a scanned encoder) are not split.
RULES: tuple[tuple[str, P], ...] = (
    # Rows, not columns: a lookup of split columns makes the compiler replicate the activations.
    (r"word_embeddings/embedding$", P(("tensor", "fsdp"), None)),
    (r"(position|token_type)_embeddings/embedding$", P()),
    (r"attention/(query|key|value)/kernel$", P("fsdp", "tensor")),
    (r"attention/(query|key|value)/bias$", P("tensor")),
    (r"intermediate/kernel$", P("fsdp", "tensor")),
    (r"intermediate/bias$", P("tensor")),
    (r"output/kernel$", P("tensor", "fsdp")),
    (r"(pooler|mlm_transform)/kernel$", P("fsdp", None)),
    (r"(nsp_classifier|classifier)/kernel$", P("fsdp", None)),
    (r"mlm_bias$", P("tensor")),
    (r"(bias|scale)$", P()),
)


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over `devices` (all by default); one axis may be -1 and takes what the others leave.

    TPU slices that are joined by the data-centre network alone divide the data axis among them:
    only the gradients' sum crosses that network, once a step.

    Raises:
      UserError: the axes do not multiply up to the number of devices, or `data` does not divide
        among the slices.
    """
    devices = jax.devices() if devices is None else devices
    shape, count = [data, fsdp, tensor], len(devices)
    sizes = f"mesh data={data} fsdp={fsdp} tensor={tensor}"
    if shape.count(-1) > 1 or any(size < 1 and size != -1 for size in shape):
        raise UserError(f"{sizes}: sizes are positive, and one of them at most is -1 (fill up)")
    known = int(np.prod([size for size in shape if size != -1]))
    if (-1 in shape and count % known) or (-1 not in shape and known != count):
        raise UserError(
            f"{sizes} does not fit {count} device(s): the axes must multiply up to {count}; "
            "set one of config.mesh.data, .fsdp, .tensor to -1 to fill up"
        )
    shape = [count // known if size == -1 else size for size in shape]
    grid = device_grid(shape, devices)
    # Auto: Linen's modules leave the layout of intermediates to the compiler.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def device_grid(shape: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """`devices` as an array of shape (data, fsdp, tensor), neighbours of the network together.

    The data axis spans TPU slices, or nodes of GPUs, each of which JAX calls a slice too. Where it
    does not divide among the nodes, the GPUs are taken one after the other.

    Raises:
      UserError: `data` does not divide among the TPU slices.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if shape[0] % slices and devices[0].platform == "gpu":
        slices = 1
    if shape[0] % slices:
        raise UserError(
            f"mesh data={shape[0]} does not divide among the {slices} slices: only the data axis "
            f"may span slices; make config.mesh.data a multiple of {slices}"
        )
    make_grid = functools.partial(mesh_utils.create_device_mesh, shape, devices)
    if slices > 1:
        inside, across = (shape[0] // slices, *shape[1:]), (slices, 1, 1)
        make_grid = functools.partial(mesh_utils.create_hybrid_device_mesh, inside, across, devices)
    try:
        return make_grid()
    except NotImplementedError:  # an axis of the mesh is no whole dimension of a slice
        return make_grid(allow_split_physical_axes=True)


def path_of(key_path: tuple[Any, ...]) -> str:
    """A JAX key path -> 'bert/encoder/layer_0/attention/query/kernel'."""
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in key_path
    )


def spec_of(path: str, shape: tuple[int, ...]) -> P:
    """The PartitionSpec of the array at `path`: scalars whole, others by the rule table."""
    if not shape:
        return P()
    for pattern, spec in RULES:
        if re.search(pattern, path):
            return P(*[None] * (len(shape) - len(spec)), *spec)
    raise ValueError(f"no sharding rule matches {path} {shape}: add one to sharding.RULES")


def shardings_of(tree: Any, mesh: Mesh) -> Any:
    """NamedShardings for a pytree of arrays or shapes. An axis that does not divide is left whole.

    Which happens for the two rows of the segment embeddings or the two of the NSP classifier.
    """

    def sharding(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        spec = spec_of(path_of(key_path), leaf.shape)
        fitting = [
            axes if size % _extent(mesh, axes) == 0 else None
            for size, axes in zip(leaf.shape, spec, strict=False)
        ]
        return NamedSharding(mesh, P(*fitting))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _extent(mesh: Mesh | jax.sharding.AbstractMesh, axes: str | tuple[str, ...] | None) -> int:
    """Into how many parts a dimension with this entry of a PartitionSpec is split."""
    names = () if axes is None else (axes,) if isinstance(axes, str) else axes
    return math.prod(mesh.shape[name] for name in names)


def abstract(shapes: Any, shardings: Any) -> Any:
    """Shapes and NamedShardings -> what `jax.jit(…).lower` takes in place of arrays."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def abstract_batch(shapes: Any, mesh: Mesh) -> Any:
    """A batch's shapes -> what `jax.jit(…).lower` takes in its place, laid out on the mesh."""
    return abstract(shapes, jax.tree.map(lambda _: batch_sharding(mesh), shapes))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of the batch are split over data × fsdp; tensor-parallel devices see the same rows."""
    return NamedSharding(mesh, P(BATCH_AXES))


def batch_parts(rows: int) -> int:
    """Over how many parts of the mesh a batch of so many rows is spread; 1 if it does not divide.

    A single row is used to make parameters (`models.heads.init_params`).
    """
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else _extent(mesh, BATCH_AXES)
    return 1 if rows % parts else parts


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the layout of an activation: per dimension "batch", a mesh axis, or None.

    Without it the compiler may split activations after the parameters (fsdp), which was three
    times slower. Does nothing where no mesh is set (export, tests of single modules).
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(
        x, P(*(BATCH_AXES if axis == "batch" else axis for axis in axes))
    )
