"""The one big product, Z = X @ V: X (n, d) is tall, the V (d, K) of all fits stand side by side.

Their columns are P in all. X is multiplied in blocks of rows, held in memory or formed anew from the
table on disk, by one process or several.
"""

import numpy as np
import torch
import torch.nn.functional as F

from lore.memory import memory
from lore.processes import all_reduced, gathered, rank, world
from lore.tables import TABLE_ROWS

ROW_BLOCKS = 16  # blocks of rows that X is multiplied in: enough to feed the cores
COLUMN_TILE = 8  # P is filled up to a multiple, so that no column is rounded by what is beside it


class TallProduct(torch.autograd.Function):
    """Z = X @ V of every fit, for one X (Rows, or a tensor; no gradient) and several V: (n, K), ..

    One product for all columns together, by blocks of rows, one block per core at a time: forward
    and backward then read X at close to the speed of memory. X.T @ G as one call can be ten times
    slower.
    """

    @staticmethod
    def forward(ctx, X, *Vs):
        ctx.X = X if isinstance(X, Rows) else Rows(X)
        ctx.widths = [V.shape[1] for V in Vs]
        P = sum(ctx.widths)
        Vt = torch.cat([V.T for V in Vs])  # (P, d)
        Z = ctx.X.times(F.pad(Vt, (0, 0, 0, -P % COLUMN_TILE)))  # (n, d) @ (d, P) -> (n, P)
        return tuple(columns.contiguous() for columns in Z[:, :P].split(ctx.widths, dim=1))

    @staticmethod
    def backward(ctx, *Gs):
        P = sum(ctx.widths)
        G = F.pad(torch.cat(Gs, dim=1), (0, -P % COLUMN_TILE))  # (n, P)
        Vt_grad = ctx.X.transposed_times(G)[:P]  # ((d, n) @ (n, P)).T -> (P, d)
        return None, *(rows.T for rows in Vt_grad.split(ctx.widths))


class Rows:
    """X (n, d), a row for each pair: ROW_BLOCKS blocks of r rows, and the 0 .. 15 rows left over.

    Of several processes each has some of the blocks, and all have the rows left over. They exchange
    the products of their blocks, which are then added in the order in which one process adds them:
    everything outside this class reads as for one process. The rows left over are not filled up to
    a block with zeros: that would be shorter, but would change the last bits of every published fit.
    """

    def __init__(self, X):
        """A matrix that is here already, for this process alone."""
        self.r = len(X) // ROW_BLOCKS
        self.counts = (ROW_BLOCKS,)  # blocks of each process
        self.first = 0  # block of this process
        self.b = ROW_BLOCKS  # how many it has
        self.rest = X[ROW_BLOCKS * self.r :]  # (0 .. 15, d)
        self.held = X
        self.data = None

    @classmethod
    def of(cls, data, like):
        """The differences of Comparisons, in the dtype and on the device of a tensor.

        Where a process's share would take more than half of its memory, it is not held but formed
        anew, from the table on disk, in every pass.
        """
        r = len(data) // ROW_BLOCKS
        rows = cls(data.differences(like, slice(ROW_BLOCKS * r, len(data))))
        rows.r = r
        rows.counts = tuple(map(len, np.array_split(range(ROW_BLOCKS), world())))
        rows.first = sum(rows.counts[: rank()])
        rows.b = rows.counts[rank()]
        rows.data = data
        needed = (rows.end - rows.begin) * data.num_features * rows.rest.element_size()
        most = memory(rows.rest.device) / 2
        if needed > most and r:
            print(
                f"{len(data)} pairs take {needed / 1e9:.1f} GB, half of the memory is"
                f" {most / 1e9:.1f} GB: they are read anew in every pass"
            )
            rows.held = None
        else:
            rows.held = data.differences(like, slice(rows.begin, rows.end))
        return rows

    @property
    def begin(self):
        """First row of this process."""
        return self.first * self.r

    @property
    def end(self):
        """Row after its last one; the last process counts those left over as well."""
        last = self.first + self.b == ROW_BLOCKS
        return (self.first + self.b) * self.r + (len(self.rest) if last else 0)

    def times(self, Vt):
        """X @ Vt.T of the rows of all processes. (P, d) -> (n, P)"""
        Z = gathered(self.block_products(Vt), self.counts).flatten(0, 1)  # (16 * r, P)
        Z_rest = (self.rest.unsqueeze(1) * Vt).sum(2)  # (rows, 1, d) * (P, d) -> (rows, P)
        return torch.cat([Z, Z_rest])

    def transposed_times(self, G):
        """(X.T @ G).T over the rows of all processes, block by block. (n, P) -> (P, d)"""
        own = G[self.first * self.r : (self.first + self.b) * self.r]
        blocks = self.block_gradients(own.view(self.b, self.r, G.shape[1]))
        total = gathered(blocks, self.counts).sum(0)  # (16, P, d) -> (P, d)
        G_rest = G[ROW_BLOCKS * self.r :]
        total += (G_rest.unsqueeze(2) * self.rest.unsqueeze(1)).sum(0)  # (rows, P, d) -> (P, d)
        return total

    def accumulate(self, into, add):
        """`into` after add(into, rows, x) for each piece (rows, x) of X, summed over the processes."""
        for rows, x in self.pieces(self.begin, self.end):
            add(into, rows, x)
        return all_reduced(into)

    # ------------------------------------------------------------- blocks, held or formed anew ---

    def block_products(self, Vt):
        """Each of this process's blocks times V. (P, d) -> (b, r, P)"""
        if self.held is not None:
            X = self.held_blocks()
            Zt = torch.bmm(Vt.expand(self.b, -1, -1), X.mT)  # (b, P, d) @ (b, d, r) -> (b, P, r)
            return Zt.mT
        Z = Vt.new_empty(self.b, self.r, len(Vt))
        for block, out in enumerate(Z, self.first):
            parts = [Rows(x).times(Vt) for _, x in self.block_pieces(block)]
            torch.cat(parts, out=out)
        return Z

    def block_gradients(self, G):
        """Each of this process's blocks, transposed, times G, transposed. (b, r, P) -> (b, P, d)"""
        if self.held is not None:
            Gt = G.mT.contiguous()  # a layout that the product reads ten times as fast
            return torch.bmm(Gt, self.held_blocks())  # (b, P, r) @ (b, r, d) -> (b, P, d)
        grads = G.new_zeros(self.b, G.shape[2], self.rest.shape[1])
        for block, (out, g) in enumerate(zip(grads, G), self.first):
            for rows, x in self.block_pieces(block):
                place = slice(rows.start - block * self.r, rows.stop - block * self.r)
                out += Rows(x).transposed_times(g[place])
        return grads

    def held_blocks(self):
        """(b, r, d)"""
        return self.held[: self.b * self.r].reshape(self.b, self.r, self.rest.shape[1])

    def block_pieces(self, block):
        return self.pieces(block * self.r, (block + 1) * self.r)

    def pieces(self, first, last):
        """Yield (rows, x): the rows first .. last - 1, TABLE_ROWS at a time."""
        for begin in range(first, last, TABLE_ROWS):
            rows = slice(begin, min(begin + TABLE_ROWS, last))
            if self.held is None:
                yield rows, self.data.differences(self.rest, rows)
            else:
                yield rows, self.held[rows.start - self.begin : rows.stop - self.begin]


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
