"""The table of chips."""

import types

import jax
import numpy as np
import pytest

from bert_jax.parallel import hardware


@pytest.mark.parametrize(
    ("kind", "cores", "expected"),
    [
        ("TPU v5 lite", 1, 197e12),
        ("TPU v4", 2, 275e12),
        ("TPU v4", 1, 137.5e12),  # each of the chip's two cores is a device
        ("NVIDIA H100 80GB HBM3", None, 989e12),
        ("NVIDIA H100 PCIe", None, 756e12),
        ("NVIDIA L4", None, 121e12),
    ],
)
def test_peak_flops(kind, cores, expected):
    device = types.SimpleNamespace(device_kind=kind, platform="gpu" if cores is None else "tpu")
    if cores:
        device.num_cores = cores
    assert hardware.peak_flops(device) == expected


def test_an_accelerator_outside_the_table_is_named_once(caplog):
    unknown = types.SimpleNamespace(device_kind="NVIDIA T1000", platform="gpu")
    for _ in range(3):
        assert hardware.peak_flops(unknown) is None
    assert caplog.text.count("no MFU: the peak of 'NVIDIA T1000' is not in the table") == 1
    assert hardware.peak_flops(jax.devices()[0]) is None  # a CPU: nothing is expected
    assert "cpu" not in caplog.text


def test_device_kinds_are_unambiguous():
    kinds = [kind for chip in hardware.CHIPS for kind in chip.device_kinds]
    assert len(kinds) == len(set(kinds))


def slice_of(*extents: int) -> list[types.SimpleNamespace]:
    """A TPU slice's devices, as far as their place goes; two dimensions or three."""
    extents = (*extents, 1)[:3]
    return [types.SimpleNamespace(coords=coords) for coords in np.ndindex(*extents)]


@pytest.mark.parametrize(
    ("name", "extents", "varying", "links"),
    [
        ("v5e", (16, 16), (0, 1), 4),  # all of a full pod: two rings of two links
        ("v5e", (16, 16), (0,), 2),  # a row of it
        ("v5e", (4, 4), (0, 1), 2),  # lines, not rings: only 16 close
        ("v5p", (8, 8, 8), (0, 1, 2), 6),
        ("v5p", (8, 8, 8), (2,), 2),
        ("v5p", (2, 2, 1), (0, 1), 2),
    ],
)
def test_bandwidth_of_a_group_is_that_of_its_links(name, extents, varying, links):
    chip = next(chip for chip in hardware.CHIPS if chip.name == name)
    devices = slice_of(*extents)
    group = [d for d in devices if all(d.coords[i] == 0 for i in range(3) if i not in varying)]
    link = chip.interconnect_bandwidth / (2 * chip.torus)
    assert hardware.group_bandwidth(chip, group, devices) == links * link


def test_bandwidth_behind_a_switch_is_the_chip_s():
    chip = next(chip for chip in hardware.CHIPS if chip.name == "H100")
    devices = [types.SimpleNamespace() for _ in range(8)]
    assert hardware.group_bandwidth(chip, devices[:2], devices) == 450e9
