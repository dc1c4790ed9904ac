"""The ridge model: everybody's rewards as Gaussian priors see them, and the two problems in it.

    r_i = V w_i + e_i,    P(i prefers the chosen reply) = sigmoid(x . r_i / LOGIT_SCALE)

    V_k = unit * (c * head + s * u + p * D_k),    w_i on the simplex,    e_i ~ N(0, (unit * o)^2 I)

u is common to all people, D_k a column's own, e_i a person's own; u and D_k are N(0, I) before any
pair is seen. head is V_ref at length sqrt(d), as long as a typical u; c is next to free, so that
the ridge pulls towards a multiple of the head, or 0 where the head is no part of the model. unit =
LOGIT_SCALE / (root mean square of |x|): the spreads s, p and o are log-odds of a typical pair,
whatever the scale of the embeddings.

The joint problem, from which V comes (n pairs, q_ij how much each of them counts, n in all):

    min over V, w of  [sum_ij q_ij * -log P_ij  +  (c^2 / HEAD_SPREAD^2 + |u|^2 + sum_k |D_k|^2) / 2
                       + SEEN_STRENGTH / 2 * sum_i q_i |w_i - mean of w|^2] / n              (R1)

q_ij = q_i = 1: the likelihood, minus the log posterior over n; or q_i = m / m_i with m = n / C, for
Eq. 10, in which all people count alike. V is what people share: e is no part of it.

The person's problem, V frozen, convex (m pairs, z_j = x_j @ V / LOGIT_SCALE):

    min over w, e of  [sum_j -log sigmoid(z_j . w + x_j . e / LOGIT_SCALE)
                       + strength / 2 |w - mean|^2  +  |e|^2 / 2 (unit * o)^2] / m           (R2)

At its minimum e = unit * o * sum_j a_j X_j with X_j = unit * o * x_j / LOGIT_SCALE and coefficients
a_j = sigmoid(-logit_j): m numbers tell all of e, and no product but G = X X' (m, m) is needed.
"""

import math
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F

from lore.common import require
from lore.fit.lbfgs import TOLERANCE, minimise
from lore.fit.left_out import LeftOut
from lore.fit.likelihood import LOGIT_SCALE

WEIGH = ("pairs", "people")  # whose votes are equal
HEAD_SPREAD = 5.0  # of c: hardly held, but finite where the head separates all pairs
SPARE_DIRECTIONS = 8  # of the subspace, beside those that are asked for
SUBSPACE_STEPS = 6
SEEN_STRENGTH = 1.0  # pairs that the mean mixture counts as, for people seen


# ------------------------------------------------------------------------------------------------
# The joint problem
# ------------------------------------------------------------------------------------------------


class Form(NamedTuple):
    """What a joint fit is of."""

    K: int
    head: bool  # whether the reward model's head is a part of all columns


class Spreads(NamedTuple):
    """Of the parts of V, in log-odds of a typical pair."""

    s: float  # of what is common to all columns
    p: float | None = None  # of what is a column's own; None: there is one column


class Parameters(NamedTuple):
    """The parts of one fit's vector theta; of K = 1, which has nothing personal, D and L are empty."""

    c: torch.Tensor  # (1,)
    u: torch.Tensor  # (d,)
    D: torch.Tensor  # (K, d)
    L: torch.Tensor  # (C, K) logits of W


class JointProblem:
    """(R1), for fits of several ranks, ridges and sets of pairs side by side.

    InputError: a weigh that is not in WEIGH; choices of a softmax, which are no pairs.
    """

    def __init__(self, train, V_ref, device, weigh, number):
        """number (n,): of the fold that leaves a pair out. Each fold's pairs have an X by themselves, so that
        a fit reads no more than the pairs that count in it."""
        require(weigh in WEIGH, f"weigh = {weigh!r}: {' or '.join(WEIGH)}")
        words = "the ridge solver knows pairs only; choices of a softmax need adam"
        require(not train.softmax, words)
        self.weigh = weigh
        self.d = train.num_features
        self.C = len(train.user_ids)
        self.user = train.user.to(device)
        self.votes = train.votes.to(device)  # (n,)
        self.everything = torch.ones_like(self.user, dtype=torch.bool)  # (n,) all pairs count
        self.example = torch.zeros((), device=device)  # float32
        folds = number.argsort(stable=True).split(number.bincount().tolist())
        self.left_out = LeftOut.of_each(train, self.example, folds)
        square = sum(some.sum_of_squares() for some in self.left_out) / len(train)  # mean of |x|^2
        self.unit = LOGIT_SCALE / math.sqrt(square) if square else LOGIT_SCALE
        head = torch.zeros(self.d, 1, device=device)
        if V_ref is not None:
            head = F.normalize(V_ref.to(head), dim=0)
        self.head = math.sqrt(self.d) * head.double()  # (d, 1)
        self.heads = (True, False) if head.any() else (False,)  # whether it is in V: what can be tried

    def sizes(self, K):
        """Numbers in c, u, D and L."""
        return [1, self.d, K * self.d, self.C * K] if K > 1 else [1, self.d, 0, 0]

    def parts(self, theta, K):
        c, u, D, L = theta.split(self.sizes(K))
        return Parameters(c, u, D.view(-1, self.d), L.view(-1, K))

    def solution(self, theta, form, spreads):
        """One fit's vector -> V (d, K) float32, W (C, K)."""
        c, u, D, L = self.parts(theta, form.K)
        V = spreads.s * u.unsqueeze(1)  # (d, 1)
        if form.head:
            V = V + c * self.head
        if form.K == 1:
            return (self.unit * V).float(), theta.new_ones(self.C, 1)
        return (self.unit * (V + spreads.p * D.T)).float(), L.softmax(1)

    def products(self, Vs):
        """Z = X @ V of each V: (n, d) @ (d, K) -> [(n, K), ..]"""
        by_fold = torch.cat([some.pairs for some in self.left_out])  # (n,)
        order = by_fold.argsort()
        Zs = [some.products(Vs) for some in self.left_out]
        return [torch.cat(Z)[order] for Z in zip(*Zs)]

    def weights(self, counted):
        """q_ij of the pairs of a mask (n,), and q_i: (n,), (C,)"""
        counted = counted * self.votes
        if self.weigh == "pairs":
            return counted, counted.new_ones(self.C)
        counts = counted.new_zeros(self.C).index_add_(0, self.user, counted)
        of_person = counted.sum() / self.C / counts.clamp_min(1)  # who has no pair has no say
        return counted * of_person[self.user], of_person

    def loss(self, theta, K, nll, W, weight, of_person):
        """(R1) of one fit, from its negative log likelihood."""
        c, u, D, _ = self.parts(theta, K)
        ridge = (c / HEAD_SPREAD).square().sum() + u.square().sum() + D.square().sum()
        apart = SEEN_STRENGTH * (of_person @ (W - W.mean(0)).square().sum(1))  # (C,) @ (C,)
        return (nll + (ridge + apart) / 2) / weight.sum()

    def rescaled(self, theta, K, name, factor):
        """theta with one of its Parameters times a factor."""
        theta = theta.clone()
        getattr(self.parts(theta, K), name).mul_(factor)
        return theta

    def descend(self, thetas, spreads, masks, passes, tolerance=TOLERANCE):
        """Fits of each Form with its Spreads to the pairs of each mask, from thetas on.

        thetas: {Form: [theta for each mask]}, and so are the results. All share each pass over X.
        """
        flat = [*chain.from_iterable(thetas.values())]
        forms = [*chain.from_iterable([form] * len(masks) for form in thetas)]
        sizes = [len(theta) for theta in flat]
        weights = [self.weights(mask) for mask in masks] * len(thetas)
        of_pairs = torch.stack([weight for weight, _ in weights])
        of_fits = [spreads[form] for form in forms]

        reads = []  # (LeftOut, whose each pair is, how much it counts in each fit, the fits in which some count)
        for some in self.left_out:
            weight = of_pairs[:, some.pairs]  # (F, m)
            reads.append((some, self.user[some.pairs], weight, weight.any(1).tolist()))

        def losses(theta, fits):
            parts = theta.split(sizes)
            Vs = {}
            Ws = {}
            nlls = {}
            for i in fits:
                Vs[i], Ws[i] = self.solution(parts[i], forms[i], of_fits[i])
                nlls[i] = 0.0
            for some, user, weight, counts in reads:
                reading = [i for i in fits if counts[i]]
                if reading:
                    V_and_W = [*map(Vs.get, reading)], [*map(Ws.get, reading)]
                    for i, nll in zip(reading, some.likelihoods(*V_and_W, user, weight[reading])):
                        nlls[i] = nlls[i] + nll
            values = []
            for i in fits:
                values.append(self.loss(parts[i], forms[i].K, nlls[i], Ws[i], *weights[i]))
            return torch.stack(values)

        solved = minimise(losses, torch.cat(flat), sizes, passes, tolerance).split(sizes)
        M = len(masks)
        return {form: [*solved[M * i : M * (i + 1)]] for i, form in enumerate(thetas)}

    def corners(self, ranks, fitted, Z, p):
        """Starts of D and L for each rank, from Bradley-Terry's rewards Z (n, 1) of the pairs.

        The columns lie at the corners of a simplex in the K - 1 directions in which people differ
        most, each person near the corners that their own pairs pull Bradley-Terry towards.
        """
        weight, _ = self.weights(fitted)
        pull = (weight * torch.sigmoid(-Z.flatten() / LOGIT_SCALE)).float()

        # (C, d) minus the gradient of each user's part of (R1)
        G = self.example.new_zeros(self.C, self.d)
        for some in self.left_out:
            if pull[some.pairs].any():
                G += some.pulls(self.user[some.pairs], self.C, pull[some.pairs])
        for K in ranks:  # each by itself, so that none has other bits for the others' sake
            directions = leading_directions(G, min(K - 1, *G.shape)).double()  # (r, d)
            scores = G.double() @ directions.T  # (C, d) @ (d, r)
            scores = scores / scores[:, 0].std(correction=0).clamp_min(1e-30)
            corner = torch.linalg.qr(torch.eye(K, K - 1, dtype=torch.float64) - 1 / K)[0]
            corner = corner.to(directions)[:, : len(directions)]  # (K, r), rows of equal length
            D = F.normalize(corner @ directions, dim=1)  # (K, r) @ (r, d)
            yield D * math.sqrt(self.d) / p, scores @ corner.T  # (C, r) @ (r, K)


def leading_directions(G, r):
    """The first r right singular vectors of G (C, d), by subspace iteration: (r, d).

    A start of a descent needs no more than that; an SVD of a thousand people takes seconds.
    """
    columns = min(r + SPARE_DIRECTIONS, *G.shape)
    generator = torch.Generator().manual_seed(0)
    Q = torch.randn(len(G), columns, generator=generator).to(G)
    for _ in range(SUBSPACE_STEPS):
        B = torch.linalg.qr(G.T @ Q)[0]  # (d, C) @ (C, columns)
        Q = torch.linalg.qr(G @ B)[0]  # (C, d) @ (d, columns)
    return torch.linalg.svd(Q.T @ G, full_matrices=False)[2][:r]  # (columns, C) @ (C, d)
