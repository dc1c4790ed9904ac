"""torchrun, and nothing else: several processes that make one run; without it there is one."""

import os
import sys
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from functools import wraps

import torch
import torch.distributed as dist


def rank():
    """Number of this process, the first being 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def one_of_several():
    """Whether torchrun has started this process and others."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


@contextmanager
def one_run():
    """The processes that torchrun has started find each other; only the first one prints."""
    if not one_of_several():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # waiting is no fault, however long: torchrun itself ends all of them when one dies
    dist.init_process_group(backend, timeout=timedelta(days=1))
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if rank() else sys.stdout):
        yield
    dist.destroy_process_group()


@contextmanager
def together():
    """Around what needs all processes. ConnectionError: one of them has ended."""
    try:
        yield
    except RuntimeError as error:
        text = f"process {rank()} of {world()}: another one has ended, see its message"
        raise ConnectionError(text) from error


def by_first_process(function):
    """For what is written or drawn once, whatever the number of processes."""

    @wraps(function)
    def once(*arguments, **options):
        return function(*arguments, **options) if rank() == 0 else None

    return once


# ------------------------------------------------------------------------------------------------
# What one knows, all know
# ------------------------------------------------------------------------------------------------


def from_first(function):
    """What calling it gives the first process, in all of them; an error of its ends them all."""
    if world() == 1:
        return function()
    result = [None]
    if rank() == 0:
        try:
            result = [function()]
        except (ValueError, OSError) as error:
            result = [error]
    with together():
        dist.broadcast_object_list(result)
    if isinstance(result[0], Exception):
        raise result[0] if rank() == 0 else SystemExit(2)
    return result[0]


def agreed(value):
    """The first process's number or tensor, in all of them.

    Around whatever decides how a computation goes on: processes that round differently, as GPUs
    do, must not part ways over a last bit.
    """
    if world() == 1:
        return value
    if not isinstance(value, torch.Tensor):
        return from_first(lambda: value)
    value = value.detach().clone()
    with together():
        dist.broadcast(value, 0)
    return value


class Adam(torch.optim.Adam):
    """torch's Adam; of several processes, all step along the first one's gradients."""

    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = agreed(parameter.grad)
        super().step()


def all_reduced(total):
    """The sum of what all processes have."""
    if world() > 1:
        with together():
            dist.all_reduce(total)
    return total


def summed(counts):
    """{name: whole number} summed over the processes."""
    total = all_reduced(torch.tensor(list(counts.values())))
    return dict(zip(counts, total.tolist()))


def gathered(blocks, counts):
    """Blocks (b, ..) of all processes, the first one's first; counts: how many each one has."""
    if len(counts) == 1:
        return blocks
    mine = blocks.new_zeros(max(counts), *blocks.shape[1:])  # all_gather wants equal shapes
    mine[: len(blocks)] = blocks
    parts = [torch.empty_like(mine) for _ in counts]
    with together():
        dist.all_gather(parts, mine)
    return torch.cat([part[:count] for part, count in zip(parts, counts)])
