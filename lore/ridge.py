"""The ridge solver: priors in place of stopping early, chosen on held-out prompts.

    V_k = unit * (c * head + s * u + p * D_k),    w_i = softmax(L_i)
    loss = Eq. 10 + (c^2 / HEAD_SPREAD^2 + |u|^2 + sum_k |D_k|^2) / 2 m
           + SEEN_STRENGTH * sum_i |w_i - mean of w|^2 / 2 m_i

u is common to all people, D_k a column's own; both are N(0, I) before any pair is seen. head is
V_ref at length sqrt(d), as long as a typical u; c is next to free, so that the ridge pulls towards
a multiple of the head, or towards zero where there is none. With m pairs per user on average, m_i
of user i, the loss is minus the log posterior over m. unit = LOGIT_SCALE / (root mean square of
|x|): the spreads s and p are log-odds of a typical pair, whatever the scale of the embeddings.

s and then p are chosen along a path from one ridge to the next, by the loss of prompts that were
held out; then everything is fitted to all pairs.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from lore.common import InputError
from lore.comparisons import pack, shuffled_places
from lore.lbfgs import minimise
from lore.likelihood import LOGIT_SCALE, margins, negative_log_likelihood
from lore.mixtures import EVERYBODY, Fit, Prior, solve_mixtures
from lore.processes import agreed
from lore.product import Rows, TallProduct
from lore.tables import check_rank, reference_head

HELD_OUT = 4  # one prompt in so many is held out of the joint fit, to choose the priors by
COMMON_SPREADS = [10 ** (i / 2) for i in range(-3, 3)]  # s; from strong ridge to weak
HEAD_SPREAD = 5.0  # of c: hardly held, but finite where the head separates all pairs
PERSONAL_SPREADS = [5.0, 2.0, 0.8, 0.3]  # p; from weak ridge to strong
STRENGTHS = [0.3, 1.0, 3.0, 10.0, EVERYBODY]  # pairs that the mean mixture counts as, for new users
SEEN_STRENGTH = 1.0  # the same for seen ones
FEW_PAIRS = 10  # known of a seen user who stands for a new one
WORTH = 1e-3  # share of the held-out loss that a weaker ridge must save
SURE = 1.5  # standard errors by which held-out prompts must speak for more than one reward
FIRST_PASSES = 30  # over X, for the first ridge of a path
NEXT_PASSES = 10  # for each that follows
LAST_PASSES = 20  # for the fit to all pairs


def fit_ridge(features, K_list, V_ref=None, seed=0, device="cpu"):
    """LoRe of every rank, its priors chosen on held-out prompts: {K: Fit}, K = 1 always among them.

    features: Comparisons, which can say what prompt a pair is about, or a list of per-user (m_i, d)
    tensors, each row taken for a prompt of its own; V_ref: head (d, 1) or None. One reward for
    everybody is the answer at every rank whose personal rewards do not predict held-out prompts
    clearly better than that one does.
    """
    train = pack(features)
    ranks = sorted({K for K in K_list if K > 1})
    for K in ranks:
        check_rank(K, train.num_features, smallest=1)
    problem = RidgeProblem(train, reference_head(V_ref, train.num_features), device)
    holdout = Holdout(train, seed, device)
    s, start, curve = common_path(problem, holdout)
    bradley_terry = fit_everybody(problem, s, start, curve)
    fits = {1: bradley_terry}
    personal = []  # (K, theta, choice) of the ranks that are worth it
    for K, (thetas, choice) in personal_path(problem, holdout, ranks, s, start).items():
        fits[K] = bradley_terry._replace(choice=bradley_terry.choice | choice)
        if choice["personal_spread"]:
            theta = thetas[PERSONAL_SPREADS.index(choice["personal_spread"])]
            personal.append((K, theta, choice))
    return fits | fit_people(problem, s, personal, bradley_terry.choice)


def fit_everybody(problem, s, start, curve):
    """Bradley-Terry with spread s, fitted to all pairs."""
    (theta,) = problem.descend([start], [1], s, [None], problem.everything, FIRST_PASSES)
    V, W = problem.solution(theta, 1, s, None)
    choice = {
        "common_spreads": COMMON_SPREADS[: len(curve)],
        "common_held_out_loss": curve,
        "common_spread": s,
    }
    return Fit(V, W.float(), prior=Prior(W[0], EVERYBODY), choice=choice)


def fit_people(problem, s, personal, common):
    """Higher ranks with the spreads chosen for them, fitted to all pairs: {K: Fit}."""
    if not personal:
        return {}
    ranks, thetas, choices = zip(*personal)
    ps = [choice["personal_spread"] for choice in choices]
    thetas = problem.descend(thetas, ranks, s, ps, problem.everything, LAST_PASSES)
    fits = {}
    for theta, K, p, choice in zip(thetas, ranks, ps, choices):
        V, W = problem.solution(theta, K, s, p)
        mean = W.mean(0)
        (Z,) = TallProduct.apply(problem.X, V)  # (n, d) @ (d, K) -> (n, K)
        W = solve_mixtures(Z, problem.user, problem.C, Prior(mean, SEEN_STRENGTH)).W
        prior = Prior(mean, float(choice["strength"]))
        fits[K] = Fit(V, W.float(), prior=prior, choice=common | choice)
    return fits


# ------------------------------------------------------------------------------------------------
# The joint problem
# ------------------------------------------------------------------------------------------------


class Parameters(NamedTuple):
    """The parts of one fit's vector theta; of K = 1, which has nothing personal, D and L are empty."""

    c: torch.Tensor  # (1,)
    u: torch.Tensor  # (d,)
    D: torch.Tensor  # (K, d)
    L: torch.Tensor  # (C, K)


class RidgeProblem:
    """The loss at the head of this module, for fits of several ranks side by side."""

    def __init__(self, train, V_ref, device):
        self.X = Rows.of(train, torch.zeros((), device=device))  # (n, d)
        self.d = train.num_features
        self.C = len(train.user_ids)
        self.user = train.user.to(device)
        self.everything = torch.ones_like(self.user, dtype=torch.bool)  # (n,) all pairs count

        def add_squares(total, _, x):
            total.add_(x.square().sum(dtype=torch.float64))

        zero = torch.zeros((), dtype=torch.float64, device=device)
        square = self.X.accumulate(zero, add_squares).item() / len(train)  # mean of |x|^2
        self.unit = LOGIT_SCALE / math.sqrt(square) if square else LOGIT_SCALE
        like = self.X.rest
        head = like.new_zeros(self.d, 1) if V_ref is None else F.normalize(V_ref.to(like), dim=0)
        self.head = math.sqrt(self.d) * head.double()  # (d, 1)

    def sizes(self, K):
        """Numbers in c, u, D and L."""
        return [1, self.d, K * self.d, self.C * K] if K > 1 else [1, self.d, 0, 0]

    def parts(self, theta, K):
        c, u, D, L = theta.split(self.sizes(K))
        return Parameters(c, u, D.view(-1, self.d), L.view(-1, K))

    def solution(self, theta, K, s, p):
        """One fit's vector -> V (d, K) float32, W (C, K)."""
        c, u, D, L = self.parts(theta, K)
        V = c * self.head + s * u.unsqueeze(1)  # (d, 1)
        if K == 1:
            return (self.unit * V).float(), theta.new_ones(self.C, 1)
        return (self.unit * (V + p * D.T)).float(), L.softmax(1)

    def weights(self, counted):
        """1 / m_i of the pairs of a mask (n,), and per user: (n,), (C,)"""
        counts = torch.zeros(self.C, dtype=torch.float64, device=counted.device)
        counts.index_add_(0, self.user, counted.double())
        per_user = 1 / counts.clamp_min(1)  # a user may have no pair that counts
        return counted * per_user[self.user], per_user

    def descend(self, thetas, ranks, s, ps, counted, passes):
        """Fits of ranks[f] with spreads s, ps[f] to the pairs of a mask, from thetas on.

        All share each pass over X.
        """
        sizes = [len(theta) for theta in thetas]
        owner = torch.arange(len(ranks)).repeat_interleave(torch.tensor(sizes))
        weight, per_user = self.weights(counted)
        m = counted.sum() / self.C  # pairs per user, on average

        def losses(theta):
            thetas = theta.split(sizes)
            Vs, Ws = zip(*map(self.solution, thetas, ranks, [s] * len(ps), ps))
            Zs = TallProduct.apply(self.X, *Vs)  # (n, d) @ (d, K) -> (n, K)
            values = []
            for theta, K, Z, W in zip(thetas, ranks, Zs, Ws):
                c, u, D, _ = self.parts(theta, K)
                c = c / HEAD_SPREAD
                ridge = (c.square().sum() + u.square().sum() + D.square().sum()) / m
                apart = SEEN_STRENGTH * (per_user @ (W - W.mean(0)).square().sum(1))  # (C,) @ (C,)
                nll = negative_log_likelihood(Z, W, self.user, weight)  # Eq. 10
                values.append(nll + (ridge + apart) / 2)
            return torch.stack(values)

        theta = minimise(losses, torch.cat(list(thetas)), owner.to(counted.device), passes)
        return list(theta.split(sizes))

    def log_p(self, V, W, Z=None):
        """log P of every pair. (n,)"""
        if Z is None:
            (Z,) = TallProduct.apply(self.X, V)  # (n, d) @ (d, K) -> (n, K)
        return F.logsigmoid(margins(Z.double(), W, self.user) / LOGIT_SCALE)

    def corners(self, ranks, fitted, Z, p):
        """Starts of D and L for each rank, from Bradley-Terry's rewards Z (n, 1) of the pairs.

        The columns lie at the corners of a simplex in the K - 1 directions in which people differ
        most, each person near the corners that their own pairs pull Bradley-Terry towards.
        """
        weight, _ = self.weights(fitted)
        pull = (weight * torch.sigmoid(-Z.flatten() / LOGIT_SCALE)).float()

        def add_pull(total, rows, x):
            total.index_add_(0, self.user[rows], x * pull[rows].unsqueeze(1))

        # (C, d) minus the gradient of each user's part of Eq. 10
        G = self.X.accumulate(self.X.rest.new_zeros(self.C, self.d), add_pull)
        left, singular, right = torch.linalg.svd(G.double(), full_matrices=False)
        scores = left * singular  # (C, directions)
        scores = scores / scores[:, 0].std(correction=0).clamp_min(1e-30)
        for K in ranks:
            corner = torch.linalg.qr(torch.eye(K, K - 1, dtype=torch.float64) - 1 / K)[0]
            corner = corner.to(right)[:, : len(right)]  # (K, r), rows of equal length
            r = corner.shape[1]
            D = F.normalize(corner @ right[:r], dim=1) * math.sqrt(self.d) / p  # (K, r) @ (r, d)
            yield D, scores[:, :r] @ corner.T  # (C, r) @ (r, K)


# ------------------------------------------------------------------------------------------------
# The choice
# ------------------------------------------------------------------------------------------------


class Holdout:
    """The prompts that a fit is judged on: one in HELD_OUT, with all its pairs."""

    def __init__(self, train, seed, device):
        self.prompt = train.prompts().to(device)  # (n,)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(int(self.prompt.max()) + 1, generator=generator).to(device)
        if len(order) < HELD_OUT:
            raise InputError(
                f"{len(order)} different prompts to train on; to choose a ridge, at least {HELD_OUT}"
                " are needed"
            )
        self.fitted = order[self.prompt] % HELD_OUT > 0  # (n,) the pairs that are fitted meanwhile
        self.held = ~self.fitted
        user = train.user.to(device)
        rows = self.fitted.nonzero().flatten()
        places = shuffled_places(user[rows].cpu(), 1, generator)[0].to(device)
        self.few = rows[places < FEW_PAIRS]  # of each user, to pose as new


def common_path(problem, holdout):
    """Bradley-Terry from strong to weak ridge, as long as the held-out loss falls.

    -> s, theta, held-out losses
    """
    theta = problem.head.new_zeros(sum(problem.sizes(1)))
    weight = problem.weights(problem.everything)[0] * holdout.held
    best, chosen, curve = None, None, []
    last = COMMON_SPREADS[0]
    for s in COMMON_SPREADS:
        problem.parts(theta, 1).u.mul_(last / s)  # so that s * u stays
        (theta,) = problem.descend([theta], [1], s, [None], holdout.fitted, FIRST_PASSES)
        log_p = problem.log_p(*problem.solution(theta, 1, s, None))
        loss = agreed(-(weight @ log_p / weight.sum()).item())  # (n,) @ (n,)
        curve.append(loss)
        if best is None or loss < (1 - WORTH) * best:
            best = loss
            chosen = s, theta.clone()
        elif len(curve) > 2:  # the first two may be too strong to tell apart
            break
        last = s
    return *chosen, curve


def personal_path(problem, holdout, ranks, s, start):
    """Higher ranks from weak to strong ridge, from Bradley-Terry's theta on.

    -> {K: (thetas along it, choice)}
    """
    if not ranks:
        return {}
    V, W = problem.solution(start, 1, s, None)
    (Z,) = TallProduct.apply(problem.X, V)  # (n, d) @ (d, 1) -> (n, 1)
    reference = problem.log_p(V, W, Z)
    last = PERSONAL_SPREADS[0]
    thetas = []
    for D, L in problem.corners(ranks, holdout.fitted, Z, last):
        thetas.append(torch.cat([start, D.flatten(), L.flatten()]))
    along = {K: [] for K in ranks}
    gains = {K: [] for K in ranks}
    passes = FIRST_PASSES
    for p in PERSONAL_SPREADS:
        for theta, K in zip(thetas, ranks):
            problem.parts(theta, K).D.mul_(last / p)  # so that p * D stays
        thetas = problem.descend(thetas, ranks, s, [p] * len(ranks), holdout.fitted, passes)
        for theta, K in zip(thetas, ranks):
            along[K].append(theta.clone())
            log_p = problem.log_p(*problem.solution(theta, K, s, p))
            gains[K].append(gain(problem, holdout, log_p, reference))
        passes = NEXT_PASSES
        last = p
    paths = {}
    for K in ranks:
        choice = choose(problem, holdout, K, s, along[K], gains[K], reference)
        paths[K] = along[K], choice
    return paths


def gain(problem, holdout, log_p, reference):
    """By how much log P is larger on held-out pairs, weighed as in Eq. 10, and its standard error.

    The larger of two errors: with the prompts, and with the users, as what was drawn at random.
    """
    held = holdout.held
    share = problem.weights(problem.everything)[0][held]
    share = share / share.sum()
    gained = (log_p - reference)[held]
    mean = (share * gained).sum()
    off = share * (gained - mean)
    errors = []
    for drawn in (holdout.prompt, problem.user):
        sums = off.new_zeros(len(drawn)).index_add_(0, drawn[held], off)
        errors.append(sums.norm().item())
    return agreed((mean.item(), max(errors)))


def clear(gain):
    """Whether a gain is told from none."""
    mean, error = gain
    return mean > SURE * error


def choose(problem, holdout, K, s, along, gains, reference):
    """The ridge that gains most on held-out prompts, and how strong a prior serves new people.

    Seen people pose as new ones. Only their mixtures are forgotten: V was fitted to their pairs as
    well, so the prior is rather weak than strong.
    """
    choice = {"personal_spreads": PERSONAL_SPREADS, "gain": gains, "personal_spread": None}
    means = [mean for mean, _ in gains]
    best = means.index(max(means))
    if not clear(gains[best]):
        return choice
    p = PERSONAL_SPREADS[best]
    V, W = problem.solution(along[best], K, s, p)
    (Z,) = TallProduct.apply(problem.X, V)  # (n, d) @ (d, K) -> (n, K)
    as_new = {}  # strength, as text since JSON has no infinity -> gain
    for strength, w in zip(STRENGTHS, mixtures_as_new(problem, holdout, Z, W.mean(0))):
        as_new[f"{strength:g}"] = gain(problem, holdout, problem.log_p(V, w, Z), reference)
    strength = max(as_new, key=lambda strength: as_new[strength][0])
    if not clear(as_new[strength]):
        strength = f"{EVERYBODY:g}"
    return choice | {"personal_spread": p, "gain_as_new": as_new, "strength": strength}


def mixtures_as_new(problem, holdout, Z, mean):
    """Everybody's mixtures from a few pairs, once for each of the STRENGTHS. (T, C, K)"""
    T, C = len(STRENGTHS), problem.C
    copies = torch.arange(T, device=Z.device).unsqueeze(1) * C  # (T, 1)
    user = (problem.user[holdout.few] + copies).flatten()  # (T * few,) ascending
    prior = Prior(mean, torch.tensor(STRENGTHS).repeat_interleave(C))
    W = solve_mixtures(Z[holdout.few].repeat(T, 1), user, T * C, prior).W
    return W.view(T, C, -1)
