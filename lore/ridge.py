"""The ridge solver: priors in place of stopping early, chosen on held-out prompts."""

import math

import torch
import torch.nn.functional as F

from lore.common import InputError
from lore.comparisons import pack, shuffled_places
from lore.lbfgs import minimise
from lore.likelihood import LOGIT_SCALE, Rows, TallProduct, margins, negative_log_likelihood
from lore.mixtures import EVERYBODY, Fit, Prior, solve_mixtures
from lore.processes import from_first
from lore.tables import reference_head

HELD_OUT = 4  # one prompt in so many is held out of the joint fit, to choose the priors by
COMMON_SPREADS = [
    10 ** (i / 2) for i in range(-3, 3)
]  # s, of what all people share; from strong ridge to weak
HEAD_SPREAD = 5.0  # of the reference head's multiple: hardly held, but finite where the head separates all pairs
PERSONAL_SPREADS = [
    5.0,
    2.0,
    0.8,
    0.3,
]  # p, of what a column has of its own; from weak ridge to strong
STRENGTHS = [0.3, 1.0, 3.0, 10.0, EVERYBODY]  # pairs that this mixture counts as, for a new user
SEEN_STRENGTH = 1.0  # the same for a seen user
FEW_PAIRS = 10  # known of a seen user who stands for a new one
WORTH = 1e-3  # share of the held-out loss that a weaker ridge must save
SURE = 1.5  # standard errors by which held-out prompts must speak for more than one reward for everybody
FIRST_PASSES, NEXT_PASSES, LAST_PASSES = (
    30,
    10,
    20,
)  # over X: first ridge of a path, each that follows, all pairs


class RidgeProblem:
    """Eq. 10 with Gaussian priors, for fits of several ranks side by side, and the prompts they are judged on.

        V_k = unit * (c * head + s * u + p * D_k),    w_i = softmax(L_i)
        loss = Eq. 10 + (c^2 / HEAD_SPREAD^2 + |u|^2 + sum_k |D_k|^2) / 2 m
               + SEEN_STRENGTH * sum_i |w_i - mean of w|^2 / 2 m_i

    head: V_ref at length sqrt(d), a typical u's; c is next to free, so that the ridge pulls towards a multiple of the
    head, or towards zero where there is none. u, common to all people, and D_k, a column's own, are N(0, I) before any
    pair is seen; with m pairs per user the loss is then minus the log posterior over m. unit = LOGIT_SCALE / (root mean
    square of |x|): s and p are in log-odds of a typical pair, whatever the scale of the embeddings. A fit is a vector
    (c, u, D, L).
    """

    def __init__(self, train, V_ref, seed, device):
        self.X = Rows.of(train, torch.zeros((), device=device))  # (n, d)
        self.d, self.C = train.num_features, len(train.user_ids)
        self.user, self.prompt = train.user.to(device), train.prompts().to(device)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(int(self.prompt.max()) + 1, generator=generator).to(device)
        if len(order) < HELD_OUT:
            raise InputError(
                f"{len(order)} different prompts to train on; to choose a ridge, at least {HELD_OUT} are needed"
            )
        self.fitted = order[self.prompt] % HELD_OUT > 0  # (n,) every pair of a prompt, or none
        rows = self.fitted.nonzero().flatten()
        places = shuffled_places(self.user[rows].cpu(), 1, generator)[0].to(device)
        self.few = rows[places < FEW_PAIRS]  # of each user, to pose as new
        add = lambda total, rows, x: total.add_(x.square().sum(dtype=torch.float64))
        square = self.X.total(
            torch.zeros((), dtype=torch.float64, device=device), add
        ).item() / len(train)
        self.unit = LOGIT_SCALE / math.sqrt(square) if square else LOGIT_SCALE
        head = (
            self.X.rest.new_zeros(self.d, 1)
            if V_ref is None
            else F.normalize(V_ref.to(self.X.rest), dim=0)
        )
        self.head = math.sqrt(self.d) * head.double()

    def size(self, K):
        return 1 + self.d + (K * self.d + self.C * K if K > 1 else 0)

    def parts(self, theta, K):
        """One fit's vector -> c (1,), u (d,), D (K, d), L (C, K); K = 1 has nothing personal: D and L are empty."""
        c, u, D, L = theta.split([1, self.d, *((K * self.d, self.C * K) if K > 1 else (0, 0))])
        return c, u, D.view(-1, self.d), L.view(-1, K)

    def solution(self, theta, K, s, p):
        """One fit's vector -> V (d, K) float32, W (C, K)."""
        c, u, D, L = self.parts(theta, K)
        V = (
            c * self.head + s * u.unsqueeze(1) + (p * D.T if K > 1 else 0)
        )  # (d, 1) + (d, 1) + (d, K)
        return (self.unit * V).float(), L.softmax(1) if K > 1 else theta.new_ones(self.C, 1)

    def weights(self, rows):
        """Of the pairs in Eq. 10 when only those of a mask `rows` (n,) count, and per user: 1 / m_i. (n,), (C,)"""
        counts = torch.zeros(self.C, dtype=torch.float64, device=rows.device).index_add_(
            0, self.user, rows.double()
        )
        per_user = 1 / counts.clamp_min(1)
        return rows * per_user[self.user], per_user

    def fit(self, thetas, ranks, s, ps, rows, passes):
        """Fits of ranks[f] with spreads s, ps[f] to the pairs of a mask, from thetas on; all share each pass over X."""
        (weight, per_user), m = self.weights(rows), rows.sum() / self.C
        sizes = [len(theta) for theta in thetas]
        owner = torch.arange(len(ranks)).repeat_interleave(torch.tensor(sizes)).to(rows.device)

        def loss(theta):
            thetas, values = theta.split(sizes), []
            fits = [self.solution(t, K, s, p) for t, K, p in zip(thetas, ranks, ps)]
            for theta, K, Z, (_, W) in zip(
                thetas, ranks, TallProduct.apply(self.X, *[V for V, _ in fits]), fits
            ):
                c, u, D, _ = self.parts(theta, K)
                ridge = ((c / HEAD_SPREAD).square().sum() + u.square().sum() + D.square().sum()) / m
                apart = SEEN_STRENGTH * (per_user @ (W - W.mean(0)).square().sum(1))  # (C,) @ (C,)
                values.append(
                    negative_log_likelihood(Z, W, self.user, weight) + (ridge + apart) / 2
                )  # Eq. 10 first
            return torch.stack(values)

        return list(minimise(loss, torch.cat(thetas), owner, passes).split(sizes))

    def log_p(self, V, W, Z=None):
        """(n,) log P of every pair."""
        Z = TallProduct.apply(self.X, V)[0] if Z is None else Z
        return F.logsigmoid(margins(Z.double(), W, self.user) / LOGIT_SCALE)

    def gain(self, log_p, reference):
        """By how much log P is larger on held-out pairs, averaged with the weights of Eq. 10, and its standard error.

        The larger of two errors: with the prompts, and with the users, as what was drawn at random.
        """
        held = ~self.fitted
        share = self.weights(torch.ones_like(held))[0][held]
        share, gained = share / share.sum(), (log_p - reference)[held]
        off = share * (gained - (share * gained).sum())
        sums = [
            off.new_zeros(len(key)).index_add_(0, key[held], off)
            for key in (self.prompt, self.user)
        ]
        return from_first(
            lambda: ((share * gained).sum().item(), max(over.norm().item() for over in sums))
        )

    def corners(self, ranks, Z, p):
        """Starts of D and L: columns at the corners of a simplex in the K - 1 directions in which people differ most,
        each person near the corners that their own pairs pull Bradley-Terry's reward (Z (n, 1)) towards."""
        pull = (self.weights(self.fitted)[0] * torch.sigmoid(-Z.flatten() / LOGIT_SCALE)).float()
        add = lambda total, rows, x: total.index_add_(
            0, self.user[rows], x * pull[rows].unsqueeze(1)
        )
        G = self.X.total(
            self.X.rest.new_zeros(self.C, self.d), add
        )  # minus the gradient of each user's part of Eq. 10
        left, singular, right = torch.linalg.svd(G.double(), full_matrices=False)
        scores = (
            left * singular / (left * singular)[:, 0].std(correction=0).clamp_min(1e-30)
        )  # (C, directions)
        for K in ranks:
            simplex = torch.linalg.qr(torch.eye(K, K - 1, dtype=torch.float64) - 1 / K)[0].to(
                right
            )[:, : len(right)]
            r = simplex.shape[1]
            yield (
                F.normalize(simplex @ right[:r], dim=1) * math.sqrt(self.d) / p,
                scores[:, :r] @ simplex.T,
            )  # D, L


def fit_ridge(features, K_list, V_ref=None, seed=0, device="cpu"):
    """LoRe of every rank, its priors chosen on held-out prompts of the same people: {K: Fit}, K = 1 always among them.

    features: per-user list of (m_i, d) tensors, each row taken for a prompt of its own, or Comparisons, which can say
    what prompt a pair is about; V_ref: head (d, 1) or None. One reward for everybody is the answer at every rank
    whose personal rewards do not predict held-out prompts clearly better than that one does.
    """
    train, ranks = pack(features), sorted({K for K in K_list if K > 1})
    for K in ranks:
        check_rank(K, train.num_features, smallest=1)
    problem = RidgeProblem(train, reference_head(V_ref, train.num_features), seed, device)
    everything = torch.ones_like(problem.fitted)
    s, start, curve = common_path(problem)
    (theta,) = problem.fit([start], [1], s, [None], everything, FIRST_PASSES)
    V, W = problem.solution(theta, 1, s, None)
    common = {
        "common_spreads": COMMON_SPREADS[: len(curve)],
        "common_held_out_loss": curve,
        "common_spread": s,
    }
    nothing_personal = Fit(V, W.float(), prior=Prior(W[0], EVERYBODY), choice=common)
    fits, chosen = {1: nothing_personal}, {}
    for K, (thetas, choice) in personal_path(problem, ranks, s, start).items():
        fits[K] = nothing_personal._replace(choice=common | choice)
        if choice["personal_spread"]:
            chosen[K] = thetas[PERSONAL_SPREADS.index(choice["personal_spread"])], choice
    if chosen:
        thetas, ps = zip(*((theta, choice["personal_spread"]) for theta, choice in chosen.values()))
        thetas = problem.fit(thetas, list(chosen), s, ps, everything, LAST_PASSES)
        for theta, p, (K, (_, choice)) in zip(thetas, ps, chosen.items()):
            V, W = problem.solution(theta, K, s, p)
            (Z,), mean = TallProduct.apply(problem.X, V), W.mean(0)
            W = solve_mixtures(Z, problem.user, problem.C, Prior(mean, SEEN_STRENGTH)).W
            fits[K] = Fit(
                V, W.float(), prior=Prior(mean, float(choice["strength"])), choice=common | choice
            )
    return fits


def common_path(problem):
    """Bradley-Terry from strong to weak ridge, as long as the held-out loss falls -> s, theta, curve."""
    theta, best, curve, last = problem.head.new_zeros(problem.size(1)), None, [], COMMON_SPREADS[0]
    weight = problem.weights(torch.ones_like(problem.fitted))[0] * ~problem.fitted
    for s in COMMON_SPREADS:
        theta[1:] *= last / s  # u, so that s * u stays
        (theta,), last = problem.fit([theta], [1], s, [None], problem.fitted, FIRST_PASSES), s
        held_out = -(
            weight @ problem.log_p(*problem.solution(theta, 1, s, None)) / weight.sum()
        ).item()
        curve.append(from_first(lambda: held_out))  # noqa: B023
        if best is None or curve[-1] < (1 - WORTH) * best[0]:
            best = curve[-1], s, theta.clone()
        elif len(curve) > 2:  # the first two may be too strong to tell apart
            break
    return *best[1:], curve


def personal_path(problem, ranks, s, start):
    """Higher ranks from weak to strong ridge, from Bradley-Terry's theta on -> {K: (thetas along it, choice)}."""
    V, W = problem.solution(start, 1, s, None)
    (Z,) = TallProduct.apply(problem.X, V)
    reference = problem.log_p(V, W, Z)
    thetas = [
        torch.cat([start, D.flatten(), L.flatten()])
        for D, L in problem.corners(ranks, Z, PERSONAL_SPREADS[0])
    ]
    paths, last = {K: ([], []) for K in ranks}, PERSONAL_SPREADS[0]
    for p in PERSONAL_SPREADS if ranks else []:
        for theta, K in zip(thetas, ranks):
            problem.parts(theta, K)[2].mul_(last / p)  # D, so that p * D stays
        passes, last = FIRST_PASSES if p == PERSONAL_SPREADS[0] else NEXT_PASSES, p
        thetas = problem.fit(thetas, ranks, s, [p] * len(ranks), problem.fitted, passes)
        for theta, (K, (along, gains)) in zip(thetas, paths.items()):
            along.append(theta.clone())
            gains.append(problem.gain(problem.log_p(*problem.solution(theta, K, s, p)), reference))
    return {
        K: (along, choose(problem, K, s, along, gains, reference))
        for K, (along, gains) in paths.items()
    }


def choose(problem, K, s, along, gains, reference):
    """The ridge with the largest gain on held-out prompts, and how strong a prior serves seen people posing as new.

    Only their mixtures are forgotten: V was fitted to their pairs as well, so the prior is rather weak than strong.
    """
    choice = {"personal_spreads": PERSONAL_SPREADS, "gain": gains, "personal_spread": None}
    best = max(range(len(gains)), key=lambda i: gains[i][0])
    clear = lambda gain: gain[0] > SURE * gain[1]
    if not clear(gains[best]):
        return choice
    V, W = problem.solution(along[best], K, s, PERSONAL_SPREADS[best])
    (Z,), T, C = TallProduct.apply(problem.X, V), len(STRENGTHS), problem.C
    user = torch.cat(
        [problem.user[problem.few] + t * C for t in range(T)]
    )  # everybody once for each strength
    prior = Prior(W.mean(0), torch.tensor(STRENGTHS).repeat_interleave(C))
    mixtures = solve_mixtures(Z[problem.few].repeat(T, 1), user, T * C, prior).W.view(T, C, K)
    as_new = {
        f"{strength:g}": problem.gain(problem.log_p(V, w, Z), reference)
        for strength, w in zip(STRENGTHS, mixtures)
    }
    strength = max(
        as_new, key=lambda strength: as_new[strength][0]
    )  # as text: JSON has no infinity
    if not clear(as_new[strength]):
        strength = f"{EVERYBODY:g}"
    return choice | {
        "personal_spread": PERSONAL_SPREADS[best],
        "gain_as_new": as_new,
        "strength": strength,
    }


def check_rank(K, num_features, smallest):
    if not smallest <= K <= num_features:
        raise InputError(
            f"K = {K}: a rank lies between {smallest} and the width of the embeddings, {num_features}"
        )
