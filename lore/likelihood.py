"""The likelihood of all comparisons, and the one big product that it rests on."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from lore.common import memory
from lore.comparisons import Comparisons
from lore.processes import all_reduced, gathered, rank, world
from lore.tables import TABLE_ROWS

LOGIT_SCALE = 100.0  # divides every reward difference; as published, it sets what a learning rate of 0.5 means
ROW_BLOCKS = 16  # blocks of rows that X is multiplied in: enough to feed the cores
COLUMN_TILE = 8  # X is multiplied by a multiple of this many columns, so that none is rounded by what stands beside it


def margins(Z, W, user):
    """x @ V @ w_user of every pair: the pair's own user only, never all C. (n, K), (C, K), (n,) -> (n,)"""
    return (Z * W.index_select(0, user)).sum(dim=1)


def negative_log_likelihood(Z, W, user, weight):
    """sum_j weight_j * -log sigmoid(z_j . w_user(j) / LOGIT_SCALE). Shapes (n, K), (C, K), (n,), (n,) -> scalar.

    With weight 1 / (pairs of the user) this is Eq. 10, and with V frozen Eq. 11.
    """
    return -(F.logsigmoid(margins(Z, W, user) / LOGIT_SCALE) * weight).sum()


def user_mean_weights(user):
    """1 / m_i for each pair of user i: makes a sum over pairs the sum over users of their means. (n,)"""
    return torch.bincount(user).double().reciprocal()[user]


@dataclass
class Rows:
    """X (n, d), one row for each pair, in ROW_BLOCKS blocks of r rows and the few rows left over.

    Of several processes each has its share of the blocks, and all have what is left over. Rows that would take more
    than half of the memory are not held but formed anew, from the table on disk, in every pass.
    """

    held: (
        torch.Tensor | None
    )  # (rows, d) of this process; the last one's end with those left over; None: read anew
    rest: torch.Tensor  # (0 .. 15, d) left over; also the dtype and device of X
    r: int
    mine: range = range(ROW_BLOCKS)  # blocks of this process
    counts: tuple = (ROW_BLOCKS,)  # blocks of each process
    data: Comparisons | None = None  # what rows are formed from

    @classmethod
    def whole(cls, X):
        """A matrix that is here already, for this process alone."""
        r = len(X) // ROW_BLOCKS
        return cls(X, X[ROW_BLOCKS * r :], r)

    @classmethod
    def of(cls, data, like):
        """The differences of Comparisons, in the dtype and on the device of a tensor, shared by all processes."""
        r = len(data) // ROW_BLOCKS
        counts = tuple(len(part) for part in np.array_split(range(ROW_BLOCKS), world()))
        first = sum(counts[: rank()])
        rest = data.differences(like, slice(ROW_BLOCKS * r, len(data)))
        rows = cls(None, rest, r, range(first, first + counts[rank()]), counts, data)
        needed, most = (
            (rows.end - rows.begin) * rest.shape[1] * rest.element_size(),
            memory(rest.device) / 2,
        )
        if needed <= most or not r:
            rows.held = data.differences(like, slice(rows.begin, rows.end))
        else:
            print(
                f"{len(data)} pairs take {needed / 1e9:.1f} GB, half of the memory is {most / 1e9:.1f} GB:"
                " they are read anew in every pass"
            )
        return rows

    @property
    def begin(self):
        """First row of this process."""
        return self.mine.start * self.r

    @property
    def end(self):
        """Row after its last one; the last process counts those left over as well."""
        return self.mine.stop * self.r + (len(self.rest) if rank() == len(self.counts) - 1 else 0)

    @property
    def main(self):
        """Its blocks, (b, r, d)."""
        return self.held[: len(self.mine) * self.r].reshape(
            len(self.mine), self.r, self.held.shape[1]
        )

    def pieces(self, first, last):
        """Yield (rows, x): the rows first .. last - 1, some at a time."""
        for begin in range(first, last, TABLE_ROWS):
            rows = slice(begin, min(begin + TABLE_ROWS, last))
            if self.held is None:
                yield rows, self.data.differences(self.rest, rows)
            else:
                yield rows, self.held[rows.start - self.begin : rows.stop - self.begin]

    def blocks(self):
        """Yield the pieces of each block of this process that is not held."""
        for block in self.mine:
            yield self.pieces(block * self.r, (block + 1) * self.r)

    def times(self, Vt):
        """X @ Vt.T, of the rows of all processes. (P, d) -> (n, P)"""
        if self.held is not None:
            X = self.main
            Z = torch.bmm(Vt.expand(len(X), -1, -1), X.transpose(1, 2)).transpose(
                1, 2
            )  # (b, P, d) @ (b, d, r)
        else:
            Z = Vt.new_empty(len(self.mine), self.r, len(Vt))
            for out, pieces in zip(Z, self.blocks()):
                torch.cat([Rows.whole(x).times(Vt) for _, x in pieces], out=out)
        Z_rest = (self.rest.unsqueeze(1) * Vt).sum(2)  # (1 .. 15 rows, 1, d) * (P, d) -> (rows, P)
        return torch.cat([gathered(Z, self.counts).flatten(0, 1), Z_rest])

    def transposed_times(self, G):
        """(X.T @ G).T, over the rows of all processes, block by block in their order. (n, P) -> (P, d)"""
        G_main, G_rest = G[: ROW_BLOCKS * self.r], G[ROW_BLOCKS * self.r :]
        if self.held is not None:
            Gt = (
                G_main.view(ROW_BLOCKS, self.r, G.shape[1])[self.mine.start : self.mine.stop]
                .transpose(1, 2)
                .contiguous()
            )
            grads = torch.bmm(Gt, self.main)  # (b, P, r) @ (b, r, d) -> (b, P, d)
        else:
            grads = G.new_zeros(len(self.mine), G.shape[1], self.rest.shape[1])
            for out, pieces in zip(grads, self.blocks()):
                for rows, x in pieces:
                    out += Rows.whole(x).transposed_times(G_main[rows])
        total = gathered(grads, self.counts).sum(0)
        total += (G_rest.unsqueeze(2) * self.rest.unsqueeze(1)).sum(
            0
        )  # (rows, P, 1) * (rows, 1, d) -> (P, d)
        return total

    def total(self, total, add):
        """`total` after add(total, rows, x) for all pieces of X, summed over the processes."""
        for rows, x in self.pieces(self.begin, self.end):
            add(total, rows, x)
        return all_reduced(total)


class TallProduct(torch.autograd.Function):
    """Z = X @ V of every fit, for one tall X (Rows, or a tensor; no gradient) and several thin V (d, K): (n, K), ..

    One product for all columns together, by blocks of rows, one block per core at a time: forward and backward then
    read X at close to memory speed; X.T @ G as one call can be ten times slower. Several processes exchange Z and the
    gradients of the blocks, which are then added in the same order as by one. All else each does alike, with the first
    one's gradients and decisions (as_first, from_first), as GPUs round anew every time.
    """

    @staticmethod
    def padding(P):
        return -P % COLUMN_TILE

    @staticmethod
    def forward(ctx, X, *Vs):
        ctx.X = X if isinstance(X, Rows) else Rows.whole(X)
        ctx.widths = [V.shape[1] for V in Vs]
        P = sum(ctx.widths)
        Z = ctx.X.times(
            F.pad(torch.cat([V.T for V in Vs]), (0, 0, 0, TallProduct.padding(P)))
        )  # (P, d) -> (n, P)
        return tuple(columns.contiguous() for columns in Z[:, :P].split(ctx.widths, dim=1))

    @staticmethod
    def backward(ctx, *Gs):
        P = sum(ctx.widths)
        Vt_grad = ctx.X.transposed_times(
            F.pad(torch.cat(Gs, dim=1), (0, TallProduct.padding(P)))
        )  # (n, P) -> (P, d)
        return None, *(rows.T for rows in Vt_grad[:P].split(ctx.widths))


def project(comparisons, Vs):
    """Z = X @ V for each V (d, K) of a list, without forming X: [(n, K), ..].

    Every table row in use goes through all V once, (rows, d) @ (d, P), and is then gathered.
    """
    like, direct = Vs[0], comparisons.chosen is None
    used, where = (
        (None, None)
        if direct
        else torch.cat([comparisons.chosen, comparisons.rejected]).unique(return_inverse=True)
    )
    blocks = (
        comparisons.table.split(TABLE_ROWS)
        if direct
        else (comparisons.table[rows] for rows in used.split(TABLE_ROWS))
    )
    with torch.no_grad():
        parts = [TallProduct.apply(rows.to(like), *Vs) for rows in blocks]
    Rs = [torch.cat(part) for part in zip(*parts)]
    return (
        Rs if direct else [R[where[: len(comparisons)]] - R[where[len(comparisons) :]] for R in Rs]
    )
