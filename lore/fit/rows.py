"""Who holds the rows of X: one process or several, in memory or, anew for each reading, from disk."""

import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lore.fit.comparisons import Comparisons
from lore.processes import rank, world
from lore.splits import TABLE_ROWS

ROW_BLOCKS = 16  # blocks of rows that X is multiplied in: enough to feed the cores
# Of a block at a time where X is read once, few enough to stay in the cache: half as many took as long
# on two cores of a Xeon, and up to a tenth longer on two of an AMD EPYC (family 25, model 1).
PIECE_ROWS = 256


class Rows:
    """X (n, d), a row for each pair: ROW_BLOCKS blocks of r rows, and the 0 .. 15 rows left over.

    Of several processes each has some of the blocks, and all have the rows left over. The rows left
    over are not filled up to a block with zeros: the code would be shorter, but a matrix in memory
    would have to be copied.
    """

    def __init__(self, X):
        """A matrix that is here already, for this process alone."""
        self.r = len(X) // ROW_BLOCKS
        self.counts = (ROW_BLOCKS,)  # blocks of each process
        self.b = ROW_BLOCKS  # how many this one has
        self.begin = 0  # first row of this process
        self.rest = X[ROW_BLOCKS * self.r :]  # (0 .. 15, d)
        self.held = X[: ROW_BLOCKS * self.r].unflatten(0, (self.b, self.r))  # (b, r, d)
        self.data = None

    @classmethod
    def of(cls, data, like):
        """The differences of Comparisons, in the dtype and on the device of a tensor.

        Where a process's share would take more than half of its memory, it is not held but formed
        anew, from the table on disk, whenever it is read.
        """
        return cls.formed(data, like, fits_in_memory(len(data), data.num_features, like))

    @classmethod
    def apart(cls, data, like, parts):
        """The same of each of several sets of pairs, (m,) of their numbers: yields Rows"""
        held = fits_in_memory(sum(map(len, parts)), data.num_features, like)
        for rows in parts:
            yield cls.formed(SomePairs(data, rows.to(data.user.device)), like, held)

    @classmethod
    def formed(cls, data, like, held):
        """Of Comparisons or SomePairs, held in memory or formed anew."""
        r = len(data) // ROW_BLOCKS
        rows = cls(data.differences(like, slice(ROW_BLOCKS * r, len(data))))
        rows.r = r
        rows.counts = blocks_of_processes()
        rows.b = rows.counts[rank()]
        rows.begin = sum(rows.counts[: rank()]) * r
        rows.data = data
        rows.held = None
        if held:
            share = data.differences(like, slice(rows.begin, rows.begin + rows.b * r))
            rows.held = share.unflatten(0, (rows.b, r))
        return rows

    @property
    def left_over(self):
        """Numbers of the rows left over."""
        return torch.arange(len(self.rest)) + ROW_BLOCKS * self.r

    def pieces(self, small=False):
        """Yield (blocks, cut, rows, x): x (k, s, d), the same cut of k blocks; rows: their numbers.

        All rows at once; `small`, or where they are formed anew: at most PIECE_ROWS of as many blocks
        as there are threads; on a GPU, where every call costs, TABLE_ROWS of all blocks together.
        """
        numbers = torch.arange(self.b * self.r).view(self.b, self.r) + self.begin
        most = self.r
        if small or self.held is None:
            most = TABLE_ROWS // ROW_BLOCKS if self.rest.is_cuda else PIECE_ROWS
        # parts of like sizes: the products of a few rows left over would be rounded differently
        parts = math.ceil(self.r / max(most, 1))
        k = ROW_BLOCKS if parts == 1 or self.rest.is_cuda else torch.get_num_threads()
        for first in range(0, self.b, k):
            blocks = slice(first, first + k)
            for part in range(parts):
                cut = slice(part * self.r // parts, (part + 1) * self.r // parts)
                rows = numbers[blocks, cut]
                if self.held is None:
                    x = self.data.differences(self.rest, rows.flatten()).unflatten(0, rows.shape)
                else:
                    x = self.held[blocks, cut]
                yield blocks, cut, rows, x


class SomePairs(NamedTuple):
    """What Rows read of Comparisons, of some of their pairs alone."""

    data: Comparisons
    numbers: torch.Tensor  # (m,)

    def __len__(self):
        return len(self.numbers)

    def differences(self, example, rows):
        return self.data.differences(example, self.numbers[rows])


def blocks_of_processes():
    """How many of the blocks each process has."""
    return tuple(map(len, np.array_split(range(ROW_BLOCKS), world())))


# ------------------------------------------------------------------------------------------------
# Bytes that this process may use
# ------------------------------------------------------------------------------------------------


def fits_in_memory(n, d, like):
    """Whether this process's share of X (n, d) takes no more than half of its memory."""
    share = n // ROW_BLOCKS * blocks_of_processes()[rank()]
    needed = share * d * like.element_size()
    most = memory(like.device) / 2
    if needed > most:
        print(
            f"{n} pairs take {needed / 1e9:.1f} GB, half of the memory is"
            f" {most / 1e9:.1f} GB: they are read anew in every pass"
        )
    return needed <= most


def memory(device):
    """Bytes that this process can have: of its GPU, or of the machine within the limits set."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of this run on this machine
    shared = [limit / processes for limit in (machine, *control_group_limits())]
    return min([*shared, *process_limits()])


def control_group_limits():
    """Bytes that a container or a job of a cluster may have (Linux control groups)."""
    groups = Path("/proc/self/cgroup")
    if not groups.exists():
        return
    for line in groups.read_text().split():
        if line.count(":") < 2:
            continue
        _, kind, path = line.split(":", 2)
        if kind not in ("", "memory"):
            continue
        name = "memory.limit_in_bytes" if kind else "memory.max"  # of version 1 and 2
        group = Path("/sys/fs/cgroup", kind, path.strip("/"))
        for folder in (group, *group.parents):
            file = folder / name
            if file.exists() and (text := file.read_text().strip()).isdigit():
                yield int(text)


def process_limits():
    """Bytes that `ulimit -v` and `ulimit -d` leave to this process."""
    used = Path("/proc/self/statm")
    if not used.exists():
        return
    import resource  # not on every system

    pages = used.read_text().split()
    for kind, column in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            yield limit - os.sysconf("SC_PAGE_SIZE") * int(pages[column])
