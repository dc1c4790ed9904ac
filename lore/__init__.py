"""What utils.py and the scripts stand on.

Two things about rounding are settled here, before the first product.
"""

import os
import platform
from pathlib import Path

import torch

FUNCTIONS = ("acos", "cos", "erf", "exp", "expm1", "log", "log1p", "sin", "sqrt", "tan", "tanh")


def ask_for_equal_bits():
    """MKL on Intel's processors: a column of a product has the same bits whatever stands beside it.

    Without its strict mode it has not, from some width on, and a fit of a sweep leaves the path that
    it takes alone. What the user has set stays. Other processors may get a slow path of MKL's for
    it, and other libraries have no such mode (`rounded_alike` of lore/fit/product.py tries it out).
    """
    if is_intel():
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def is_intel():
    cpu = Path("/proc/cpuinfo")  # of Linux; elsewhere the name of the processor says it
    return "GenuineIntel" in (cpu.read_text() if cpu.exists() else platform.processor())


def settle_kernels():
    """Call each function once, with one number of each type.

    Which kernel computes an elementwise function is settled by its first call, and where several
    threads make that call at once, one of them may use a kernel of low accuracy (MKL before 2025,
    pytorch issue 188792: thousands of units in the last place, in that call alone).
    """
    for function in FUNCTIONS:
        for dtype in (torch.float32, torch.float64):
            getattr(torch, function)(torch.ones(1, dtype=dtype))


ask_for_equal_bits()
settle_kernels()
