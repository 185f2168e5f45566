"""Reading compiled programs: small texts as XLA prints them, and programs of known FLOPs."""

import jax
import jax.numpy as jnp
import pytest

from bert_jax.planning import hlo

LOOP = """\
HloModule jit_f, is_scheduled=true

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %fusion = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%inner, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %t = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%i, %fusion)
}

%inner (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %n = f32[8,128]{1,0:T(8,128)} negate(%a), \
backend_config={"window_config":{"estimated_cycles":"7"}}
}

%condition (q: (s32[], f32[8,128])) -> pred[] {
  %q = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%q), index=0
  %bound = s32[]{:T(128)} constant(12)
  ROOT %less = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}

ENTRY %main (z: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %z = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  ROOT %loop = (s32[]{:T(128)}, /*index=1*/f32[8,128]{1,0:T(8,128)}) while(%z), \
condition=%condition, body=%body
}
"""


def entry(*lines: str, others: str = "") -> hlo.Program:
    """A program whose entry has these instructions."""
    body = "\n".join(f"  {line}" for line in lines)
    return hlo.parse(f"HloModule m\n\n{others}\nENTRY %main () -> f32[] {{\n{body}\n}}\n")


def total(measure, program: hlo.Program) -> int:
    return sum(measure(program, c, i) * times for c, i, times in hlo.executions(program))


def compiled(f, *shapes: tuple[int, ...]) -> hlo.Program:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.parse(jax.jit(f).lower(*arguments).compile().as_text())


def test_a_loop_counts_as_often_as_it_runs():
    program = hlo.parse(LOOP)
    assert hlo.cycles(program) == 12 * 100  # not the 7 inside the fusion: they are in the 100
    assert total(hlo.hbm_bytes, program) == 12 * 2 * 8 * 128 * 4


def test_the_trip_count_that_xla_notes_goes_before_the_condition():
    noted = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert hlo.cycles(hlo.parse(noted)) == 5 * 100


def test_a_loop_without_a_bound_is_refused():
    with pytest.raises(ValueError, match="iterations of loop"):
        hlo.cycles(hlo.parse(LOOP.replace("constant(12)", "parameter(1)")))


def test_flops_of_compiled_matmuls():
    product = compiled(lambda a, b: jnp.tanh(a @ b), (64, 256), (256, 32))
    assert total(hlo.flops, product) == 2 * 64 * 256 * 32
    batched = compiled(lambda a, b: jnp.einsum("bmk,bnk->bmn", a, b), (5, 16, 32), (5, 24, 32))
    assert total(hlo.flops, batched) == 2 * 5 * 16 * 24 * 32


def test_flops_of_compiled_loops():
    def f(x, weights):
        def outer(x, w):
            return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=3)[0], None

        return jax.lax.scan(outer, x, weights)[0]

    # XLA's cost_analysis() counts one of the 7 × 3 matmuls.
    assert total(hlo.flops, compiled(f, (64, 64), (7, 64, 64))) == 7 * 3 * 2 * 64**3


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # As TPU programs write x @ w, and batched matmuls over (B, H) = (4, 3).
        (
            "%c = bf16[4,16,32]{2,1,0} convolution(%x, %w), window={size=1}, "
            "dim_labels=0bf_io0->0bf",
            2 * 4 * 16 * 32 * 8,
        ),
        (
            "%c = f32[4,3,5,6]{3,2,1,0} convolution(%l, %r), "
            "window={size=4x3 stride=3x2 lhs_dilate=4x3}, dim_labels=01fb_0i1o->01bf",
            2 * 4 * 3 * 5 * 6 * 7,
        ),
        # An ordinary convolution: the outermost positions of a window of 3 fall on padding.
        (
            "%c = f32[1,10,2]{2,1,0} convolution(%s, %k), window={size=3 pad=1_1}, "
            "dim_labels=b0f_0io->b0f",
            2 * (3 * 10 - 2) * 5 * 2,
        ),
        # The same, dilated: two positions at each end.
        (
            "%c = f32[1,10,2]{2,1,0} convolution(%s, %k), window={size=3 pad=2_2 rhs_dilate=2}, "
            "dim_labels=b0f_0io->b0f",
            2 * (3 * 10 - 4) * 5 * 2,
        ),
    ],
)
def test_flops_of_convolutions(line, expected):
    program = entry(
        "%x = bf16[4,16,8]{2,1,0} parameter(0)",
        "%w = bf16[8,32,1]{1,0,2} parameter(1)",
        "%l = f32[4,3,7,5]{3,2,1,0} parameter(2)",
        "%r = f32[4,7,3,6]{3,2,1,0} parameter(3)",
        "%s = f32[1,10,5]{2,1,0} parameter(4)",
        "%k = f32[3,5,2]{2,1,0} parameter(5)",
        line,
    )
    assert total(hlo.flops, program) == expected


@pytest.mark.parametrize(
    ("line", "matmuls", "cycles"),
    [
        (
            "%splash_mha_fwd_segmented_residuals.1 = (f32[2,256,128]{2,1,0}, bf16[2,3,256,64]"
            "{3,2,1,0}) custom-call(%mask, %q, %k, %k)",
            2,
            7.9,
        ),
        ("%splash_mha_dkv_segmented.7 = bf16[2,3,256,64]{3,2,1,0} custom-call(%q, %k)", 5, 12.7),
        ("%fused_attention_backward_dropout.2 = bf16[2,256,192]{2,1,0} custom-call(%f)", 5, 10.1),
    ],
)
def test_kernels_count_their_matmuls_and_cycles(line, matmuls, cycles):
    scores = 2 * 3 * 256 * 256
    noted = f'"flops":"{2 * matmuls * scores * 64}","transcendentals":"{scores}"'
    config = f'{{"custom_call_config":{{"cost_estimate":{{{noted},"bytes_accessed":"9"}}}}}}'
    if "splash" in line:
        config = '{"custom_call_config":{"body":""}}'  # it notes nothing
    program = entry(
        "%mask = s8[1,1,1]{2,1,0} parameter(0)",
        "%q = bf16[2,3,256,64]{3,2,1,0} parameter(1)",
        "%k = bf16[2,3,256,64]{3,2,1,0} parameter(2)",
        "%f = bf16[2,256,192]{2,1,0} parameter(3)",
        f'{line}, custom_call_target="tpu_custom_call", backend_config={config}',
        '%other = f32[8]{0} custom-call(%q), custom_call_target="Sharding"',
    )
    assert total(hlo.flops, program) == 2 * matmuls * scores * 64
    found = [hlo.kernel(c, i) for c, i, _ in hlo.executions(program)]
    (kernel,) = [k for k in found if k]
    assert kernel.cycles == pytest.approx(cycles * scores / 1024)


SLICING = """\
%slicing (a: f32[100,8], i: s32[]) -> f32[1,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  ROOT %d = f32[1,8]{1,0} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={1,8}
}
%updating (a: f32[100,8], u: f32[1,8], i: s32[]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %u = f32[1,8]{1,0} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  ROOT %d = f32[100,8]{1,0} dynamic-update-slice(%a, %u, %i, %i)
}
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%o = f32[100,8]{1,0} add(%a, %a)", 3 * 3200),
        ("%o = f32[100,8]{1,0:T(8,128)S(1)} negate(%a)", 3200),  # S(1): stays on the chip
        ("%o = f32[100,8]{1,0} bitcast(%a)", 0),
        ("%o = f32[1,8]{1,0} fusion(%a, %i), kind=kLoop, calls=%slicing", 2 * 32 + 4),
        ("%o = f32[1,8]{1,0:S(1)} fusion(%a, %i), kind=kLoop, calls=%slicing", 32 + 4),
        ("%o = f32[100,8]{1,0} fusion(%a, %u, %i), kind=kLoop, calls=%updating", 2 * 32 + 4),
        (
            "%o = (f32[100,8]{1,0:S(1)}, f32[100,8]{1,0}, u32[]{:S(2)}) copy-start(%a)",
            3200,
        ),
        (
            "%o = ((f32[100,8]{1,0}), f32[10,8]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a), "
            "slice={[0:10], [0:8]}",
            320,
        ),
        ("%o = f32[100,8]{1,0} all-reduce(%a), replica_groups={{0,1}}, to_apply=%slicing", 0),
    ],
)
def test_bytes_to_and_from_memory(line, expected):
    program = entry(
        "%a = f32[100,8]{1,0} parameter(0)",
        "%u = f32[1,8]{1,0} parameter(1)",
        "%i = s32[]{:T(128)} parameter(2)",
        line,
        others=SLICING,
    )
    assert total(hlo.hbm_bytes, program) == expected


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("{}", ()),  # all devices
        ("{{0,2},{1,3}}", (0, 2)),
        ("[2,2]<=[4]", (0, 1)),
        ("[2,2]<=[2,2]T(1,0)", (0, 2)),
        ("mesh['data'=2,'fsdp'=2] {'fsdp'}", (0, 1)),
        ("mesh['data'=2,'fsdp'=2] {'data'}", (0, 2)),
        ("mesh['data'=2,'fsdp'=2] {'data','fsdp'}", (0, 1, 2, 3)),
        ("mesh['a'=3,'b'=1,'c'=2], device_ids=([2,3]T(1,0)) {'a'}", (0, 1, 2)),
        ("mesh['a'=3,'b'=1,'c'=2], device_ids=([2,3]T(1,0)) {'c'}", (0, 3)),
    ],
)
def test_groups_of_collectives(groups, first):
    program = entry(
        "%a = f32[100]{0} parameter(0)",
        f"%r = f32[100]{{0}} all-reduce(%a), replica_groups={groups}, to_apply=%add",
    )
    (found,) = hlo.collectives(program)
    assert (found.kind, found.bytes, found.group, found.times) == ("all-reduce", 400, first, 1)


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("%r = f32[100]{0} all-reduce(%a), replica_groups=[1,4]<=[4]", 2 * 400 * 3 / 4),
        ("%r = bf16[100]{0} all-reduce(%a), replica_groups=[1,4]<=[4]", 2 * 200 * 3 / 4),
        ("%r = f32[400]{0} all-gather(%a), replica_groups=[1,4]<=[4]", 1600 * 3 / 4),
        (
            "%r = (f32[100]{0}, f32[400]{0}) all-gather-start(%a), replica_groups=[1,4]<=[4]",
            1600 * 3 / 4,
        ),
        ("%r = f32[25]{0} reduce-scatter(%a), replica_groups=[1,4]<=[4]", 400 * 3 / 4),
        ("%r = f32[100]{0} all-to-all(%a), replica_groups=[1,4]<=[4]", 400 * 3 / 4),
        (
            "%r = (f32[100]{0}, f32[100]{0}) collective-permute-start(%a), "
            "source_target_pairs={{0,1},{1,0}}",
            400,
        ),
        # Operations on several arrays; S(1) is no reason to leave one out.
        (
            "%r = (f32[100]{0}, f32[100]{0:S(1)}) all-reduce(%a, %b), replica_groups={{0,1,2,3}}",
            2 * 800 * 3 / 4,
        ),
    ],
)
def test_bytes_that_a_device_sends(line, sent):
    program = entry("%a = f32[100]{0} parameter(0)", "%b = f32[100]{0:S(1)} parameter(1)", line)
    (found,) = hlo.collectives(program)
    assert found.sent(devices=4) == sent


FUSED = """\
%start (a: f32[25]) -> f32[100] {
  %a = f32[25]{0} parameter(0)
  ROOT %g = f32[100]{0} all-gather(%a), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}
%all-reduce-scatter.1 (b: f32[100]) -> f32[25] {
  %b = f32[100]{0} parameter(0)
  %r = f32[100]{0} all-reduce(%b), channel_id=1, replica_groups=[1,4]<=[4], to_apply=%add
  %z = s32[]{:T(128)} partition-id()
  ROOT %d = f32[25]{0} dynamic-slice(%r, %z), dynamic_slice_sizes={25}
}
"""


def test_collectives_inside_fusions():
    program = entry(
        "%a = f32[25]{0} parameter(0)",
        # An asynchronous one stands in the fusion that starts it and in those it runs beside.
        "%f = f32[100]{0} fusion(%a), kind=kCustom, calls=%start",
        "%g = f32[100]{0} fusion(%a), kind=kCustom, calls=%start",
        # A TPU's reduce-scatter; many have the same channel.
        "%s = f32[25]{0} fusion(%f), kind=kCustom, calls=%all-reduce-scatter.1",
        "%t = f32[25]{0} fusion(%f), kind=kCustom, calls=%all-reduce-scatter.1",
        "%r = f32[25]{0} all-reduce(%a), channel_id=8, replica_groups=[1,4]<=[4]",
        others=FUSED,
    )
    assert [(c.kind, c.bytes, c.hidden) for c in hlo.collectives(program)] == [
        ("all-gather", 400, True),
        ("reduce-scatter", 400, False),
        ("reduce-scatter", 400, False),
        ("all-reduce", 100, False),
    ]


def test_what_is_not_hlo_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("module @jit_f {}")
