"""The planner on this machine's devices; for TPU slices where libtpu is installed (slow)."""

import dataclasses
import gzip
import importlib.util
import json
import math
import os
import shlex
import types

import jax
import pytest
from small_run import run_command

from bert_jax import plan
from bert_jax.cli import UserError
from bert_jax.data import input_pipeline
from bert_jax.models import heads
from bert_jax.objectives.mlm import pretraining_objective
from bert_jax.parallel import hardware, sharding
from bert_jax.planning import compiled, hlo, report, sweep
from bert_jax.runs.state import init_state
from bert_jax.training import optimizer, phases
from bert_jax.training.step import make_train_step
from configs import bert_tiny

LENGTHS = {"max_seq_length": 32, "max_predictions_per_seq": 5}
TINY = ["--config=configs/bert_tiny.py", "--config.batch_size=8", "--max_seq_length=32"]
TINY += ["--config.model.vocab_size=1024"]  # a small vocabulary compiles faster


def first(config) -> phases.Phase:
    return phases.resolve(config)[0]


def plan_json(capsys, *flags: str) -> dict:
    plan.main([*TINY, "--json", *flags])
    return json.loads(capsys.readouterr().out)


def test_plan_of_this_machine_s_devices(capsys):
    result = plan_json(capsys)
    assert (result["chips"], result["devices"], result["hosts"]) == (1, 1, 1)
    assert (result["max_seq_length"], result["max_predictions_per_seq"]) == (32, 5)
    # The program's matmuls are the model's, and not more.
    assert result["flops"] == pytest.approx(result["model_flops"], rel=0.01)
    # Two moments a parameter.
    memory = result["memory"]
    assert memory["optimizer state"] == pytest.approx(2 * memory["parameters"], rel=1e-4)
    assert memory["batch"] == 8 * (3 * 32 + 3 * 5 + 1) * 4
    assert result["collectives"] == {}
    # Nothing is known of the speed of a CPU, and nothing is made up.
    assert result["step_seconds"] is result["hours"] is result["fits"] is None


@pytest.mark.parametrize("flag", ["batch_size=1000000000", "model.vocab_size=1000000000"])
def test_what_is_beyond_any_memory_is_not_compiled(capsys, monkeypatch, flag):
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self: pytest.fail("compiled"))
    plan.main([*TINY, f"--config.{flag}"])
    text = capsys.readouterr().out
    assert "DOES NOT FIT" in text and "parameters and moments: " in text


def test_text_says_what_is_not_known(capsys):
    plan.main(TINY)
    text = capsys.readouterr().out
    assert "no time: the speed of 'cpu' is not known" in text
    assert "GiB  parameters" in text
    assert "parameters and moments: 0.01 GiB per device, ideal 0.01" in text


@pytest.mark.parametrize(
    "axes", [pytest.param({"data": 8}, marks=pytest.mark.slow), {"data": 1, "fsdp": 8}]
)
def test_collectives_and_memory_of_meshes(axes):
    flags = [f"--config.mesh.{axis}={size}" for axis, size in axes.items()]
    result = run_command(
        "bert_jax.plan",
        *TINY,
        "--json",
        *flags,
        XLA_FLAGS=f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        JAX_PLATFORMS="cpu",
    )
    assert result.returncode == 0, result.stderr
    result = json.loads(result.stdout)
    config = bert_tiny.get_config()
    config.model.vocab_size = 1024
    model = heads.make_model(config)
    params = jax.eval_shape(lambda: heads.init_params(model, jax.random.key(0)))
    whole = sum(4 * x.size for x in jax.tree.leaves(params))
    sent = {kind: numbers["bytes"] for kind, numbers in result["collectives"].items()}
    assert result["devices"] == 8
    if axes == {"data": 8}:
        assert result["memory"]["parameters"] == whole
        # Each gradient once, also that of the embedding that is looked up and multiplied by; of
        # 512 positions 32 are used.
        used = whole - 4 * 128 * (512 - 32)
        assert sent["all-reduce"] == pytest.approx(2 * 7 / 8 * used, rel=0.01)
    else:
        # All but biases, LayerNorm and position embeddings are split.
        assert result["memory"]["parameters"] < whole / 4
        assert sent["all-gather"] > 0


def test_a_program_is_compiled_once(config, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    once = compiled.make_plan(first(config), jax.devices(), **LENGTHS)
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self: pytest.fail("compiled again"))
    assert compiled.make_plan(first(config), jax.devices(), **LENGTHS) == once
    config.model.hidden_dropout_prob = 0.2
    with pytest.raises(pytest.fail.Exception, match="compiled again"):
        compiled.make_plan(first(config), jax.devices(), **LENGTHS)


@pytest.fixture
def slow_chip(monkeypatch):
    """Pretends that the CPU is a chip of 1 GFLOP/s, so that FLOPs decide the time."""
    chip = hardware.Chip("slow", ("cpu",), 1e9, 2**30, 1e15, 1e9)
    monkeypatch.setattr(hardware, "CHIPS", (chip,))
    return chip


def test_times_and_hours_follow_from_the_chip(config, slow_chip):
    result = compiled.make_plan(first(config), jax.devices(), **LENGTHS)
    assert result.estimate == "roofline" and result.fits
    assert result.step_seconds == pytest.approx(result.flops / 1e9, rel=0.01)
    assert result.model_flops_utilization == pytest.approx(
        result.model_flops / result.flops, rel=0.01
    )
    assert result.sequences_per_second == pytest.approx(16 / result.step_seconds)
    assert result.tokens_per_second == pytest.approx(16 * 32 / result.step_seconds)
    assert result.hours == pytest.approx(config.num_steps * result.step_seconds / 3600)
    assert "1 chips" in report.describe(result) and "roofline" in report.describe(result)


@pytest.mark.slow
def test_what_does_not_fit_comes_with_what_would(config, slow_chip, monkeypatch):
    config.batch_size = 512
    roomy = compiled.make_plan(first(config), jax.devices(), **LENGTHS)
    activations = roomy.memory["activations and gradients"]
    # Room for a little more than half of the activations.
    small = roomy.memory_needed - activations + int(0.6 * activations)
    monkeypatch.setattr(hardware, "CHIPS", (dataclasses.replace(slow_chip, memory_bytes=small),))
    result = compiled.make_plan(first(config), jax.devices(), **LENGTHS)
    assert result.fits is False
    assert "DOES NOT FIT" in report.describe(result)
    fields = sweep.what_would_fit(first(config), result, jax.devices(), **LENGTHS)
    assert any(flags.startswith("--config.accumulate_steps=") for flags in fields)
    shown = report.describe(dataclasses.replace(result, would_fit=fields))
    assert fields[0] in shown


def test_what_would_fit_leaves_out_what_cannot_be_laid_out(config, monkeypatch):
    def fits(values):
        if values["fsdp"] == 64:
            raise UserError("data=1 does not divide among the 2 slices")
        return values["remat"] == "full"

    fake_plans(monkeypatch, seconds=lambda v: 1, fits=fits)
    names = [field.name for field in dataclasses.fields(compiled.Plan)]
    large = dataclasses.replace(
        compiled.Plan(**dict.fromkeys(names)),
        mesh={"data": 64, "fsdp": 1},
        settings={"batch_size": 64, "accumulate_steps": 1, "remat": "none"},
        memory={"parameters": 10, "optimizer state": 20},
        memory_needed=100,
        memory_available=50,
    )
    fitting = sweep.what_would_fit(first(config), large, jax.devices(), **LENGTHS)
    assert fitting == ["--config.model.remat=full"]


def test_this_machine_s_memory_is_what_jax_may_take_of_it(config, slow_chip, monkeypatch):
    limited = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 1024})
    monkeypatch.setattr(jax, "local_devices", lambda: [limited])
    here = compiled.make_plan(first(config), jax.devices(), **LENGTHS)
    assert (here.memory_available, here.fits) == (1024, False)
    # Hardware that is not here has what its data sheet says.
    there = compiled.make_plan(first(config), jax.devices(), **LENGTHS, hardware_name="slow:1")
    assert (there.memory_available, there.fits) == (2**30, True)


def fake_plans(monkeypatch, seconds, fits) -> list[dict]:
    """Replaces make_plan by functions of the config; returns what it is called with."""
    calls = []

    def make_plan(phase, devices, **lengths):
        config = phase.config
        values = {
            "batch_size": config.batch_size,
            "remat": config.model.remat,
            "fsdp": config.mesh.fsdp,
        }
        calls.append(values)
        if config.mesh.fsdp == 3:
            raise UserError("does not divide")
        names = [field.name for field in dataclasses.fields(compiled.Plan)]
        blank = compiled.Plan(**dict.fromkeys(names))
        speed = config.batch_size / seconds(values)
        return dataclasses.replace(
            blank, fits=fits(values), sequences_per_second=speed, memory_needed=0
        )

    monkeypatch.setattr(compiled, "make_plan", make_plan)
    return calls


def test_sweep_finds_the_fastest_that_fits_without_trying_the_hopeless(config, monkeypatch):
    calls = fake_plans(
        monkeypatch,
        seconds=lambda v: v["batch_size"] + {"none": 10, "dots": 20, "full": 30}[v["remat"]],
        fits=lambda v: v["batch_size"] * {"none": 3, "dots": 2, "full": 1}[v["remat"]] <= 100,
    )
    grid = sweep.parse_grid("remat=full:none:dots,fsdp=1:3,batch_size=16:32:64:128:256", devices=1)
    tried = sweep.sweep(first(config), grid, jax.devices())
    # 64 fits with full remat alone; 32 fits as it is, and has less overhead than 64 with remat.
    assert tried[0][0] == {"fsdp": 1, "batch_size": 32, "remat": "none"}
    assert tried[0][1].fits and tried[-1][1].fits is False
    chosen = [(c["batch_size"], c["remat"]) for c in calls if c["fsdp"] == 1]
    assert chosen == [
        (16, "none"),
        (32, "none"),
        (64, "none"),
        (64, "dots"),
        (64, "full"),
        (128, "full"),
    ]


def test_sweep_on_this_machine(capsys):
    plan.main([*TINY, "--sweep=batch_size=4:8"])
    text = capsys.readouterr().out
    assert "--config.batch_size=4" in text and "--config.batch_size=8" in text
    assert "no speed of 'cpu' is known, so none of them is the best" in text


def test_flags_for_a_phase_go_to_what_the_phase_sets_itself(config, monkeypatch):
    config.phases = ({"num_steps": 5}, {"batch_size": 32, "accumulate_steps": 2})
    calls = fake_plans(monkeypatch, seconds=lambda v: 1, fits=lambda v: False)
    first, second = phases.resolve(config)
    grid = {"batch_size": [8], "fsdp": [1]}
    for phase, name in ((first, "batch_size"), (second, "phases[1].batch_size")):
        text = report.describe_sweep(phase, sweep.sweep(phase, grid, jax.devices()))
        words = shlex.split(text)
        assert f"--config.{name}=8" in words and text.endswith("none fits")
    assert [call["batch_size"] for call in calls] == [8, 8]
    assert second.flag("accumulate_steps") == "--config.phases[1].accumulate_steps"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v9:4x4"], "v9:4x4.* is not known: expected CHIP:SHAPE .* v4, v5e, v5p, v6e"),
        (["--topology=v5e"], "expected CHIP:SHAPE"),
        (["--sweep=remat=some"], "remat cannot be 'some': expected one of none, dots, full"),
        (["--topology=v5e:4x4x4x4"], "expected CHIP:SHAPE"),
        (["--config.mesh.data=3"], "mesh data=3 .* does not fit 1 device"),
        (
            ["--config.batch_size=9", "--config.accumulate_steps=2"],
            "must be a positive multiple of 2",
        ),
        (["--sweep=colour"], "cannot vary 'colour': it knows batch_size"),
        (["--sweep=batch_size=many"], "'many' are not values of batch_size"),
        (["--sweep=mesh"], "cannot vary 'mesh'"),
        (["--sweep=fsdp=2:4"], "no combination of fsdp"),
        (["--max_seq_length=1024"], "the model reads 512 tokens at most"),
        (["--max_seq_length=128,512,512"], "has 3 numbers, but the run has 2 phase"),
        (
            [
                "--max_seq_length=128,512",
                "--config.num_steps=5",
                "--config.optimizer.warmup_steps=1",
            ],
            "has 2 numbers, but the run has 1 phase",
        ),
        (["--max_predictions_per_seq=20,76,76"], "has 3 numbers, but the run has 2 phase"),
        (["--max_seq_length=128,"], "--max_seq_length=128,: expected a number, or one per phase"),
        (["--max_seq_length=-1"], "expected a number, or one per phase"),
        (["--config.modle=1"], "no field"),
    ],
)
def test_mistakes_are_named(flags, message):
    with pytest.raises(UserError, match=message):
        plan.main([*TINY, *flags])


def test_missing_libtpu_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu, which is not installed: pip install"):
        compiled.open_devices("v5e:16x16")


@pytest.mark.parametrize(("bandwidth", "expected"), [(1e15, 7.7 * 256 / 1.5e9), (1e9, 262152e-9)])
def test_kernels_add_to_the_compiler_s_cycles(bandwidth, expected):
    """A kernel takes its schedule or its bytes, whichever is longer."""
    text = """\
HloModule m

%gather (p: bf16[1,512,64]) -> bf16[512,64] {
  ROOT %p = bf16[1,512,64]{2,1,0} parameter(0)
}

ENTRY %main () -> bf16[1,512,64] {
  %q = bf16[1,512,64]{2,1,0} parameter(0)
  %seeds = u32[2]{0} parameter(1)
  %n = bf16[1,512,64]{2,1,0:S(1)} negate(%q), backend_config={"estimated_cycles":"3000"}
  %rows = bf16[512,64]{1,0} fusion(%q), kind=kCustom, calls=%gather
  %few = bf16[8,64]{1,0} fusion(%q), kind=kCustom, calls=%gather
  ROOT %fused_attention_forward_dropout.1 = bf16[1,512,64]{2,1,0} custom-call(%seeds, %q, %q, %q), \
backend_config={"cost_estimate":{"flops":"67108864","transcendentals":"262144"}}
}
"""
    chip = hardware.Chip("chip", ("cpu",), 1e14, 2**30, bandwidth, 1e9, clock_hz=1.5e9)
    program = compiled.Compiled(text, {})
    result = compiled._traffic(program, sharding.make_mesh(), chip, 1.0, 0.0)
    assert result["flops"] == 2 * 2 * 512**2 * 64
    assert result["kernel_seconds"] == pytest.approx(expected)
    # The lookup, of which the compiler says nothing, by what it writes: its fusion reads nothing.
    assert result["uncounted_operations"] == 1
    assert result["uncounted_seconds"] == pytest.approx(512 * 64 * 2 / bandwidth)
    assert result["compiler_seconds"] == pytest.approx(
        3000 / 1.5e9 + expected + result["uncounted_seconds"]
    )


def test_memory_that_the_compiler_refuses_is_read_from_its_message():
    message = "Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded by 4.75G"
    assert compiled.refused_memory(message) == {"needed": int(20.5 * 2**30)}
    message = (
        "Ran out of memory on HBM, the total memory required for HLO temporaries (198.5G) exceeds "
        "available HBM (15.75G)."
    )
    assert compiled.refused_memory(message) == {"temp": int(198.5 * 2**30)}
    with pytest.raises(UserError, match=r"refuses the step \(INTERNAL"):
        compiled.refused_memory("INTERNAL: something else")
    message = (  # 16 heads of 80, which the bound on the kernel's blocks leaves to XLA
        "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\nRan out of memory in memory space "
        "vmem while allocating on stack for %fused_attention_backward_dropout.1. Scoped allocation "
        "with size 16.94M and limit 16.00M exceeded scoped vmem limit by 964.0K."
    )
    with pytest.raises(UserError, match=r"964\.0K\.\): set --config\.model\.attention=xla$"):
        compiled.refused_memory(message)


@pytest.mark.slow
def test_plan_of_a_tpu_slice():
    pytest.importorskip("libtpu")
    result = run_command(
        "bert_jax.plan", *TINY, "--config.batch_size=256", "--topology=v5e:2x4", "--json"
    )
    assert result.returncode == 0, result.stderr
    result = json.loads(result.stdout)
    assert (result["chips"], result["hosts"], result["fits"]) == (8, 2, True)
    assert result["estimate"] == "compiler"
    assert result["flops"] == pytest.approx(result["model_flops"], rel=0.01)
    # The compiler's estimate is never below what memory and matrix units allow.
    assert result["roofline_seconds"] < result["compiler_seconds"] < 0.01
    assert math.isclose(
        result["step_seconds"], result["compiler_seconds"] + result["collective_seconds"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "cycles"), [(0.1, 7.7 + 10.1), (0.0, 7.9 + 12.7)], ids=["fused", "splash"]
)
def test_kernels_compile_for_a_tpu_slice(rate, cycles):
    """On a mesh that splits rows and heads; 8 rows and 1 head of 64 on a device.

    The first of the 2 layers runs the kernel; the last computes the positions that are read.
    """
    pytest.importorskip("libtpu")
    result = run_command(
        "bert_jax.plan",
        *TINY,
        "--max_seq_length=256",
        "--config.batch_size=32",
        "--config.mesh.tensor=2",
        f"--config.model.attention_probs_dropout_prob={rate}",
        "--topology=v5e:2x4",
        "--json",
    )
    assert result.returncode == 0, result.stderr
    result = json.loads(result.stdout)
    expected = 8 * 256**2 / 1024 * cycles / 1.5e9
    assert result["kernel_seconds"] == pytest.approx(expected, rel=0.2)  # or their bytes
    assert result["kernel_seconds"] < result["compiler_seconds"]


@pytest.mark.slow
def test_logits_are_not_kept_through_the_backward_pass(tmp_path):
    """The loss alone needs the label's logit; read last, it kept 157 MB of logits of BERT-base."""
    pytest.importorskip("libtpu")
    result = run_command(
        "bert_jax.plan",
        *TINY,
        "--config.batch_size=64",
        "--config.model.vocab_size=30522",
        "--topology=v5e:2x2",
        JAX_COMPILATION_CACHE_DIR=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    (kept,) = tmp_path.glob("plan-*.json.gz")
    program = hlo.parse(json.loads(gzip.decompress(kept.read_bytes()))["text"])
    # In the order in which they run.
    instructions = list(program.computations[program.entry].values())
    logits = {i.name for i in instructions if any(s.elements == 16 * 5 * 30592 for s in i.shapes)}
    last_read = max(n for n, i in enumerate(instructions) if logits & set(i.operands))
    backward = [
        n for n, i in enumerate(instructions) if "transpose(" in i.rest and "layer_0" in i.rest
    ]
    assert logits and last_read < min(backward)


@pytest.mark.slow
def test_a_tpu_slice_that_is_too_small():
    pytest.importorskip("libtpu")
    result = run_command(
        "bert_jax.plan",
        *TINY,
        "--config.batch_size=524288",
        "--config.model.num_hidden_layers=1",
        "--max_seq_length=128",
        "--topology=v5e:2x2",
        "--json",
    )
    assert result.returncode == 0, result.stderr
    result = json.loads(result.stdout)
    assert result["fits"] is False
    assert result["memory_needed"] > result["memory_available"]
    assert result["would_fit"]


def test_the_planned_step_is_the_one_that_trains(config, data_dir):
    mesh = sharding.make_mesh(**config.mesh)
    phase = first(config)
    lowered, shapes, _ = compiled.lower_step(phase, mesh, **LENGTHS)
    model = heads.make_model(config)
    tx = optimizer.make_optimizer(config.optimizer)

    def fresh():
        return init_state(lambda key: heads.init_params(model, key), tx, mesh, config.seed)

    layout = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)  # noqa: E731
    assert layout(fresh()) == layout(shapes)
    data = input_pipeline.open_data(config.data_dir, "train", config)
    with data.batches(mesh, 0, 1) as batches:
        batch = next(iter(batches))
    objective = pretraining_objective(model)
    step = make_train_step(objective, tx, phase.schedule, mesh, config.seed)
    _, trained = step(fresh(), batch)
    _, planned = lowered.compile()(fresh(), batch, *step.constants)
    assert jax.device_get(planned) == jax.device_get(trained)


def test_a_plan_is_judged_and_priced(config, slow_chip):
    config.batch_size = 16
    plan_of = compiled.make_plan(first(config), jax.devices(), **LENGTHS)
    assert report.judge(plan_of) == []  # FLOPs alone decide the time of this chip
    small = dataclasses.replace(
        plan_of, model_flops_utilization=0.07, collective_seconds=plan_of.step_seconds / 2
    )
    first_line, second_line = report.judge(small)
    assert first_line == (
        "16 sequences per device and microbatch, MFU 7%: too little work, try --sweep=batch_size"
    )
    assert "exposed communication is 50% of the step" in second_line
    assert f"advice: {first_line}" in report.describe(small)
    schedule = report.Schedule((first(config),), (plan_of,), (), "", price_per_chip_hour=2.0)
    assert schedule.price == pytest.approx(2 * plan_of.chip_hours)
    assert schedule.to_json()["price"] == schedule.price
    assert "at 2 per chip-hour" in schedule.to_text()
