"""The ridge solver: both problems of lore/fit/ridge_model.py, their priors chosen on held-out prompts.

Each prompt is held out once, with all its pairs, by one of FOLDS fits to the others, which share
each pass over X. On what they say of held-out pairs are chosen, one after the other,

    s   of Bradley-Terry, with the reward model's head and without it, along a path from strong
        ridge to weak; and whether the head is in Bradley-Terry
    o   of Bradley-Terry with something of one's own, s fixed
    p   of each rank above 1, from a weak ridge on along a path to strong ones and along one to still
        weaker ones, each while it gains; and whether the head is in that rank, after a first look:
        tried out on the first fold, and confirmed by all
    o   of that rank, p fixed; how strong a prior serves new people, and how much doubt their
        probabilities have to allow for (lore/fit/doubt.py)

from o on always the one that gains most of those whose gain is SURE standard errors above none. A
rank that does not clearly beat what was found without it gets that instead: one reward for
everybody and, where o > 0, something of one's own. Then everything is fitted to all pairs.
"""

from itertools import product, starmap
from typing import NamedTuple

import torch
import torch.nn.functional as F

from lore.fit.comparisons import check_rank, pack
from lore.fit.held_out import FOLDS, is_clear, surest
from lore.fit.likelihood import LOGIT_SCALE, margins, negative_log_likelihood
from lore.fit.mixtures import EVERYBODY, Fit, Prior
from lore.fit.ridge_model import SEEN_STRENGTH, Form, Spreads
from lore.fit.ridge_shared import EXACT, SharedSearch, while_last_is_best
from lore.processes import agreed

PERSONAL_SPREADS = [5.0, 2.0, 0.8, 0.3]  # p; from weak ridge to strong
WEAKER_SPREADS = [12.0, 30.0]  # p, tried from the first of them on where that is the best
STRENGTHS = [10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01]  # pairs that the mean mixture counts as, for new users
FIRST_LOOK = 10  # passes over X, after which the head is in a rank or not
GOES_ON = 20  # more of them, at the first p
PROMISING = 0.5  # standard errors by which the first fold must speak for a rank before the others are asked
NEXT_PASSES = 10  # over X, for each p but the first
START_PASSES = 20  # for the fits to all pairs of which one is kept
LAST_PASSES = 20  # for the one that is kept


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
    candidates = search.candidates(ranks)
    fits |= search.fit_candidates(fits[1], candidates)
    unclear = [K for K in ranks if K not in fits]
    if unclear:
        instead = search.shared_and_own(fits[1])
        for K in unclear:
            fits[K] = instead._replace(choice=instead.choice | candidates[K].choice)
    return {K: fits[K] for K in (1, *ranks)}


class Trial(NamedTuple):
    """A form with one p, on the first fold."""

    form: Form
    p: float
    gain: tuple  # over Bradley-Terry, and its standard error
    theta: torch.Tensor


class Candidate(NamedTuple):
    """A rank above 1 with the priors that suit it best; without thetas it is not needed."""

    choice: dict
    form: Form | None = None
    thetas: list | None = None  # of each fold's fit
    log_p: torch.Tensor | None = None  # (n,) of pairs of who is asked


class Search(SharedSearch):
    """The choice of all priors: beside those of one reward for everybody, p, head, o and strength of each rank."""

    def candidates(self, ranks):
        """What suits each rank best on held-out pairs, and whether it is needed at all: {K: Candidate}"""
        if not ranks:
            return {}
        trials = self.trials(ranks)
        best = {K: best_of(trials[K]) for K in ranks}
        promising = {K: trial for K, trial in best.items() if is_clear(trial.gain, PROMISING)}
        thetas = self.confirmed(promising)
        candidates = {}
        for K in ranks:
            tried = [{"p": trial.p, "head": trial.form.head, "gain": trial.gain} for trial in trials[K]]
            choice = {"tried": tried, "personal_spread": None}
            candidates[K] = Candidate(choice)
            if K in promising:
                candidates[K] = self.candidate(best[K], thetas[K], choice)
        for K in ranks:
            self.note_smaller(K, candidates)
        return candidates

    def note_smaller(self, K, candidates):
        """In the choice of a rank, by how much held-out pairs clearly prefer a smaller one, if they do."""
        smaller = [k for k in candidates if k < K and candidates[k].form]
        if candidates[K].form and smaller:
            log_p = candidates[K].log_p
            gains = [self.gain(candidates[k].log_p, log_p, self.folds.asked) for k in smaller]
            best = surest(gains)
            if best is not None:
                candidates[K].choice["smaller_rank"] = {"K": smaller[best], "gain": gains[best]}

    def trials(self, ranks):
        """The first fold's fits: a first look at the start of the path with the head and without it, then
        with the better of the two to a stronger ridge, and to a weaker, while the last is the best:
        {K: [Trial]}"""
        p = PERSONAL_SPREADS[0]
        forms = [*starmap(Form, product(ranks, self.problem.heads))]
        looks = {K: [] for K in ranks}
        for trial in self.tried(self.path_start(forms, p, [0]), p, FIRST_LOOK):
            looks[trial.form.K].append(trial)
        thetas = {}
        for K in ranks:
            better = best_of(looks[K])
            looks[K].remove(better)
            thetas[better.form] = [better.theta]
        start = self.tried(thetas, p, GOES_ON)
        trials = {trial.form.K: [trial] for trial in start}
        for spreads in (PERSONAL_SPREADS[1:], WEAKER_SPREADS):
            last = start
            for p in spreads:
                last = [trial for trial in last if best_of(trials[trial.form.K]) is trial]
                last = self.next_trials(last, p)
                for trial in last:
                    trials[trial.form.K].append(trial)
        return {K: trials[K] + looks[K] for K in ranks}

    def next_trials(self, trials, p):
        """From some Trials on to another p."""
        thetas = {trial.form: [self.moved(trial.theta, trial.form, trial.p, p)] for trial in trials}
        return self.tried(thetas, p, NEXT_PASSES)

    def moved(self, theta, form, p, next_p):
        """theta for another p: p * D stays."""
        return self.problem.rescaled(theta, form.K, "D", p / next_p)

    def tried(self, thetas, p, passes):
        """[Trial] of the first fold, from {Form: [theta]} on."""
        fits = self.descended(thetas, dict.fromkeys(thetas, p), passes, [0])
        thetas = {form: theta for form, (theta,) in fits.items()}
        return [Trial(form, p, gain, thetas[form]) for form, gain in self.first_gains(thetas, p)]

    def spreads_of(self, form, p):
        return Spreads(self.common[form.head].spreads.s, p)

    def descended(self, thetas, ps, passes, folds):
        """{Form: [theta of each of some folds]} after so many passes with p = ps[form]."""
        if not thetas:
            return {}
        spreads = {form: self.spreads_of(form, ps[form]) for form in thetas}
        return self.problem.descend(thetas, spreads, [self.folds.fitted[fold] for fold in folds], passes)

    def first_gains(self, thetas, p):
        """Yield (Form, what its fit gains over Bradley-Terry on what the first fold leaves out): {Form: theta}"""
        if not thetas:
            return
        Vs = []
        Ws = []
        for form, theta in thetas.items():
            V, W = self.problem.solution(theta, form, self.spreads_of(form, p))
            Vs.append(V)
            Ws.append(W)
        left_out = self.problem.left_out[0]
        pairs = left_out.pairs
        for form, W, Z in zip(thetas, Ws, left_out.products(Vs)):
            logits = margins(Z.double(), W, self.problem.user[pairs]) / LOGIT_SCALE
            log_p = torch.zeros_like(self.shared.log_p).index_copy(0, pairs, F.logsigmoid(logits))
            yield form, self.gain(log_p, self.shared.log_p, self.folds.number == 0)

    def confirmed(self, promising):
        """The same fits by the other folds, {K: [theta of each fold]}; promising: {K: Trial}"""
        ps = {trial.form: trial.p for trial in promising.values()}
        folds = range(1, FOLDS)
        p = PERSONAL_SPREADS[0]
        thetas = self.path_start([*ps], p, folds)
        thetas = self.descended(thetas, dict.fromkeys(ps, p), FIRST_LOOK + GOES_ON, folds)
        to_move = {}
        for form in ps:
            if ps[form] != p:
                to_move[form] = [self.moved(theta, form, p, ps[form]) for theta in thetas[form]]
        thetas |= self.descended(to_move, ps, NEXT_PASSES, folds)
        return {K: [trial.theta, *thetas[trial.form]] for K, trial in promising.items()}

    def path_start(self, forms, p, folds):
        """{Form: [theta of each of some folds]} at the beginning of the path."""
        thetas = {form: [] for form in forms}
        for head, common in self.common.items():
            ranks = [form.K for form in forms if form.head == head]
            if not ranks:
                continue
            Zs = self.of_folds(common.thetas, common.form, common.spreads)[1]
            for fold in folds:
                starts = self.problem.corners(ranks, self.folds.fitted[fold], Zs[fold], p)
                for K, (D, L) in zip(ranks, starts):
                    theta = torch.cat([common.thetas[fold], D.flatten(), L.flatten()])
                    thetas[Form(K, head)].append(theta)
        return thetas

    def candidate(self, trial, thetas, choice):
        """A rank whose best Trial all folds have confirmed, and whether it is needed at all."""
        form = trial.form
        spreads = self.spreads_of(form, trial.p)
        log_p = self.log_p_of(thetas, form, spreads)
        gain = self.gain(log_p, self.shared.log_p, self.problem.everything)
        choice = choice | {"gain": gain}
        if not is_clear(gain):
            return Candidate(choice)
        found = self.of_folds(thetas, form, spreads)
        o, log_p, deviation_gains = self.deviation_path(found, SEEN_STRENGTH)
        over_deviations = self.gain(log_p, self.log_p_own, self.folds.asked)
        choice |= {"gain_over_deviations": over_deviations}
        if not is_clear(over_deviations):
            return Candidate(choice)
        gained, _ = self.gain(log_p, self.shared.log_p, self.folds.asked)
        choice |= {"personal_spread": trial.p, "held_out_gain": gained}
        choice |= {"rank_head": form.head, "rank_common_spread": spreads.s}
        choice |= {"deviation_gain": deviation_gains, "deviation_spread": o}
        choice |= self.of_new_people(found, o)
        return Candidate(choice, form, thetas, log_p)

    def of_new_people(self, found, o):
        """How strong a prior serves new people, and how much doubt: seen ones pose as new, with FEW_PAIRS each.

        V was fitted to their pairs as well, so the prior is rather weak than strong.
        """
        few = self.folds.few
        reference = self.log_p_of_people(self.found, EVERYBODY, self.o, few)

        def gain(strength):
            log_p = self.log_p_of_people(found, strength, o, few)
            return self.gain(log_p, reference, self.folds.asked)

        gains = [gain(EVERYBODY), *while_last_is_best(STRENGTHS, gain)]
        strengths = [EVERYBODY, *STRENGTHS]
        best = surest(gains)
        strength = EVERYBODY if best is None else strengths[best]
        names = [f"{strength:g}" for strength in strengths]  # JSON has no infinity
        choice = {"gain_as_new": dict(zip(names, gains)), "strength": f"{strength:g}"}
        return choice | self.doubt_of_new(found, strength, o)

    def fit_candidates(self, bradley_terry, candidates):
        """Higher ranks with the priors chosen for them, fitted to all pairs: {K: Fit}.

        (R1) has many minima above rank 1: from the fit of each fold on, and the lowest is taken.
        """
        clear = {candidate.form: candidate for candidate in candidates.values() if candidate.form}
        if not clear:
            return {}
        problem = self.problem
        thetas = {}
        spreads = {}
        for form, candidate in clear.items():
            thetas[form] = candidate.thetas
            spreads[form] = self.spreads_of(form, candidate.choice["personal_spread"])
        everything = [problem.everything]
        thetas = problem.descend(thetas, spreads, everything * FOLDS, START_PASSES)
        lowest = {form: [self.lowest(thetas[form], form, spreads[form])] for form in thetas}
        lowest = problem.descend(lowest, spreads, everything, LAST_PASSES, EXACT)
        fits = {}
        for form, (theta,) in lowest.items():
            choice = bradley_terry.choice | clear[form].choice
            V, W = problem.solution(theta, form, spreads[form])
            prior = Prior(W.mean(0), SEEN_STRENGTH, problem.unit * choice["deviation_spread"])
            seen = self.solved(V, prior, near=W)
            prior = prior._replace(strength=float(choice["strength"]), doubt=choice["doubt"])
            fits[form.K] = Fit(V, seen.W.float(), prior=prior, choice=choice, deviations=seen.deviations)
        return fits

    def lowest(self, thetas, form, spreads):
        """That whose (R1) over all pairs is least."""
        weights = self.problem.weights(self.problem.everything)
        losses = []
        for theta, W, Z in zip(thetas, *self.of_folds(thetas, form, spreads)):
            nll = negative_log_likelihood(Z, W, self.problem.user, weights[0])
            losses.append(self.problem.loss(theta, form.K, nll, W, *weights).item())
        return thetas[agreed(losses.index(min(losses)))]


def best_of(trials):
    return max(trials, key=lambda trial: trial.gain[0])
