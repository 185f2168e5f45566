"""What accelerators can do."""

import dataclasses
import functools
import logging
import os
from collections.abc import Sequence

import jax

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as its maker specifies it; numbers are a chip's, without sparsity.

    Attributes:
      device_kinds: what `jax.Device.device_kind` says of it.
      peak_flops: dense bfloat16 FLOP/s.
      memory_bytes, memory_bandwidth: of the HBM, in bytes and bytes/s.
      interconnect_bandwidth: bytes/s out of the chip over all its links (ICI, NVLink).
      cores: compute cores that XLA may treat as devices of their own.
      clock_hz: of the matrix units, to turn XLA's cycle estimates into time; None on GPUs, for
        which XLA gives none.
      torus: dimensions of a TPU's interconnect, two links each; 0 where a switch joins all.
      ring: a slice's dimension is closed to a ring if its extent is a multiple of this.
    """

    name: str
    device_kinds: tuple[str, ...]
    peak_flops: float
    memory_bytes: float
    memory_bandwidth: float
    interconnect_bandwidth: float
    cores: int = 1
    clock_hz: float | None = None
    torus: int = 0
    ring: int = 0


# TPUs: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e ("key chip specifications"); GB of HBM are GiB.
# Interconnect: half of the bidirectional number (v4 600, v5e 400, v5p 1200, v6e 800 GB/s).
# Clocks: peak / (2 × multipliers); each TensorCore has four 128 × 128 units, v6e's 256 × 256.
# GPUs: NVIDIA's data sheets, bfloat16 without sparsity; of NVLink and PCIe one direction, half of
# what the sheets name.
CHIPS = (
    Chip("v4", ("TPU v4",), 275e12, 32 * 2**30, 1228e9, 300e9, 2, 1.05e9, torus=3, ring=4),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * 2**30, 819e9, 200e9, 1, 1.5e9, 2, ring=16),
    Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * 2**30, 2765e9, 600e9, 2, 1.75e9, 3, ring=4),
    Chip(
        "v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * 2**30, 1640e9, 400e9, 1, 1.75e9, 2, ring=16
    ),
    Chip("A100 40GB", ("NVIDIA A100-SXM4-40GB",), 312e12, 40e9, 1555e9, 300e9),
    Chip("A100 80GB", ("NVIDIA A100-SXM4-80GB",), 312e12, 80e9, 2039e9, 300e9),
    Chip("A100 PCIe 40GB", ("NVIDIA A100-PCIE-40GB",), 312e12, 40e9, 1555e9, 32e9),
    Chip("A100 PCIe 80GB", ("NVIDIA A100 80GB PCIe",), 312e12, 80e9, 1935e9, 32e9),
    Chip("L4", ("NVIDIA L4",), 121e12, 24e9, 300e9, 32e9),
    Chip("H100 PCIe", ("NVIDIA H100 PCIe",), 756e12, 80e9, 2000e9, 64e9),
    Chip("H100 NVL", ("NVIDIA H100 NVL",), 835e12, 94e9, 3900e9, 300e9),
    Chip("H100", ("NVIDIA H100 80GB HBM3",), 989e12, 80e9, 3350e9, 450e9),
    Chip("H200", ("NVIDIA H200",), 989e12, 141e9, 4800e9, 450e9),
    Chip("B200", ("NVIDIA B200",), 2250e12, 180e9, 7700e9, 900e9),
)


def chip_of(device: jax.Device) -> Chip | None:
    """The device's entry in `CHIPS`; None if it has none (CPUs)."""
    return next((chip for chip in CHIPS if device.device_kind in chip.device_kinds), None)


@functools.cache
def _log_unknown(device_kind: str) -> None:
    LOG.warning(
        "no MFU: the peak of %r is not in the table of bert_jax/parallel/hardware.py", device_kind
    )


def memory_of_host() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_of_device(device: jax.Device) -> int | None:
    """Bytes that JAX may take of a device; None where nobody says.

    Of CPUs that is the machine's memory, which its devices share.
    """
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None and (chip := chip_of(device)):
        limit = int(chip.memory_bytes * share_of_chip(device, chip))
    if limit is None and device.platform == "cpu":
        limit = memory_of_host()
    return limit


def share_of_chip(device: jax.Device, chip: Chip) -> float:
    """The part of `chip` that is this JAX device: half, where each of two cores is a device."""
    return getattr(device, "num_cores", chip.cores) / chip.cores


def group_bandwidth(
    chip: Chip, group: Sequence[jax.Device], devices: Sequence[jax.Device]
) -> float:
    """Bytes/s that each device of `group` can send to the others by the links between them.

    On a torus those are the links of the dimensions in which the group extends: two where it spans
    a closed ring, else one.

    Args:
      group: devices of one collective.
      devices: all of the slice.
    """
    if not chip.torus or not hasattr(devices[0], "coords"):
        return chip.interconnect_bandwidth
    links = 0
    for d in range(len(devices[0].coords)):
        extent = len({device.coords[d] for device in devices})
        spanned = len({device.coords[d] for device in group})
        if spanned > 1:
            links += 2 if spanned == extent and extent % chip.ring == 0 else 1
    # A group of one chip's two cores needs no link: on-chip traffic is not the bottleneck.
    return chip.interconnect_bandwidth * (links or 2 * chip.torus) / (2 * chip.torus)


def peak_flops(device: jax.Device) -> float | None:
    """Dense bfloat16 FLOP/s of a JAX device; None for a chip that is not in the table.

    For an accelerator that is not there a line is logged, once.
    """
    chip = chip_of(device)
    if chip is None and device.platform != "cpu":
        _log_unknown(device.device_kind)
    return chip.peak_flops * share_of_chip(device, chip) if chip else None
