"""How arrays lie on the devices: the mesh, and one rule table for every parameter.

Mesh axes: `data` replicates parameters and splits the batch; `fsdp` splits both parameters and the
batch; `tensor` splits heads, feed-forward width and vocabulary (Megatron's layout). The optimizer's
moments have their parameter's paths inside them, so the same table serves them.
"""

import dataclasses
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

# Arrays whose rule does not split them over `fsdp` are kept whole up to so many parts, vectors and
# other small ones longer than large ones (position embeddings): one that is whole needs no gather,
# but at 48 parts BERT-base's would be a fifth of what a device holds.
LARGE = 100_000  # elements
WHOLE_UP_TO = {True: 16, False: 64}
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
    (r"(intermediate|gate)/kernel$", P("fsdp", "tensor")),
    (r"intermediate/bias$", P("tensor")),
    (r"output/kernel$", P("tensor", "fsdp")),
    (r"(pooler|mlm_transform|classifier_dense)/kernel$", P("fsdp", None)),
    (r"(nsp_classifier|classifier)/kernel$", P("fsdp", None)),
    (r"mlm_bias$", P("tensor")),
    (r"(bias|scale)$", P()),
    (r"ns_coeffs$", P()),  # of Muon: three numbers
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
        raise UserError(f"{sizes}: sizes are positive, and one of them at most is -1 (inferred)")
    known = int(np.prod([size for size in shape if size != -1]))
    if (-1 in shape and count % known) or (-1 not in shape and known != count):
        raise UserError(
            f"{sizes} does not fit {count} device(s): the axes must multiply up to {count}; "
            "set one of config.mesh.data, .fsdp, .tensor to -1 to have it inferred"
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
    """NamedShardings for a pytree of arrays or shapes, by the rule table.

    An array that `fsdp` does not divide where its rule says is split along another dimension, or
    along two (768 × 768 over 512 devices: 256 × 2). What is left is held by several devices. Small
    arrays are split where they would outweigh a device's part of the others (`WHOLE_UP_TO`). Shapes
    are the same on every mesh, so checkpoints are too.
    """

    def sharding(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        return _fitted(leaf.shape, spec_of(path_of(key_path), leaf.shape), mesh)

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _fitted(shape: tuple[int, ...], spec: P, mesh: Mesh) -> NamedSharding:
    """`spec` as far as it divides the shape; its `fsdp` in parts over the last two dimensions."""
    names = [() if axes is None else (axes,) if isinstance(axes, str) else axes for axes in spec]
    names += [()] * (len(shape) - len(names))
    # Of the other axes, those that divide.
    kept = [tuple(name for name in axes if name != "fsdp") for axes in names]
    kept = [a if size % _extent(mesh, a) == 0 else () for size, a in zip(shape, kept, strict=True)]
    own = next((d for d, axes in enumerate(names) if "fsdp" in axes), None)
    fsdp = mesh.shape["fsdp"]
    if own is None and shape and fsdp > WHOLE_UP_TO[math.prod(shape) >= LARGE]:
        own = len(shape) - 1
    if own is None or fsdp == 1:
        return NamedSharding(mesh, P(*(axes or None for axes in kept)))
    rooms = [size // _extent(mesh, axes) for size, axes in zip(shape, kept, strict=True)]
    other = next((d for d in range(len(shape) - 1, max(len(shape) - 3, -1), -1) if d != own), own)
    divisors = [n for n in range(fsdp, 0, -1) if fsdp % n == 0]
    splits = [
        (n, m)
        for n in divisors
        for m in (divisors if other != own else [1])
        if fsdp % (n * m) == 0 and rooms[own] % n == 0 and rooms[other] % m == 0
    ]
    # The finest; if it can be had so, along one dimension alone.
    n, m = max(splits, key=lambda s: (s[0] * s[1], 1 in s, s[0]))
    if fsdp in (n, m):
        d = own if n == fsdp else other
        kept[d] = (*kept[d], "fsdp")
        return NamedSharding(mesh, P(*(axes or None for axes in kept)))
    kept[own] += ("fsdp_own",)
    if m > 1:
        kept[other] += ("fsdp_other",)
    return NamedSharding(_split_fsdp(mesh, n, m), P(*(axes or None for axes in kept)))


@functools.lru_cache
def _split_fsdp(mesh: Mesh, n: int, m: int) -> Mesh:
    """The same devices in the same order, with `fsdp` as three axes: of n, of m, and of copies."""
    data, fsdp, tensor = mesh.devices.shape
    grid = mesh.devices.reshape(data, n, m, fsdp // (n * m), tensor)
    names = ("data", "fsdp_own", "fsdp_other", "fsdp_copies", "tensor")
    return Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a state takes of a device, and what it would if it were split evenly; in bytes.

    Attributes:
      largest: paths of the arrays that take the most beyond their even part, the worst first.
    """

    per_device: int
    ideal: float
    largest: tuple[str, ...]

    def describe(self) -> str:
        """The line at a run's start and in plans."""
        text = (
            f"parameters and moments: {self.per_device / 2**30:.2f} GiB per device, ideal "
            f"{self.ideal / 2**30:.2f}"
        )
        # Of small models the arrays that are kept whole on purpose outweigh the others.
        if self.per_device > 2 * self.ideal and self.per_device - self.ideal > 2**26:
            text += (
                f"; more than twice the ideal, since the mesh divides neither dimension of "
                f"{', '.join(self.largest)}: take sizes of config.mesh.fsdp and .tensor that do"
            )
        return text


def memory_of(state: Any) -> Memory:
    """The memory that arrays, or shapes with shardings, take of a device."""
    per_device, ideal = 0, 0.0
    excess: list[tuple[float, str]] = []
    for key_path, x in jax.tree_util.tree_leaves_with_path(state):
        mesh = x.sharding.mesh
        whole = math.prod(x.shape) * x.dtype.itemsize
        part = math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        even = whole / (mesh.size / mesh.shape["data"])
        per_device, ideal = per_device + part, ideal + even
        excess.append((part - even, path_of(key_path)))
    # Moments are split as their parameters are: one of the three names says it.
    names = dict.fromkeys(
        path.removeprefix("params/")
        for _, path in sorted(excess, reverse=True)
        if path.startswith("params/")
    )
    return Memory(per_device, ideal, tuple(names)[:3])


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
