"""How unsure a person's rewards are, and what that leaves of a probability.

Laplace's approximation of (R2) of lore/fit/ridge_model.py, the edges of the simplex not minded: before
any pair is known, the log-odds of pairs x and x' vary together by

    k(x, x') = z . P z' / strength  +  deviation_spread^2 x . x' / LOGIT_SCALE^2

with z = x V / LOGIT_SCALE and P the projection along the simplex; known pairs j, each as sharp as
c_j = P_j (1 - P_j), leave (Rasmussen and Williams, Gaussian Processes, 3.4)

    var(x) = k(x, x) - k(x, .) (k + 1 / c)^-1 k(., x)

of it, and the mean of sigmoid over such log-odds is about

    sigmoid(mean / sqrt(1 + doubt pi / 8 var))                          (MacKay 1992)

doubt is 1 if the model is right and 0 where the mean is taken at its word: it is chosen on held-out
prompts. No sign changes, and so no accuracy.
"""

import math
from typing import NamedTuple

import torch

from lore.fit.comparisons import Comparisons
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import BATCH, EVERYBODY


def tempered(margins, variance, doubt):
    """Margins whose sigmoid is the mean probability. (n,), or (n, draws)"""
    return margins / (1 + doubt * math.pi / 8 * variance.to(margins)).sqrt()


class Projected(NamedTuple):
    """Some pairs of several people, and what V makes of them."""

    pairs: Comparisons
    row: torch.Tensor  # (n,) ascending: numbers of them among the pairs
    Z: torch.Tensor  # (n, K) x @ V

    @classmethod
    def whole(cls, pairs, Z):
        return cls(pairs, torch.arange(len(pairs), device=pairs.user.device), Z)

    @property
    def user(self):
        return self.pairs.user[self.row]

    def only(self, mask):
        """Those of a mask (n,)."""
        return Projected(self.pairs, self.row[mask.to(self.row.device)], self.Z[mask.to(self.Z.device)])

    def of_person(self, prior, rows):
        """Directions of a slice of them."""
        w = self.Z[rows, :0].double()
        if prior.strength != EVERYBODY:
            z = self.Z[rows].double()
            w = (z - z.mean(1, keepdim=True)) / (LOGIT_SCALE * math.sqrt(prior.strength))
        e = self.Z[rows, :0].float()
        if prior.deviation_spread:
            X = self.pairs.differences(e.new_zeros(()), self.row[rows])
            e = X * (prior.deviation_spread / LOGIT_SCALE)
        return Directions(w, e)


class Directions(NamedTuple):
    """Pairs of one person as rows whose inner products are k."""

    w: torch.Tensor  # (m, K) in which the mixture is unsure; (m, 0) where it is not
    e: torch.Tensor  # (m, d) float32, in which the deviation is; (m, 0) where nobody deviates

    def covariance(self, other):
        """k of each pair with each of another's. (m, m')"""
        return self.w @ other.w.T + (self.e @ other.e.T).double()

    def variance(self):
        """k of each pair with itself. (m,)"""
        return self.w.square().sum(1) + self.e.square().sum(1).double()


def posterior_variance(prior, known, margins, votes, test):
    """Variance of the log-odds of each pair of `test`, given what is known of its person. (n', draws)

    known, test: Projected, of the same people; margins (n, draws): x . r_i of the known pairs in each of
    several fits to some of them; votes (n, draws): how much each pair counts, 0 = it was not fitted.
    """
    fitted = votes.any(1)
    known = known.only(fitted)
    logits = margins[fitted].double() / LOGIT_SCALE
    sharpness = votes[fitted] * torch.sigmoid(logits) * torch.sigmoid(-logits)
    people = test.user.unique()
    variance = test.Z.new_empty(len(test.row), votes.shape[1], dtype=torch.float64)
    for rows, tested in zip(slices_of(known.user, people), slices_of(test.user, people)):
        of_known = known.of_person(prior, rows)
        of_test = test.of_person(prior, tested)
        draws = torch.arange(votes.shape[1])
        for some in draws.split(max(1, BATCH // max(1, len(of_known.w)) ** 2)):
            person = Known.of(of_known, sharpness[rows][:, some].T)
            variance[tested, some] = person.variance(of_test)
    return variance


def slices_of(user, people):
    """Rows of each of some people; user (n,) is ascending."""
    first = torch.searchsorted(user, people)
    last = torch.searchsorted(user, people, right=True)
    return [*map(slice, first.tolist(), last.tolist())]


class Known(NamedTuple):
    """What is known of one person, in each of several draws.

    (k + 1 / c)^-1 = c^1/2 (1 + c^1/2 k c^1/2)^-1 c^1/2, which stands c = 0.
    """

    directions: Directions  # of the known pairs
    root: torch.Tensor  # (draws, m) c^1/2
    factor: torch.Tensor  # (draws, m, m) Cholesky's, of what is inverted

    @classmethod
    def of(cls, directions, sharpness):
        """sharpness (draws, m): c."""
        root = sharpness.sqrt()
        M = root.unsqueeze(2) * directions.covariance(directions) * root.unsqueeze(1)
        M.diagonal(dim1=1, dim2=2).add_(1)
        return cls(directions, root, torch.linalg.cholesky(M))

    def variance(self, test):
        """var of each pair of Directions. (t, draws)"""
        covariance = self.root.unsqueeze(2) * self.directions.covariance(test)  # (draws, m, t)
        explained = torch.linalg.solve_triangular(self.factor, covariance, upper=False)
        return (test.variance() - explained.square().sum(1)).clamp_min(0).T
