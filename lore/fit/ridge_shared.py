"""One reward for everybody, and something of one's own beside it: the first half of the ridge solver's
choice (lore/fit/ridge.py), and what its folds say of any fit."""

from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F

from lore.fit.doubt import Projected, posterior_variance, tempered
from lore.fit.held_out import FOLDS, Folds, is_clear, mean_gain, surest
from lore.fit.likelihood import LOGIT_SCALE, margins
from lore.fit.mixtures import EVERYBODY, Fit, Prior, batches_of, person_batches, solve_batches, solve_mixtures
from lore.fit.ridge_model import Form, JointProblem, Spreads
from lore.processes import agreed
from lore.splits import reference_head

COMMON_SPREADS = [10 ** (i / 2) for i in range(-3, 3)]  # s; from strong ridge to weak
DEVIATION_SPREADS = [0.4, 0.8, 1.5, 3.0, 6.0, 12.0]  # o
TRIED_AT_LEAST = 4  # values of a list; those that follow while the last is the best
DOUBTS = [0.1, 0.3, 1.0]  # share of the variance of what is unsure of new people
WORTH = 1e-3  # share of the held-out loss that a weaker ridge for all must save
FIRST_PASSES = 30  # over X, for the first ridge of a path
EXACT_PASSES = 40  # for Bradley-Terry's, where they are cheap
CHOSEN_WITHIN = 1e-4  # gap of a person's problem (R2) that is solved only to choose by
EXACT = 1e-5  # tolerance of what is kept


class Common(NamedTuple):
    """Bradley-Terry with the ridge that suits it best, of the head in it or not."""

    form: Form
    spreads: Spreads
    thetas: list  # of each fold's fit
    log_p: torch.Tensor  # (n,) of each pair, by the fit that left it out
    curve: list  # held-out loss of each of COMMON_SPREADS that was tried


class SharedSearch:
    """The choice of s, of the head and of o for one reward for everybody, made at once.

    common: {whether the head is in it: Common}, and `shared` the one that is kept; found: W and Z of each
    of its folds; o: the spread of deviations from it; log_p_own (n,): what is then said of pairs of who is asked.
    """

    def __init__(self, train, V_ref, seed, device, weigh):
        self.train = train
        self.folds = Folds(train, seed, device)
        head = reference_head(V_ref, train.num_features)
        self.problem = JointProblem(train, head, device, weigh, self.folds.number)
        self.votes, _ = self.problem.weights(self.problem.everything)  # (n,)
        self.asked = self.folds.asked.nonzero().flatten()  # rows
        user = self.problem.user[self.asked]
        self.people = [*person_batches(user, self.problem.C, 1, train, self.asked)]
        self.common = self.common_paths()
        self.shared = self.chosen_common()
        self.found = self.of_folds(self.shared.thetas, self.shared.form, self.shared.spreads)
        self.o, self.log_p_own, gains = self.deviation_path(self.found, EVERYBODY)
        self.choice = {
            "common_spreads": COMMON_SPREADS[: len(self.shared.curve)],
            "common_held_out_loss": self.shared.curve,
            "common_spread": self.shared.spreads.s,
            "head": self.shared.form.head,
            "held_out_gain": 0.0,
            "deviation_spreads": DEVIATION_SPREADS,
            "deviation_gain": gains,
            "deviation_spread": self.o,
        }

    # -------------------------------------------------------------------- one reward for all ---

    def common_paths(self):
        """Bradley-Terry from strong to weak ridge, as long as the held-out loss falls: {head: Common}"""
        problem = self.problem
        forms = [Form(1, head) for head in problem.heads]
        thetas = {form: [problem.head.new_zeros(sum(problem.sizes(1)))] * FOLDS for form in forms}
        curves = {form: [] for form in forms}
        best = {}
        least = {}  # held-out loss of those
        last = COMMON_SPREADS[0]
        for s in COMMON_SPREADS:
            spreads = dict.fromkeys(thetas, Spreads(s))
            for form in thetas:  # s * u stays
                thetas[form] = [problem.rescaled(theta, 1, "u", last / s) for theta in thetas[form]]
            thetas = problem.descend(thetas, spreads, self.folds.fitted, FIRST_PASSES)
            for form in [*thetas]:
                log_p = self.log_p_of(thetas[form], form, spreads[form])
                loss = agreed(-(self.votes @ log_p / self.votes.sum()).item())  # (n,) @ (n,)
                curve = curves[form]
                curve.append(loss)
                if form not in best or loss < (1 - WORTH) * least[form]:
                    least[form] = loss
                    best[form] = Common(form, spreads[form], thetas[form], log_p, curve)
                elif len(curve) > 2:  # the first two may be too strong to tell apart
                    del thetas[form]
            last = s
            if not thetas:
                break
        return {form.head: common for form, common in best.items()}

    def chosen_common(self):
        """With the reward model's head, where there is one, or without it where that is clearly better."""
        first, *without = self.common.values()
        for common in without:
            if is_clear(self.gain(common.log_p, first.log_p, self.problem.everything)):
                return common
        return first

    @cached_property
    def theta(self):
        """Of Bradley-Terry, fitted to all pairs."""
        form, spreads, thetas = self.shared[:3]
        everything = [self.problem.everything]
        fits = self.problem.descend({form: thetas[:1]}, {form: spreads}, everything, EXACT_PASSES, EXACT)
        return fits[form][0]

    def bradley_terry(self):
        V, W = self.problem.solution(self.theta, self.shared.form, self.shared.spreads)
        return Fit(V, W.float(), prior=Prior(W[0], EVERYBODY), choice=self.choice)

    def each_alone(self):
        """A reward of each person's own, from their own pairs, with Bradley-Terry's spread s. Of Bradley-Terry
        it has the reward model's head alone."""
        c = self.problem.parts(self.theta, 1).c
        V = (self.problem.unit * c * self.problem.head).float()  # (d, 1); 0 where the head is no part
        ones = self.votes.new_ones(self.problem.C, 1)
        prior = Prior(ones[0], EVERYBODY, self.problem.unit * self.shared.spreads.s)
        deviations = self.solved(V, prior).deviations
        return Fit(V, ones.float(), prior=prior, deviations=deviations)

    def shared_and_own(self, bradley_terry):
        """Bradley-Terry with what it leaves to each person, where that is worth it."""
        prior = bradley_terry.prior._replace(deviation_spread=self.problem.unit * self.o)
        gained, _ = self.gain(self.log_p_own, self.shared.log_p, self.folds.asked)
        choice = bradley_terry.choice | {"held_out_gain": gained}
        if self.o:
            choice |= self.doubt_of_new(self.found, EVERYBODY, self.o)
            prior = prior._replace(doubt=choice["doubt"])
        deviations = self.solved(bradley_terry.V, prior).deviations
        return bradley_terry._replace(prior=prior, choice=choice, deviations=deviations)

    def doubt_of_new(self, found, strength, o):
        """How much of what is unsure probabilities have to allow for: seen people pose as new, with FEW_PAIRS each."""
        logits = []
        variances = []
        rows = self.asked
        for W, Z, few in zip(*found, self.folds.few):
            prior = Prior(W.mean(0), strength, self.problem.unit * o)
            logit = self.logits_of_people(W, Z, prior, few)
            pairs = Projected(self.train, rows.to(self.train.user.device), Z[rows])
            margin = LOGIT_SCALE * logit[rows].unsqueeze(1)
            votes = (self.problem.votes * few)[rows].unsqueeze(1)
            variance = posterior_variance(prior, pairs, margin, votes, pairs)
            logits.append(logit)
            variances.append(torch.zeros_like(logit).index_copy(0, rows, variance.flatten()))
        logit = self.folds.held_out(logits)
        variance = self.folds.held_out(variances)

        def gain(doubt):
            log_p = F.logsigmoid(tempered(logit, variance, doubt))
            return self.gain(log_p, F.logsigmoid(logit), self.folds.asked)

        gains = [gain(doubt) for doubt in DOUBTS]
        best = surest(gains)
        return {"doubt_gain": gains, "doubt": 0.0 if best is None else DOUBTS[best]}

    # -------------------------------------------------------------------- what the folds say ---

    def of_folds(self, thetas, form, spreads):
        """W (C, K) and Z (n, K) of each fold's fit: two lists."""
        Vs, Ws = zip(*[self.problem.solution(theta, form, spreads) for theta in thetas])
        return [*Ws], self.problem.products(Vs)

    def log_p_of(self, thetas, form, spreads):
        """log P of each pair, by the joint fit that left it out. (n,)"""
        logits = []
        for W, Z in zip(*self.of_folds(thetas, form, spreads)):
            logits.append(margins(Z.double(), W, self.problem.user) / LOGIT_SCALE)
        return F.logsigmoid(self.folds.held_out(logits))

    def log_p_of_people(self, found, strength, o, masks):
        """The same after (R2) of who is asked, by the pairs of each fold's mask. (n,)

        found: W and Z of each fold, as of_folds has them
        """
        logits = []
        for W, Z, mask in zip(*found, masks):
            prior = Prior(W.mean(0), strength, self.problem.unit * o)
            logits.append(self.logits_of_people(W, Z, prior, mask))
        return F.logsigmoid(self.folds.held_out(logits))

    def logits_of_people(self, W, Z, prior, mask):
        """Log-odds of the pairs of who is asked, after (R2) by the pairs of a mask (n,). (n,)

        W: mixtures of the joint fit, near to those that are sought
        """
        rows = self.asked
        votes = (self.problem.votes * mask)[rows]
        quickly = {"certified": CHOSEN_WITHIN, "near": W}
        mixtures = solve_batches(self.people, Z[rows], votes, self.problem.C, prior, **quickly)
        whole = self.votes.new_zeros(len(self.votes))
        return whole.index_copy(0, rows, mixtures.logits)

    def deviation_path(self, found, strength):
        """o, log P (n,) with it, and what each of DEVIATION_SPREADS gains over e = 0."""
        fitted = self.folds.fitted
        without = self.log_p_of_people(found, strength, 0.0, fitted)
        log_ps = []

        def gain(o):
            log_ps.append(self.log_p_of_people(found, strength, o, fitted))
            return self.gain(log_ps[-1], without, self.folds.asked)

        gains = while_last_is_best(DEVIATION_SPREADS, gain)
        best = surest(gains)
        return (0.0, without, gains) if best is None else (DEVIATION_SPREADS[best], log_ps[best], gains)

    def gain(self, log_p, reference, rows):
        """mean_gain of log P over a reference on a mask (n,), by prompts and by users."""
        clusters = (self.folds.prompt, self.problem.user)
        return mean_gain(log_p - reference, self.votes * rows, clusters)

    def solved(self, V, prior, near=None):
        """(R2) of everybody, by all pairs. near (C, K): see solve_batches."""
        (Z,) = self.problem.products([V])
        start = {"people": self.with_all_pairs() if prior.deviation_spread else None, "near": near}
        return solve_mixtures(Z, self.problem.user, self.problem.C, prior, self.train, **start)

    @cached_property
    def with_all_pairs(self):
        """() -> Batches of everybody."""
        return batches_of(self.problem.user, self.problem.C, 1, self.train)


def while_last_is_best(values, gain):
    """gain(value) of the first TRIED_AT_LEAST values, and of each that follows while the last is the best."""
    gains = []
    for value in values:
        if len(gains) >= TRIED_AT_LEAST and max(gains)[0] > gains[-1][0]:
            break
        gains.append(gain(value))
    return gains
