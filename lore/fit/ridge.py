"""The ridge solver: both problems of lore/fit/ridge_model.py, their priors chosen on held-out prompts.

Each prompt is held out once, with all its pairs, by one of FOLDS fits to the others, which share
each pass over X. On what they say of held-out pairs are chosen, one after the other,

    s   of Bradley-Terry, along a path from strong ridge to weak
    o   of Bradley-Terry with something of one's own, s fixed
    p   of each rank above 1, along a path from weak ridge to strong, s fixed
    o   of that rank, p fixed, and how strong a prior serves new people

from s on always the one that gains most of those whose gain is SURE standard errors above none. A
rank that does not clearly beat what was found without it gets that instead: one reward for
everybody and, where o > 0, something of one's own. Then everything is fitted to all pairs.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from lore.common import require
from lore.fit.comparisons import check_rank, pack
from lore.fit.groups import shuffled_positions
from lore.fit.likelihood import LOGIT_SCALE, margins, negative_log_likelihood
from lore.fit.mixtures import EVERYBODY, Fit, Prior, person_batches, solve_batches, solve_mixtures
from lore.fit.product import TallProduct
from lore.fit.ridge_model import SEEN_STRENGTH, JointProblem
from lore.processes import agreed
from lore.splits import reference_head

FOLDS = 3  # of the prompts
COMMON_SPREADS = [10 ** (i / 2) for i in range(-3, 3)]  # s; from strong ridge to weak
PERSONAL_SPREADS = [5.0, 2.0, 0.8, 0.3]  # p; from weak ridge to strong
DEVIATION_SPREADS = [0.4, 0.8, 1.5, 3.0]  # o
STRENGTHS = [0.3, 1.0, 3.0, 10.0, EVERYBODY]  # pairs that the mean mixture counts as, for new users
FEW_PAIRS = 10  # known of a seen user who stands for a new one
ASKED = 300  # people, at most, by whom o and the strength are chosen
ASKED_PAIRS = 100  # of each of them, at most
WORTH = 1e-3  # share of the held-out loss that a weaker ridge for all must save
SURE = 1.5  # standard errors by which held-out prompts must speak for something
FIRST_PASSES = 30  # over X, for the first ridge of a path
NEXT_PASSES = 10  # for each that follows
LAST_PASSES = 20  # for the fit of higher ranks to all pairs
EXACT_PASSES = 40  # for Bradley-Terry's, where they are cheap
EXACT = 1e-5  # tolerance of what is kept


def fit_ridge(features, K_list, V_ref=None, seed=0, device="cpu", weigh="pairs"):
    """LoRe of every rank, its priors chosen on held-out prompts: {K: Fit}, K = 1 always among them.

    features: Comparisons, which can say what prompt a pair is about, or a list of per-user (m_i, d)
    tensors; V_ref: head (d, 1) or None. weigh: "pairs" = all count alike, "people" = all people do,
    as in Eq. 10. K = 1 is Bradley-Terry, without anything of one's own.
    InputError: fewer than FOLDS prompts, an unknown weigh.
    """
    train = pack(features)
    ranks = sorted({K for K in K_list if K > 1})
    for K in ranks:
        check_rank(K, train.num_features, smallest=1)
    search = Search(train, V_ref, seed, device, weigh)
    fits = {1: search.bradley_terry()}
    candidates = search.personal_path(ranks) if ranks else {}
    clear = {K: candidate for K, candidate in candidates.items() if candidate.clear}
    fits |= search.fit_candidates(fits[1], clear)
    unclear = [K for K in ranks if K not in clear]
    if unclear:
        instead = search.shared_and_own(fits[1])
        for K in unclear:
            fits[K] = instead._replace(choice=instead.choice | candidates[K].choice)
    return {K: fits[K] for K in (1, *ranks)}


def fit_shared_and_own(features, V_ref=None, seed=0, device="cpu", weigh="pairs"):
    """Bradley-Terry with something of one's own, V w_i being the same for all -> Fit."""
    search = Search(pack(features), V_ref, seed, device, weigh)
    return search.shared_and_own(search.bradley_terry())


class Folds:
    """Which pairs each fit of a search leaves out: a share of the prompts, with all their pairs."""

    def __init__(self, train, seed, device):
        self.prompt = train.prompts().to(device)  # (n,)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(int(self.prompt.max()) + 1, generator=generator).to(device)
        words = f"to choose a ridge, at least {FOLDS} are needed"
        require(len(order) >= FOLDS, f"{len(order)} different prompts to train on; {words}")
        self.number = order[self.prompt] % FOLDS  # (n,) of the fit that leaves a pair out
        self.fitted = [self.number != fold for fold in range(FOLDS)]  # masks (n,)
        user = train.user.to(device)
        self.few = []  # of the fitted ones, those by which seen people pose as new: masks (n,)
        choice = None if train.choice is None else train.choice.to(device)
        for fitted in self.fitted:
            self.few.append(some_of_each(user, fitted, FEW_PAIRS, generator, choice))
        people = torch.randperm(len(train.user_ids), generator=generator)[:ASKED].to(device)
        asked = torch.isin(user, people)
        self.asked = some_of_each(user, asked, ASKED_PAIRS, generator, choice)  # mask (n,)

    def held_out(self, by_fold):
        """What each fold says of all pairs, FOLDS x (n,) -> what is said by who left it out. (n,)"""
        return torch.stack(by_fold).gather(0, self.number.unsqueeze(0))[0]


def some_of_each(user, among, most, generator, choice=None):
    """Of the pairs of a mask (n,), so many of each user at most, drawn at random: a mask (n,).

    choice (n,): so many choices, with all their pairs.
    """
    rows = among.nonzero().flatten()
    unit = torch.arange(len(rows))
    if choice is not None:
        unit = choice[rows].unique(return_inverse=True)[1].cpu()
    owner = torch.zeros(int(unit.max()) + 1, dtype=torch.long).scatter_(0, unit, user[rows].cpu())
    positions = shuffled_positions(owner, 1, generator)[0][unit].to(user.device)
    drawn = torch.zeros_like(among)
    drawn[rows[positions < most]] = True
    return drawn


class Candidate(NamedTuple):
    """A rank above 1 with the priors that suit it best."""

    thetas: list  # of each fold's fit
    choice: dict
    clear: bool  # whether it beats what was found without it


class Search:
    """The choice of all priors; those of one reward for everybody are chosen at once.

    s: its spread; start: theta of each fold; log_p (n,): what they say of the pairs left out; o: the
    spread of deviations from it; log_p_own (n,): what is then said of pairs of who is asked.
    """

    def __init__(self, train, V_ref, seed, device, weigh):
        self.train = train
        self.problem = JointProblem(train, reference_head(V_ref, train.num_features), device, weigh)
        self.folds = Folds(train, seed, device)
        self.votes, _ = self.problem.weights(self.problem.everything)  # (n,)
        self.asked = self.folds.asked.nonzero().flatten()  # rows
        user = self.problem.user[self.asked]
        self.people = [*person_batches(user, self.problem.C, 1, train, self.asked)]
        self.s, self.start, self.log_p, self.choice = self.common_path()
        self.Zs = self.of_folds(self.start, 1, self.s, None)[1]
        self.means = [self.votes.new_ones(1)] * FOLDS  # mixtures of rank 1
        self.o, self.log_p_own, gains = self.deviation_path(self.Zs, self.means, EVERYBODY)
        self.choice |= {"deviation_spreads": DEVIATION_SPREADS, "deviation_gain": gains}
        self.choice["deviation_spread"] = self.o

    # -------------------------------------------------------------------- one reward for all ---

    def common_path(self):
        """Bradley-Terry from strong to weak ridge, as long as the held-out loss falls."""
        problem = self.problem
        thetas = [problem.head.new_zeros(sum(problem.sizes(1)))] * FOLDS
        best = None
        curve = []
        last = COMMON_SPREADS[0]
        fitted = self.folds.fitted
        for s in COMMON_SPREADS:
            thetas = [problem.rescaled(theta, 1, "u", last / s) for theta in thetas]  # s * u stays
            thetas = problem.descend({1: thetas}, s, {1: None}, fitted, FIRST_PASSES)[1]
            log_p = self.log_p_of(thetas, 1, s, None)
            loss = agreed(-(self.votes @ log_p / self.votes.sum()).item())  # (n,) @ (n,)
            curve.append(loss)
            if best is None or loss < (1 - WORTH) * best:
                best = loss
                chosen = s, thetas, log_p
            elif len(curve) > 2:  # the first two may be too strong to tell apart
                break
            last = s
        choice = {
            "common_spreads": COMMON_SPREADS[: len(curve)],
            "common_held_out_loss": curve,
            "common_spread": chosen[0],
            "held_out_gain": 0.0,
        }
        return *chosen, choice

    def bradley_terry(self):
        """Fitted to all pairs."""
        everything = [self.problem.everything]
        start = {1: self.start[:1]}
        fits = self.problem.descend(start, self.s, {1: None}, everything, EXACT_PASSES, EXACT)
        V, W = self.problem.solution(*fits[1], 1, self.s, None)
        return Fit(V, W.float(), prior=Prior(W[0], EVERYBODY), choice=self.choice)

    def shared_and_own(self, bradley_terry):
        """Bradley-Terry with what it leaves to each person, where that is worth it."""
        prior = bradley_terry.prior._replace(deviation_spread=self.problem.unit * self.o)
        gained, _ = self.gain(self.log_p_own, self.log_p, self.folds.asked)
        choice = bradley_terry.choice | {"held_out_gain": gained}
        deviations = self.solved(bradley_terry.V, prior).deviations
        return bradley_terry._replace(prior=prior, choice=choice, deviations=deviations)

    # -------------------------------------------------------------------------- higher ranks ---

    def personal_path(self, ranks):
        """Higher ranks from weak to strong ridge, from Bradley-Terry's theta on. {K: Candidate}"""
        problem = self.problem
        last = PERSONAL_SPREADS[0]
        thetas = self.path_start(ranks, last)
        path = {K: [] for K in ranks}  # for each p, the theta of each fold
        gains = {K: [] for K in ranks}
        passes = FIRST_PASSES
        for p in PERSONAL_SPREADS:
            for K in ranks:  # p * D stays
                thetas[K] = [problem.rescaled(theta, K, "D", last / p) for theta in thetas[K]]
            spreads = dict.fromkeys(ranks, p)
            thetas = problem.descend(thetas, self.s, spreads, self.folds.fitted, passes)
            for K in ranks:
                path[K].append(thetas[K])
                log_p = self.log_p_of(thetas[K], K, self.s, p)
                gains[K].append(self.gain(log_p, self.log_p, self.problem.everything))
            passes = NEXT_PASSES
            last = p
        return {K: self.candidate(K, path[K], gains[K]) for K in ranks}

    def path_start(self, ranks, p):
        """{K: [theta of each fold]} at the beginning of the path."""
        thetas = {K: [] for K in ranks}
        for start, fitted, Z in zip(self.start, self.folds.fitted, self.Zs):
            for K, (D, L) in zip(ranks, self.problem.corners(ranks, fitted, Z, p)):
                thetas[K].append(torch.cat([start, D.flatten(), L.flatten()]))
        return thetas

    def candidate(self, K, path, gains):
        """What suits this rank best on held-out pairs, and whether it is needed at all."""
        choice = {"personal_spreads": PERSONAL_SPREADS, "gain": gains, "personal_spread": None}
        best = surest(gains)
        if best is None:
            return Candidate(path[0], choice, clear=False)
        p = PERSONAL_SPREADS[best]
        Ws, Zs = self.of_folds(path[best], K, self.s, p)
        means = [W.mean(0) for W in Ws]
        o, log_p, deviation_gains = self.deviation_path(Zs, means, SEEN_STRENGTH)
        over_deviations = self.gain(log_p, self.log_p_own, self.folds.asked)
        choice |= {"gain_over_deviations": over_deviations}
        if surest([over_deviations]) is None:
            return Candidate(path[best], choice, clear=False)
        gained, _ = self.gain(log_p, self.log_p, self.folds.asked)
        choice |= {"personal_spread": p, "held_out_gain": gained}
        choice |= {"deviation_gain": deviation_gains, "deviation_spread": o}
        choice |= self.strength_for_new(Zs, means, o)
        return Candidate(path[best], choice, clear=True)

    def strength_for_new(self, Zs, means, o):
        """How strong a prior serves new people: seen ones pose as new, with FEW_PAIRS each.

        V was fitted to their pairs as well, so the prior is rather weak than strong.
        """
        few = self.folds.few
        reference = self.log_p_of_people(self.Zs, self.means, EVERYBODY, self.o, few)
        gains = []
        for strength in STRENGTHS:
            log_p = self.log_p_of_people(Zs, means, strength, o, few)
            gains.append(self.gain(log_p, reference, self.folds.asked))
        best = surest(gains)
        strength = EVERYBODY if best is None else STRENGTHS[best]
        names = [f"{strength:g}" for strength in STRENGTHS]  # JSON has no infinity
        return {"gain_as_new": dict(zip(names, gains)), "strength": f"{strength:g}"}

    def fit_candidates(self, bradley_terry, candidates):
        """Higher ranks with the priors chosen for them, fitted to all pairs: {K: Fit}.

        (R1) has many minima above rank 1: from the fit of each fold on, and the lowest is taken.
        """
        if not candidates:
            return {}
        problem = self.problem
        thetas = {K: candidate.thetas for K, candidate in candidates.items()}
        ps = {K: candidate.choice["personal_spread"] for K, candidate in candidates.items()}
        everything = [self.problem.everything]
        thetas = problem.descend(thetas, self.s, ps, everything * FOLDS, LAST_PASSES)
        lowest = {K: [self.lowest(thetas[K], K, ps[K])] for K in thetas}
        lowest = problem.descend(lowest, self.s, ps, everything, LAST_PASSES, EXACT)
        fits = {}
        for K, (theta,) in lowest.items():
            choice = bradley_terry.choice | candidates[K].choice
            V, W = problem.solution(theta, K, self.s, ps[K])
            prior = Prior(W.mean(0), SEEN_STRENGTH, problem.unit * choice["deviation_spread"])
            seen = self.solved(V, prior)
            prior = prior._replace(strength=float(choice["strength"]))
            fits[K] = Fit(V, seen.W.float(), prior=prior, choice=choice, deviations=seen.deviations)
        return fits

    def lowest(self, thetas, K, p):
        """That whose (R1) over all pairs is least."""
        weights = self.problem.weights(self.problem.everything)
        losses = []
        for theta, W, Z in zip(thetas, *self.of_folds(thetas, K, self.s, p)):
            nll = negative_log_likelihood(Z, W, self.problem.user, weights[0])
            losses.append(self.problem.loss(theta, K, nll, W, *weights).item())
        return thetas[agreed(losses.index(min(losses)))]

    # -------------------------------------------------------------------- what the folds say ---

    def of_folds(self, thetas, K, s, p):
        """W (C, K) and Z (n, K) of each fold's fit: two lists."""
        Vs, Ws = zip(*[self.problem.solution(theta, K, s, p) for theta in thetas])
        return [*Ws], [*TallProduct.apply(self.problem.X, *Vs)]  # (n, d) @ (d, K) -> (n, K)

    def log_p_of(self, thetas, K, s, p):
        """log P of each pair, by the joint fit that left it out. (n,)"""
        logits = []
        for W, Z in zip(*self.of_folds(thetas, K, s, p)):
            logits.append(margins(Z.double(), W, self.problem.user) / LOGIT_SCALE)
        return F.logsigmoid(self.folds.held_out(logits))

    def log_p_of_people(self, Zs, means, strength, o, masks):
        """The same after (R2) of who is asked, by the pairs of each fold's mask. (n,)"""
        logits = []
        rows = self.asked
        for Z, mean, mask in zip(Zs, means, masks):
            prior = Prior(mean, strength, self.problem.unit * o)
            votes = (self.problem.votes * mask)[rows]
            mixtures = solve_batches(self.people, Z[rows], votes, self.problem.C, prior)
            whole = self.votes.new_zeros(len(self.votes))
            logits.append(whole.index_copy(0, rows, mixtures.logits))
        return F.logsigmoid(self.folds.held_out(logits))

    def deviation_path(self, Zs, means, strength):
        """o, log P (n,) with it, and what each of DEVIATION_SPREADS gains over e = 0."""
        fitted = self.folds.fitted
        without = self.log_p_of_people(Zs, means, strength, 0.0, fitted)
        log_ps = []
        gains = []
        for o in DEVIATION_SPREADS:
            log_ps.append(self.log_p_of_people(Zs, means, strength, o, fitted))
            gains.append(self.gain(log_ps[-1], without, self.folds.asked))
        best = surest(gains)
        return (0.0, without, gains) if best is None else (DEVIATION_SPREADS[best], log_ps[best], gains)

    def gain(self, log_p, reference, rows):
        """By how much log P of held-out pairs is larger, and its standard error; rows: mask (n,).

        The larger of two errors: with the prompts, and with the users, as what was drawn at random.
        """
        share = self.votes * rows
        share = share / share.sum()
        gained = torch.where(rows, log_p - reference, 0)
        mean = (share * gained).sum()
        off = share * (gained - mean)
        errors = []
        for drawn in (self.folds.prompt, self.problem.user):
            sums = off.new_zeros(len(drawn)).index_add_(0, drawn, off)
            errors.append(sums.norm().item())
        return agreed((mean.item(), max(errors)))

    def solved(self, V, prior):
        """(R2) of everybody, by all pairs."""
        (Z,) = TallProduct.apply(self.problem.X, V)  # (n, d) @ (d, K) -> (n, K)
        return solve_mixtures(Z, self.problem.user, self.problem.C, prior, self.train)


def surest(gains):
    """The largest of some (gain, standard error) that are clear of none; None where none is."""
    clear = [i for i, (mean, error) in enumerate(gains) if mean > SURE * error]
    return max(clear, key=lambda i: gains[i][0], default=None)
