"""The rule table: every rule is used, every array is covered, layouts are as intended."""

import os
import re
import subprocess
import sys

import jax
import pytest
from jax.sharding import PartitionSpec as P

from bert_jax.cli import UserError
from bert_jax.models import architectures, heads
from bert_jax.models.heads import SequenceClassifier
from bert_jax.parallel import sharding
from bert_jax.runs.state import TrainState
from bert_jax.training import optimizer
from configs import bert_base, bert_tiny


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
    muon = bert_tiny.get_config().optimizer
    muon.name = "muon"
    moments = jax.eval_shape(optimizer.make_optimizer(muon).init, state_shapes(False).params)
    others = [
        heads.SequenceClassifier(architectures.make_config({"architecture": name}), 3)
        for name in ("roberta", "modernbert")
    ]
    inits = [jax.eval_shape(x.init, jax.random.key(0), ids, ids, ids)["params"] for x in others]
    paths = [
        *(path for tree in (state_shapes(False).params, shapes, *inits) for path in paths_of(tree)),
        *(path for path, shape in paths_of(moments).items() if shape),
    ]
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


class FakeCpu(FakeTpu):
    """For the arithmetic of shardings: many devices cost nothing so."""

    @property
    def client(self):
        return jax.devices()[0].client


def fake_mesh(data: int, fsdp: int, tensor: int = 1):
    devices = [FakeCpu(i, slice_index=0) for i in range(data * fsdp * tensor)]
    return sharding.make_mesh(data, fsdp, tensor, devices=devices)


def base_params():
    model = heads.make_model(bert_base.get_config())
    return jax.eval_shape(lambda: heads.init_params(model, jax.random.key(0)))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_device_holds_its_part_whatever_the_size_of_fsdp(scan_layers):
    config = bert_base.get_config()
    config.model.scan_layers = scan_layers
    model = heads.make_model(config)
    params = {"params": jax.eval_shape(lambda: heads.init_params(model, jax.random.key(0)))}
    for fsdp in (2, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512):
        mesh = fake_mesh(1, fsdp)
        state = sharding.abstract(params, sharding.shardings_of(params, mesh))
        memory = sharding.memory_of(state)
        assert memory.ideal <= memory.per_device <= 1.1 * memory.ideal, fsdp
        assert "more than twice" not in memory.describe()
    for axes in ((2, 8, 2), (1, 24, 2), (2, 12, 4)):
        state = sharding.abstract(params, sharding.shardings_of(params, fake_mesh(*axes)))
        memory = sharding.memory_of(state)
        assert memory.per_device <= 1.25 * memory.ideal, axes


def test_what_fsdp_does_not_divide_is_split_otherwise():
    def parts(path: str, shape: tuple[int, ...], fsdp: int, tensor: int = 1) -> tuple[int, ...]:
        named = sharding.shardings_of(
            {path: jax.ShapeDtypeStruct(shape, "float32")}, fake_mesh(1, fsdp, tensor)
        )[path]
        part = named.shard_shape(shape)
        return tuple(whole // size for whole, size in zip(shape, part, strict=True))

    table, query = "word_embeddings/embedding", "attention/query/kernel"
    assert parts(table, (30592, 768), 16) == (16, 1)  # rows, where they divide
    assert parts(table, (30592, 768), 256) == (1, 256)  # 30,592 = 2^7 · 239
    assert parts(table, (30592, 768), 8, tensor=2) == (16, 1)
    assert parts(table, (30592, 768), 256, tensor=2) == (2, 256)
    assert parts(query, (768, 768), 512) == (256, 2)
    assert parts(query, (12, 768, 768), 512) == (1, 256, 2)  # the layers are scanned
    assert parts("position_embeddings/embedding", (512, 768), 16) == (1, 1)
    assert parts("position_embeddings/embedding", (512, 768), 24) == (1, 24)
    assert parts("layer_norm/scale", (768,), 64) == (1,)
    assert parts("layer_norm/scale", (768,), 512) == (256,)
    assert parts("intermediate/bias", (3072,), 128, tensor=2) == (256,)
    assert parts("nsp_classifier/kernel", (768, 2), 512) == (256, 2)


def test_a_mesh_that_splits_little_is_named():
    params = {"params": base_params()}
    state = sharding.abstract(params, sharding.shardings_of(params, fake_mesh(2, 7)))
    text = sharding.memory_of(state).describe()
    assert text.startswith("parameters and moments: 0.41 GiB per device, ideal 0.06; more than")
    assert "neither dimension of bert/embeddings/word_embeddings/embedding, " in text
    # What a small model keeps whole is meant to be whole.
    small = {"params": {"layer_norm": {"scale": jax.ShapeDtypeStruct((768,), "float32")}}}
    state = sharding.abstract(small, sharding.shardings_of(small, fake_mesh(2, 16)))
    assert "more than twice" not in sharding.memory_of(state).describe()


ON_MESHES = """
import jax, numpy as np
from bert_jax.models import architectures, heads
from bert_jax.parallel import sharding
from bert_jax.runs import state as states
from bert_jax.training import phases
from configs import bert_tiny

config = bert_tiny.get_config("laptop")
config.batch_size = 8
config.model.update(hidden_size=36, num_hidden_layers=1, vocab_size=150, intermediate_size=20,
                    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
config.optimizer.warmup_steps = 1
rng = np.random.default_rng(0)
ids = rng.integers(5, 150, (8, 16)).astype(np.int32)
batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids,
         "masked_lm_positions": np.tile(np.arange(1, 4, dtype=np.int32), (8, 1)),
         "masked_lm_ids": ids[:, 1:4], "masked_lm_weights": np.ones((8, 3), np.float32),
         "next_sentence_labels": np.zeros(8, np.int32)}
sharding.WHOLE_UP_TO = {True: 1, False: 4}
for axes in ((1, 1, 1), (1, 8, 1), (2, 4, 1), (1, 4, 2)):
    mesh = sharding.make_mesh(*axes, devices=jax.devices()[: np.prod(axes)])
    model = heads.make_model(config)
    (phase,) = phases.resolve(config)
    state = states.init_state(lambda key: heads.init_params(model, key), phase.optimizer, mesh, 0)
    shapes = {sharding.path_of(k): x.sharding.shard_shape(x.shape)
              for k, x in jax.tree_util.tree_leaves_with_path(state.params)}
    step = phase.make_train_step(model, mesh)
    losses = []
    for _ in range(4):
        placed = jax.device_put(batch, sharding.batch_sharding(mesh))
        state, metrics = step(state, placed)
        losses.append(float(metrics["loss"]))
    print(*losses, *shapes["bert/encoder/layer_0/attention/query/kernel"])
"""


@pytest.mark.slow
def test_training_is_the_same_where_arrays_are_split_along_two_dimensions():
    result = subprocess.run(
        [sys.executable, "-c", ON_MESHES],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        },
    )
    assert result.returncode == 0, result.stderr
    rows = [[float(x) for x in line.split()] for line in result.stdout.splitlines()]
    assert [row[-2:] for row in rows] == [[36, 36], [9, 18], [9, 36], [9, 18]]
    for row in rows[1:]:
        assert row[:-2] == pytest.approx(rows[0][:-2], rel=1e-5)
