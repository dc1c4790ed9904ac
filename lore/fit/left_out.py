"""The pairs that one fold leaves out, and their rows of X."""

from functools import partial
from typing import NamedTuple

import torch

from lore.fit.likelihood import negative_log_likelihood
from lore.fit.product import TallProduct, accumulate, joint_likelihoods
from lore.fit.rows import Rows


class LeftOut(NamedTuple):
    """m pairs. Where several people compared the same two replies, X (r, d) has one row for all of them."""

    pairs: torch.Tensor  # (m,) their numbers, ascending
    X: Rows
    row: torch.Tensor  # (m,) of X, that each pair is,
    sign: torch.Tensor  # (m,) or minus it: 1 or -1
    shared: bool  # whether some pairs have a row together; else row = 0, 1, .. m - 1 and sign = 1

    @classmethod
    def of_each(cls, train, example, folds):
        """Of each fold's numbers of pairs of Comparisons, (m,) each: [LeftOut]"""
        standing, rows, signs = zip(*map(partial(distinct, train), folds))
        shared = [len(some) < len(pairs) for some, pairs in zip(standing, folds)]
        return [*map(cls, folds, Rows.apart(train, example, standing), rows, signs, shared)]

    def products(self, Vs):
        """Z of each V (d, K): [(m, K), ..]"""
        Zs = TallProduct.apply(self.X, *Vs)  # (r, d) @ (d, K) -> (r, K), for each
        if not self.shared:
            return Zs
        return [Z.index_select(0, self.row) * self.sign.to(Z).unsqueeze(1) for Z in Zs]

    def likelihoods(self, Vs, Ws, user, weight):
        """joint_likelihoods of these pairs; where rows are shared, by two reads of X."""
        if not self.shared:
            return joint_likelihoods(self.X, Vs, Ws, user, weight)
        nlls = []
        for Z, W, q in zip(self.products(Vs), Ws, weight):
            nlls.append(negative_log_likelihood(Z, W, user, q))
        return nlls

    def pulls(self, user, C, pull):
        """Each user's sum of pull * x. user, pull: (m,) -> (C, d)"""
        pull = (pull * self.sign).unsqueeze(1)
        position = torch.empty_like(self.row)  # of a row of X in the piece that is read, -1 = not in it

        def add(total, rows, x):
            position.fill_(-1)[rows] = torch.arange(len(rows), device=position.device)
            at = position[self.row]
            (there,) = torch.where(at >= 0)
            total.index_add_(0, user[there], x[at[there]] * pull[there])

        return accumulate(self.X, self.X.rest.new_zeros(C, self.X.rest.shape[1]), add)

    def sum_of_squares(self):
        """Of the differences of all pairs."""
        counts = self.row.bincount().double()  # (r,) pairs of each row of X
        zero = counts.new_zeros(())

        def add(total, rows, x):
            total.add_(x.square().sum(1, dtype=torch.float64) @ counts[rows])  # (s,) @ (s,)

        return accumulate(self.X, zero, add).item()


def distinct(train, pairs):
    """Of some pairs (m,) of Comparisons those that stand for all of the same two replies, (r,); the position among
    them of what stands for each pair, (m,); and 1 where the pair is that, -1 where it is its mirror image, (m,).

    Each stands for itself where not at least half could be left out: what is shared takes two reads of X for a
    loss with its gradient, in place of one.
    """
    each = pairs, torch.arange(len(pairs), device=pairs.device), torch.ones_like(pairs)
    if train.chosen is None:
        return each
    numbers = pairs.to(train.user.device)
    chosen = train.chosen[numbers]
    rejected = train.rejected[numbers]
    replies = torch.minimum(chosen, rejected) * len(train.table) + torch.maximum(chosen, rejected)
    different, row = replies.unique(return_inverse=True)
    if 2 * len(different) > len(pairs):
        return each
    standing = torch.full_like(different, len(train)).scatter_reduce(0, row, numbers, "amin")
    sign = torch.where(chosen == train.chosen[standing[row]], 1, -1)
    return standing.to(pairs), row.to(pairs), sign.to(pairs)
