"""The one big product, Z = X @ V, and the likelihood with its gradient from one read of X.

X (n, d) is tall; the V (d, K) of all fits stand side by side, P columns in all. X is multiplied piece
by piece (lore/fit/rows.py); of several processes each multiplies its blocks, and they exchange the
products, which are then added in the order in which one process adds them: everything outside this
file reads as for one process.
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from lore.fit.likelihood import LOGIT_SCALE, negative_log_likelihood
from lore.fit.rows import PIECE_ROWS, ROW_BLOCKS, Rows
from lore.processes import all_reduced, gathered
from lore.splits import TABLE_ROWS

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
        Zt = times(ctx.X, side_by_side(Vs))  # ((n, d) @ (d, P)).T -> (P, n)
        return apart(Zt, ctx.widths)

    @staticmethod
    def backward(ctx, *Gs):
        Vt_grad = transposed_times(ctx.X, side_by_side(Gs))  # ((d, n) @ (n, P)).T -> (P, d)
        return None, *apart(Vt_grad, ctx.widths)


def side_by_side(matrices):
    """(rows, K) of each fit -> (P, rows), filled up with zeros."""
    columns = torch.cat([matrix.T for matrix in matrices])
    return F.pad(columns, (0, 0, 0, -len(columns) % COLUMN_TILE))


def apart(columns, widths):
    """(P, rows) -> (rows, K) of each fit, without what was filled up."""
    parts = columns[: sum(widths)].split(widths)
    return tuple(part.T.contiguous() for part in parts)


# ------------------------------------------------------------------------------------------------
# Piece by piece
# ------------------------------------------------------------------------------------------------


def times(X, Vt):
    """Zt = Vt @ X.T of the Rows of all processes. (P, d) -> (P, n)"""
    Zt = Vt.new_empty(X.b, len(Vt), X.r)
    for blocks, cut, _, x in X.pieces():
        z = torch.bmm(Vt.expand(len(x), -1, -1), x.mT)  # (k, P, d) @ (k, d, s)
        Zt[blocks, :, cut] = z
    return every_row(X, Zt, Vt)


def transposed_times(X, Gt):
    """Gt @ X over the Rows of all processes, block by block. (P, n) -> (P, d)"""
    held = Gt[:, X.begin : X.begin + X.b * X.r].unflatten(1, (X.b, X.r))
    sums = Gt.new_zeros(X.b, len(Gt), X.rest.shape[1])
    for blocks, cut, _, x in X.pieces():
        g = held[:, blocks, cut].transpose(0, 1)
        sums[blocks].baddbmm_(g, x)  # (k, P, s) @ (k, s, d)
    return every_sum(X, sums, Gt[:, ROW_BLOCKS * X.r :])


def times_and_back(X, Vt, slopes):
    """Zt = Vt @ X.T, (P, n), and Gt @ X, (P, d), in one read of X, where Gt follows from Zt.

    slopes(z (k, P, s), rows (k, s)) -> Gt (k, P, s), for these rows of k blocks. On a GPU small
    pieces would be many calls: rows that are held are one piece there, and are read twice.
    """
    Zt = Vt.new_empty(X.b, len(Vt), X.r)
    sums = Vt.new_zeros(X.b, *Vt.shape)
    for blocks, cut, rows, x in X.pieces(small=not Vt.is_cuda):
        z = torch.bmm(Vt.expand(len(x), -1, -1), x.mT)  # (k, P, d) @ (k, d, s)
        Zt[blocks, :, cut] = z
        sums[blocks].baddbmm_(slopes(z, rows), x)  # (k, P, s) @ (k, s, d)
    Zt = every_row(X, Zt, Vt)
    z_rest = Zt[:, ROW_BLOCKS * X.r :].unsqueeze(0)
    return Zt, every_sum(X, sums, slopes(z_rest, X.left_over.unsqueeze(0))[0])


def every_row(X, Zt, Vt):
    """Products of this process's blocks -> those of all rows. (b, P, r) -> (P, n)"""
    blocks = gathered(Zt, X.counts).transpose(0, 1)  # (P, 16, r)
    Zt_rest = (Vt.unsqueeze(1) * X.rest).sum(2)  # (P, 1, d) * (rows, d) -> (P, rows)
    return torch.cat([blocks.flatten(1), Zt_rest], dim=1)


def every_sum(X, sums, Gt_rest):
    """Sums over this process's blocks -> that over all rows. (b, P, d) -> (P, d)"""
    total = gathered(sums, X.counts).sum(0)  # (16, P, d) -> (P, d)
    return total + (Gt_rest.unsqueeze(2) * X.rest).sum(1)  # (P, rows, d) -> (P, d)


def accumulate(X, total, add):
    """`total` after add(total, rows, x) for some rows x of X at a time, over all processes."""
    for _, _, rows, x in X.pieces(small=True):
        add(total, rows.flatten(), x.flatten(0, 1))
    total = all_reduced(total)
    add(total, X.left_over, X.rest)
    return total


# ------------------------------------------------------------------------------------------------
# Loss and gradient from one read
# ------------------------------------------------------------------------------------------------


def joint_likelihoods(X, Vs, Ws, user, weight, choice=None):
    """negative_log_likelihood of each fit, to be differentiated in V and W: [scalar, ..]

    X: Rows; Vs: [(d, K), ..]; Ws: [(C, K), ..]; weight: (n,), or (M, n) where each of M fits has its
    own; user and choice: (n,). The likelihood is a sum over pairs: a few rows of X give their Z, Z
    gives the slope of the loss in it, and the slope with the same rows their share of the gradient
    in V, before the next rows are read. Pairs of one softmax choice need each other: a second read.
    """
    if choice is not None:
        Zs = TallProduct.apply(X, *Vs)
        return [negative_log_likelihood(Z, W, user, weight, choice) for Z, W in zip(Zs, Ws)]
    widths = [V.shape[1] for V in Vs]
    weights = weight.expand(len(Vs), -1)
    with torch.no_grad():
        slopes = slopes_of([W.to(Vs[0]) for W in Ws], user, weights.to(Vs[0]))
        Zt, Vt_grad = times_and_back(X, side_by_side(Vs), slopes)  # ((n, d) @ (d, P)).T -> (P, n)
    Zs = apart(Zt, widths)
    gradients = apart(Vt_grad, widths)
    nlls = []
    for V, W, Z, g, q in zip(Vs, Ws, Zs, gradients, weights):
        nll = negative_log_likelihood(Z, W, user, q)
        nlls.append(WithGradient.apply(nll, V, g))
    return nlls


class WithGradient(torch.autograd.Function):
    """A value (scalar) whose gradient in V, (d, K), is known already. It has no second derivative."""

    @staticmethod
    def forward(ctx, value, V, gradient):
        ctx.gradient = gradient
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, factor):
        return factor, (factor * ctx.gradient).to(ctx.gradient), None


def slopes_of(Ws, user, weights):
    """slopes(z, rows) = d negative_log_likelihood / d z of each fit. (k, P, s), (k, s) -> (k, P, s)

    s rows of each of k blocks, the P columns of all M fits. With t = -z . w / LOGIT_SCALE it is
    weight * sigmoid(t) * -w / LOGIT_SCALE.
    """
    minus_w = side_by_side(Ws).T.contiguous() / -LOGIT_SCALE  # (C, P)
    widths = torch.tensor([W.shape[1] for W in Ws])
    fit = torch.arange(len(Ws)).repeat_interleave(widths)  # number of the fit that has a column
    fit = F.pad(fit, (0, minus_w.shape[1] - len(fit))).to(user.device)  # (P,); zeros add 0 to fit 0

    def slopes(z, rows):
        w = minus_w[user[rows]].mT  # (k, P, s)
        # Every second number of a buffer. Of numbers side by side torch takes sigmoid by vectors, and
        # by another routine of those left over at the end: which these are depends on M.
        t = w.new_zeros(len(w), len(Ws), w.shape[2], 2)[..., 0]
        t.index_add_(1, fit, z * w)  # (k, M, s)
        pull = weights[:, rows].transpose(0, 1) * t.sigmoid()  # (k, M, s)
        return pull.index_select(1, fit) * w

    return slopes


@torch.no_grad()
def rounded_alike(n, d, ranks, device):
    """Whether each rank of a sweep over X (n, d) has, bit for bit, the products that it has alone.

    Tried out on random numbers, in pieces as long as those of X: it rests on the processor and its
    matrix library, and the published recipe makes points of accuracy of a last bit.
    """
    parts = max(1, math.ceil(n // ROW_BLOCKS / PIECE_ROWS))
    generator = torch.Generator().manual_seed(0)
    X = Rows(torch.randn(n // parts, d, generator=generator).to(device))
    Vs = [torch.randn(d, K, generator=generator).to(device) for K in ranks]

    def products(Vs):
        Zt, Vt_grad = times_and_back(X, side_by_side(Vs), lambda z, _: z)
        widths = [V.shape[1] for V in Vs]
        return zip(apart(Zt, widths), apart(Vt_grad, widths))

    for V, together in zip(Vs, products(Vs)):
        (alone,) = products([V])
        if not all(map(torch.equal, together, alone)):
            return False
    return True


# ------------------------------------------------------------------------------------------------
# Without X: the table through V
# ------------------------------------------------------------------------------------------------


def project(comparisons, Vs):
    """Z = X @ V for each V (d, K) of a list, without forming X: [(n, K), ..].

    Every table row in use goes through all V once, (rows, d) @ (d, P), and is then gathered.
    """
    if comparisons.chosen is None:
        return project_rows(comparisons.table.split(TABLE_ROWS), Vs)
    replies = torch.cat([comparisons.chosen, comparisons.rejected])
    used, row = replies.unique(return_inverse=True)
    chosen, rejected = row.view(2, -1)  # of each pair among the rows in use
    blocks = (comparisons.table.index_select(0, rows) for rows in used.split(TABLE_ROWS))
    return [R[chosen] - R[rejected] for R in project_rows(blocks, Vs)]


@torch.no_grad()
def project_rows(blocks, Vs):
    """Blocks (rows, d) of embeddings through each V: [(all rows, K), ..]."""
    parts = [TallProduct.apply(rows.to(Vs[0]), *Vs) for rows in blocks]
    return [torch.cat(part) for part in zip(*parts)]
