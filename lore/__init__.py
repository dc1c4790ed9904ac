"""What utils.py and the scripts stand on.

The first call of an elementwise function by several threads at once may be computed by a kernel of
low accuracy (MKL before 2025, pytorch issue 188792: relative errors of 1e-3, in that call alone).
One number by one thread settles which kernel is used, before anything is computed.
"""

import torch

FUNCTIONS = ("acos", "cos", "erf", "exp", "expm1", "log", "log1p", "sin", "sqrt", "tan", "tanh")


def settle_kernels():
    """Call each function once, with one number of each type."""
    for function in FUNCTIONS:
        for dtype in (torch.float32, torch.float64):
            getattr(torch, function)(torch.ones(1, dtype=dtype))


settle_kernels()
