"""torchrun, and nothing else: processes that make one run together."""

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


@contextmanager
def one_run():
    """The processes that torchrun has started find each other; only the first one prints."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend, timeout=timedelta(days=1)
    )  # torchrun ends all of them when one dies
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere if rank() else sys.stdout):
        yield
    dist.destroy_process_group()


@contextmanager
def together():
    """Around what needs all processes. ConnectionError: one of them has ended."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            f"process {rank()} of {world()}: another one has ended, see its message"
        ) from error


def from_first(function):
    """What the first process gets from calling it, in all of them; a mistake in the input ends them all."""
    if world() == 1:
        return function()
    result = [None, None]
    if rank() == 0:
        try:
            result[0] = function()
        except (ValueError, OSError) as error:
            result[1] = error
    with together():
        dist.broadcast_object_list(result)
    if result[1] is not None:
        raise result[1] if rank() == 0 else SystemExit(2)
    return result[0]


def summed(counts):
    """{name: whole number} summed over the processes."""
    return dict(zip(counts, all_reduced(torch.tensor(list(counts.values()))).tolist()))


def all_reduced(total):
    """The sum of what all processes have."""
    if world() > 1:
        with together():
            dist.all_reduce(total)
    return total


def gathered(blocks, counts):
    """Blocks (b, ..) of all processes, those of the first process first; counts: how many each one has."""
    if len(counts) == 1:
        return blocks
    mine = blocks.new_zeros(max(counts), *blocks.shape[1:])
    mine[: len(blocks)] = blocks
    parts = [torch.empty_like(mine) for _ in counts]
    with together():
        dist.all_gather(parts, mine)
    return torch.cat([part[:count] for part, count in zip(parts, counts)])


def as_first(*tensors):
    """The first process's values, in place, in all of them: no last bit may decide differently in two processes."""
    if world() > 1:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with together():
            dist.broadcast(flat, 0)
        for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(values.view_as(tensor))
    return tensors


def by_first_process(function):
    """For what is written or drawn once, whatever the number of processes."""
    return wraps(function)(
        lambda *args, **options: function(*args, **options) if rank() == 0 else None
    )
