"""The one big product, Z = X @ V: X (n, d) is tall, the V (d, K) of all fits stand side by side.

Their columns are P in all. X is multiplied in blocks of rows, held in memory or formed anew from the
table on disk, by one process or several.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from lore.fit.memory import memory
from lore.processes import all_reduced, gathered, rank, world
from lore.splits import TABLE_ROWS

ROW_BLOCKS = 16  # blocks of rows that X is multiplied in: enough to feed the cores
PIECE_ROWS = 128  # of a block at a time where X is read once: few enough to stay in the cache
COLUMN_TILE = 8  # P is filled up to a multiple, so that no column is rounded by what is beside it


class TallProduct(torch.autograd.Function):
    """Z = X @ V of every fit, for one X (Rows, or a tensor; no gradient) and several V: (n, K), ..

    One product for all columns together, by blocks of rows, one block per core at a time: X.T @ G as
    one call can be ten times slower.
    """

    @staticmethod
    def forward(ctx, X, *Vs):
        ctx.X = X if isinstance(X, Rows) else Rows(X)
        ctx.widths = [V.shape[1] for V in Vs]
        Zt = ctx.X.times(side_by_side(Vs))  # ((n, d) @ (d, P)).T -> (P, n)
        return apart(Zt, ctx.widths)

    @staticmethod
    def backward(ctx, *Gs):
        Vt_grad = ctx.X.transposed_times(side_by_side(Gs))  # ((d, n) @ (n, P)).T -> (P, d)
        return None, *apart(Vt_grad, ctx.widths)


def side_by_side(matrices):
    """(rows, K) of each fit -> (P, rows), filled up with zeros."""
    columns = torch.cat([matrix.T for matrix in matrices])
    return F.pad(columns, (0, 0, 0, -len(columns) % COLUMN_TILE))


def apart(columns, widths):
    """(P, rows) -> (rows, K) of each fit, without what was filled up."""
    parts = columns[: sum(widths)].split(widths)
    return tuple(part.T.contiguous() for part in parts)


class Rows:
    """X (n, d), a row for each pair: ROW_BLOCKS blocks of r rows, and the 0 .. 15 rows left over.

    Of several processes each has some of the blocks, and all have the rows left over. They exchange
    the products of their blocks, which are then added in the order in which one process adds them:
    everything outside this class reads as for one process. The rows left over are not filled up to
    a block with zeros: the code would be shorter, but a matrix in memory would have to be copied.
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
        r = len(data) // ROW_BLOCKS
        rows = cls(data.differences(like, slice(ROW_BLOCKS * r, len(data))))
        rows.r = r
        rows.counts = tuple(map(len, np.array_split(range(ROW_BLOCKS), world())))
        rows.b = rows.counts[rank()]
        rows.begin = sum(rows.counts[: rank()]) * r
        rows.data = data
        needed = rows.b * r * data.num_features * rows.rest.element_size()
        most = memory(rows.rest.device) / 2
        if needed > most:
            print(
                f"{len(data)} pairs take {needed / 1e9:.1f} GB, half of the memory is"
                f" {most / 1e9:.1f} GB: they are read anew in every pass"
            )
            rows.held = None
        else:
            own = data.differences(like, slice(rows.begin, rows.begin + rows.b * r))
            rows.held = own.unflatten(0, (rows.b, r))
        return rows

    def times(self, Vt):
        """Zt = Vt @ X.T of the rows of all processes. (P, d) -> (P, n)"""
        Zt = Vt.new_empty(self.b, len(Vt), self.r)
        for blocks, cut, _, x in self.pieces():
            z = torch.bmm(Vt.expand(len(x), -1, -1), x.mT)  # (k, P, d) @ (k, d, s)
            Zt[blocks, :, cut] = z
        return self.every_row(Zt, Vt)

    def transposed_times(self, Gt):
        """Gt @ X over the rows of all processes, block by block. (P, n) -> (P, d)"""
        own = Gt[:, self.begin : self.begin + self.b * self.r].unflatten(1, (self.b, self.r))
        sums = Gt.new_zeros(self.b, len(Gt), self.rest.shape[1])
        for blocks, cut, _, x in self.pieces():
            g = own[:, blocks, cut].transpose(0, 1)
            sums[blocks].baddbmm_(g, x)  # (k, P, s) @ (k, s, d)
        return self.every_sum(sums, Gt[:, ROW_BLOCKS * self.r :])

    def times_and_back(self, Vt, slopes):
        """Zt = Vt @ X.T, (P, n), and Gt @ X, (P, d), in one read of X, where Gt follows from Zt.

        slopes(z (k, P, s), rows (k, s)) -> Gt (k, P, s), for these rows of k blocks. On a GPU small
        pieces would be many calls: rows that are held are one piece there, and are read twice.
        """
        Zt = Vt.new_empty(self.b, len(Vt), self.r)
        sums = Vt.new_zeros(self.b, *Vt.shape)
        for blocks, cut, rows, x in self.pieces(small=not Vt.is_cuda):
            z = torch.bmm(Vt.expand(len(x), -1, -1), x.mT)  # (k, P, d) @ (k, d, s)
            Zt[blocks, :, cut] = z
            sums[blocks].baddbmm_(slopes(z, rows), x)  # (k, P, s) @ (k, s, d)
        Zt = self.every_row(Zt, Vt)
        z_rest = Zt[:, ROW_BLOCKS * self.r :].unsqueeze(0)
        return Zt, self.every_sum(sums, slopes(z_rest, self.rows_left().unsqueeze(0))[0])

    def every_row(self, Zt, Vt):
        """Products of this process's blocks -> those of all rows. (b, P, r) -> (P, n)"""
        blocks = gathered(Zt, self.counts).transpose(0, 1)  # (P, 16, r)
        Zt_rest = (Vt.unsqueeze(1) * self.rest).sum(2)  # (P, 1, d) * (rows, d) -> (P, rows)
        return torch.cat([blocks.flatten(1), Zt_rest], dim=1)

    def every_sum(self, sums, Gt_rest):
        """Sums over this process's blocks -> that over all rows. (b, P, d) -> (P, d)"""
        total = gathered(sums, self.counts).sum(0)  # (16, P, d) -> (P, d)
        return total + (Gt_rest.unsqueeze(2) * self.rest).sum(1)  # (P, rows, d) -> (P, d)

    def accumulate(self, into, add):
        """`into` after add(into, rows, x) for some rows x of X at a time, over all processes."""
        for _, _, rows, x in self.pieces(small=True):
            add(into, rows.flatten(), x.flatten(0, 1))
        into = all_reduced(into)
        add(into, self.rows_left(), self.rest)
        return into

    def rows_left(self):
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


def project(comparisons, Vs):
    """Z = X @ V for each V (d, K) of a list, without forming X: [(n, K), ..].

    Every table row in use goes through all V once, (rows, d) @ (d, P), and is then gathered.
    """
    if comparisons.chosen is None:
        return project_rows(comparisons.table.split(TABLE_ROWS), Vs)
    replies = torch.cat([comparisons.chosen, comparisons.rejected])
    used, place = replies.unique(return_inverse=True)
    chosen, rejected = place.view(2, -1)  # of each pair among the rows in use
    blocks = (comparisons.table[rows] for rows in used.split(TABLE_ROWS))
    return [R[chosen] - R[rejected] for R in project_rows(blocks, Vs)]


@torch.no_grad()
def project_rows(blocks, Vs):
    """Blocks (rows, d) of embeddings through each V: [(all rows, K), ..]."""
    parts = [TallProduct.apply(rows.to(Vs[0]), *Vs) for rows in blocks]
    return [torch.cat(part) for part in zip(*parts)]
