"""The rule table: every rule is used, every array is covered, layouts are as intended."""

import re

import jax
import pytest
from jax.sharding import PartitionSpec as P

from bert_jax.cli import UserError
from bert_jax.models import heads
from bert_jax.models.heads import SequenceClassifier
from bert_jax.parallel import sharding
from bert_jax.runs.state import TrainState
from bert_jax.training import optimizer
from configs import bert_tiny


def state_shapes(scan_layers: bool):
    config = bert_tiny.get_config()
    config.model.scan_layers = scan_layers
    model = heads.make_model(config)
    tx = optimizer.make_optimizer(config.optimizer)

    def init(key):
        params = heads.init_params(model, key)
        zero = jax.numpy.zeros([])
        return TrainState(zero, params, tx.init(params), zero)

    return jax.eval_shape(init, jax.random.key(0))


def paths_of(tree):
    return {
        sharding.path_of(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_every_rule_matches_something():
    classifier = SequenceClassifier(heads.make_model(bert_tiny.get_config()).config, 3)
    ids = jax.ShapeDtypeStruct((1, 8), "int32")
    shapes = jax.eval_shape(classifier.init, jax.random.key(0), ids, ids, ids)["params"]
    paths = [*paths_of(state_shapes(False).params), *paths_of(shapes)]
    used = {next(p for p, _ in sharding.RULES if re.search(p, path)) for path in paths}
    assert used == {pattern for pattern, _ in sharding.RULES}


@pytest.mark.parametrize("scan_layers", [False, True])
def test_no_matrix_falls_to_the_catch_all(scan_layers):
    for path, shape in paths_of(state_shapes(scan_layers)).items():
        spec = sharding.spec_of(path, shape)  # raises when nothing matches
        if path.endswith("kernel"):
            assert any(spec), f"{path} {shape} is not split by any axis"


def test_moments_lie_as_their_parameters():
    state = state_shapes(False)
    params, moments = paths_of(state.params), paths_of(state.opt_state)
    for path, shape in params.items():
        inside = [m for m in moments if m.endswith(f"/{path}")]
        assert len(inside) == 2  # mu and nu
        for moment in inside:
            assert sharding.spec_of(moment, shape) == sharding.spec_of(path, shape)


def test_megatron_layout():
    spec = sharding.spec_of
    layer = "bert/encoder/layer_0"
    assert spec(f"{layer}/attention/query/kernel", (8, 8)) == P("fsdp", "tensor")
    assert spec(f"{layer}/attention/output/kernel", (8, 8)) == P("tensor", "fsdp")
    assert spec(f"{layer}/intermediate/kernel", (8, 32)) == P("fsdp", "tensor")
    assert spec(f"{layer}/output/kernel", (32, 8)) == P("tensor", "fsdp")
    assert spec("bert/encoder/layers/output/kernel", (2, 32, 8)) == P(None, "tensor", "fsdp")
    assert spec("mu/mlm_bias", (128,)) == P("tensor")
    assert spec("opt_state/0/count", ()) == P()


def test_unknown_path_is_an_error():
    with pytest.raises(ValueError, match="no sharding rule matches something/else"):
        sharding.spec_of("something/else", (3,))


@pytest.mark.parametrize("axes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 1, 1)])
def test_mesh_that_does_not_fit_is_refused(axes):
    with pytest.raises(UserError, match="mesh data="):
        sharding.make_mesh(*axes)


class FakeTpu:
    """A device of a TPU slice, as far as laying out a mesh looks at it."""

    platform = "cpu"  # no ICI coordinates to order by: "tpu" would want some
    device_kind = "fake"

    def __init__(self, number, slice_index):
        self.id, self.slice_index, self.process_index = number, slice_index, slice_index

    def __repr__(self):
        return f"slice {self.slice_index} device {self.id}"


def test_data_axis_spans_slices_and_the_others_stay_inside():
    devices = [FakeTpu(i, slice_index=i // 8) for i in range(16)]
    grid = sharding.device_grid([4, 2, 2], devices)
    assert grid.shape == (4, 2, 2)
    slices = [[device.slice_index for device in row.flat] for row in grid]
    assert slices == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]
    with pytest.raises(UserError, match="data=1 does not divide among the 2 slices"):
        sharding.device_grid([1, 4, 4], devices)


class FakeChip(FakeTpu):
    """With a place in its slice of 4 × 4 chips, by which JAX lays out a mesh of TPUs."""

    platform = "tpu"
    core_on_chip = 0

    def __init__(self, number, slice_index):
        super().__init__(number, slice_index)
        self.coords = (number % 4, number // 4 % 4, 0)


@pytest.mark.parametrize("slices", [1, 2])
def test_axes_may_be_parts_of_a_slice_s_dimensions(slices):
    devices = [FakeChip(i, slice_index=i // 16) for i in range(16 * slices)]
    grid = sharding.device_grid([2 * slices, 8, 1], devices)
    assert grid.shape == (2 * slices, 8, 1)
    assert {device.id for device in grid.flat} == set(range(16 * slices))
    assert [{device.slice_index for device in row.flat} for row in grid] == [
        {number // 2} for number in range(2 * slices)
    ]


class FakeGpu(FakeTpu):
    platform = "gpu"


def test_gpu_nodes_share_the_data_axis_where_it_divides():
    devices = [FakeGpu(i, slice_index=i // 8) for i in range(16)]
    grid = sharding.device_grid([4, 2, 2], devices)
    nodes = [[device.slice_index for device in row.flat] for row in grid]
    assert nodes == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]
    grid = sharding.device_grid([1, 16, 1], devices)
    assert [device.id for device in grid.flat] == list(range(16))
    one_a_node = [FakeGpu(i, slice_index=i) for i in range(8)]
    assert sharding.device_grid([1, 8, 1], one_a_node).shape == (1, 8, 1)
