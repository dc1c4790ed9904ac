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
    row: torch.Tensor | None  # (m,) of X that each pair is, or minus it; None: r = m, in the same order
    sign: torch.Tensor | None  # (m,) 1 or -1

    @classmethod
    def of_each(cls, train, example, folds):
        """Of each fold's numbers of pairs of Comparisons, (m,) each: [LeftOut]"""
        standing, rows, signs = zip(*map(partial(distinct, train), folds))
        return [*map(cls, folds, Rows.apart(train, example, standing), rows, signs)]

    def products(self, Vs):
        """Z of each V (d, K): [(m, K), ..]"""
        Zs = TallProduct.apply(self.X, *Vs)  # (r, d) @ (d, K) -> (r, K), for each
        if self.row is None:
            return Zs
        return [Z.index_select(0, self.row) * self.sign.to(Z).unsqueeze(1) for Z in Zs]

    def likelihoods(self, Vs, Ws, user, weight):
        """joint_likelihoods of these pairs."""
        if self.row is None:
            return joint_likelihoods(self.X, Vs, Ws, user, weight)
        nlls = []
        for Z, W, q in zip(self.products(Vs), Ws, weight):
            nlls.append(negative_log_likelihood(Z, W, user, q))
        return nlls

    def pulls(self, user, C, pull):
        """Each user's sum of pull * x. user, pull: (m,) -> (C, d)"""
        row = torch.arange(len(pull), device=pull.device) if self.row is None else self.row
        pull = pull if self.sign is None else pull * self.sign
        position = torch.empty_like(row)  # of a row of X within the piece that is read

        def add(total, rows, x):
            position.fill_(-1)[rows] = torch.arange(len(rows), device=row.device)
            at = position[row]
            (there,) = torch.where(at >= 0)
            total.index_add_(0, user[there], x[at[there]] * pull[there].unsqueeze(1))

        return accumulate(self.X, self.X.rest.new_zeros(C, self.X.rest.shape[1]), add)

    def sum_of_squares(self):
        """Of the differences of all pairs."""
        counts = torch.ones(1) if self.row is None else self.row.bincount()  # pairs of each row of X

        def add(total, rows, x):
            squares = x.square().sum(1, dtype=torch.float64)
            total.add_(squares.sum() if self.row is None else squares @ counts[rows].double())

        return accumulate(self.X, torch.zeros((), dtype=torch.float64, device=self.pairs.device), add).item()


def distinct(train, pairs):
    """Those of some pairs, (m,), that stand for all; which of them each is, (m,); and whether it is that, 1, or
    its mirror image, -1, (m,).

    pairs, None, None: where not at least half could be left out, for the loss and its gradient then take two reads
    of X in place of one.
    """
    if train.chosen is None:
        return pairs, None, None
    numbers = pairs.to(train.user.device)
    chosen, rejected = train.chosen[numbers], train.rejected[numbers]
    replies = torch.minimum(chosen, rejected) * len(train.table) + torch.maximum(chosen, rejected)
    different, row = replies.unique(return_inverse=True)
    if 2 * len(different) > len(pairs):
        return pairs, None, None
    standing = torch.full_like(different, len(train)).scatter_reduce(0, row, numbers, "amin")
    sign = torch.where(chosen == train.chosen[standing[row]], 1, -1)
    return standing.to(pairs), row.to(pairs), sign.to(pairs)
