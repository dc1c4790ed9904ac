"""How unsure a person's rewards are, and what that leaves of a probability.

Laplace's approximation of (R2) of lore/fit/ridge_model.py, the edges of the simplex not minded: before
any pair is known, the log-odds of pairs x and x' vary together by

    k(x, x') = z . P z' / strength  +  deviation_spread^2 x . x' / LOGIT_SCALE^2

with z = x V / LOGIT_SCALE and P the projection along the simplex; known pairs j, each as sharp as
c_j = P_j (1 - P_j), leave of it (Rasmussen and Williams, Gaussian Processes, 3.4)

    var(x) = k(x, x) - k(x, .) (k + 1 / c)^-1 k(., x)

and the mean of sigmoid over such log-odds is about

    sigmoid(mean / sqrt(1 + doubt pi / 8 var))                          (MacKay 1992)

doubt is 1 if the model is right and 0 where the mean is taken at its word: it is chosen on held-out
prompts. No sign changes, and so no accuracy.
"""

import math
from typing import NamedTuple

import torch

from lore.fit.comparisons import Comparisons
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import BATCH, EVERYBODY, Prior
from lore.fit.simplex import one_thread

WEAKEST = 1e-3  # strength of a prior, at least


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
        """PersonPairs of a slice of them."""
        X = self.Z[rows, :0].float()
        if prior.deviation_spread:
            X = self.pairs.differences(X.new_zeros(()), self.row[rows])
        return PersonPairs(self.Z[rows].double() / LOGIT_SCALE, X)


class PersonPairs(NamedTuple):
    """Pairs of one person."""

    z: torch.Tensor  # (m, K) in log-odds
    X: torch.Tensor  # (m, d) float32; (m, 0) where nobody deviates

    def covariance(self, prior, other):
        """k of each pair with each of another's. (m, m')"""
        return covariance(prior, self.z, other.z, (self.X @ other.X.T).double())  # (m, d) @ (d, m')

    def variance(self, prior):
        """k of each pair with itself. (m,)"""
        return variance(prior, self.z, self.X.square().sum(1).double())


def covariance(prior, z, other_z, gram):
    """k of pairs with z (m, K) and pairs with other_z (m', K), both in log-odds, whose x . x' are gram (m, m').

    Of several people at once: (people, m, K), (people, m', K), (people, m, m').
    """
    k = (prior.deviation_spread / LOGIT_SCALE) ** 2 * gram
    if prior.strength == EVERYBODY:
        return k
    return k + along(z) @ other_z.mT / max(prior.strength, WEAKEST)  # (m, K) @ (K, m')


def variance(prior, z, squares):
    """k of each of some pairs with itself: z (m, K), x . x = squares (m,). (m,)"""
    k = (prior.deviation_spread / LOGIT_SCALE) ** 2 * squares
    if prior.strength == EVERYBODY:
        return k
    return k + along(z).square().sum(1) / max(prior.strength, WEAKEST)


def along(z):
    """P z: what is left of it along the simplex, on which a mixture moves. (m, K)"""
    return z - z.mean(-1, keepdim=True)


@one_thread()
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
    variances = test.Z.new_empty(len(test.row), votes.shape[1], dtype=torch.float64)
    for rows, tested in zip(slices_of(known.user, people), slices_of(test.user, people)):
        of_known = known.of_person(prior, rows)
        of_test = test.of_person(prior, tested)
        draws = torch.arange(votes.shape[1])
        for some in draws.split(max(1, BATCH // max(1, len(of_known.z)) ** 2)):
            person = Known.of(prior, of_known, sharpness[rows][:, some].T)
            variances[tested, some] = person.variance(of_test)
    return variances


def slices_of(user, people):
    """Rows of each of some people; user (n,) is ascending."""
    first = torch.searchsorted(user, people)
    last = torch.searchsorted(user, people, right=True)
    return [*map(slice, first.tolist(), last.tolist())]


class Known(NamedTuple):
    """What is known of one person, in each of several draws.

    (k + 1 / c)^-1 = c^1/2 (1 + c^1/2 k c^1/2)^-1 c^1/2, which stands c = 0.
    """

    prior: Prior
    pairs: PersonPairs
    root: torch.Tensor  # (draws, m) c^1/2
    factor: torch.Tensor  # (draws, m, m) Cholesky's, of what is inverted

    @classmethod
    def of(cls, prior, pairs, sharpness):
        """sharpness (draws, m): c."""
        return cls(prior, pairs, *root_and_factor(pairs.covariance(prior, pairs), sharpness))

    def variance(self, test):
        """var of each of some PersonPairs. (t, draws)"""
        k = self.pairs.covariance(self.prior, test)  # (m, t)
        return left_of(test.variance(self.prior), k, self.root, self.factor).T


def root_and_factor(k, sharpness):
    """What Known has, of k (.., m, m) and c (draws, m): (draws, m), (draws, m, m)"""
    root = sharpness.sqrt()
    M = root.unsqueeze(2) * k * root.unsqueeze(1)
    M.diagonal(dim1=1, dim2=2).add_(1)
    return root, torch.linalg.cholesky(M)


def left_of(variance, k, root, factor):
    """var of t pairs whose k with themselves is variance (.., t), and with the known ones k (.., m, t). (draws, t)"""
    explained = torch.linalg.solve_triangular(factor, root.unsqueeze(2) * k, upper=False)
    return (variance - explained.square().sum(1)).clamp_min(0)
