"""What utils.py and the scripts stand on.

Which kernel computes an elementwise function is settled by its first call, and where several
threads make that call at once, one of them may use a kernel of low accuracy (MKL before 2025,
pytorch issue 188792: thousands of units in the last place, in that call alone). So each function
is called here with one number first, by one thread.
"""

import torch

FUNCTIONS = ("acos", "cos", "erf", "exp", "expm1", "log", "log1p", "sin", "sqrt", "tan", "tanh")


def settle_kernels():
    """Call each function once, with one number of each type."""
    for function in FUNCTIONS:
        for dtype in (torch.float32, torch.float64):
            getattr(torch, function)(torch.ones(1, dtype=dtype))


settle_kernels()
