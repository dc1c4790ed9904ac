"""What a personal fit has to beat: other people's mixtures, shuffled labels, what is one's own alone."""

import torch
import torch.nn.functional as F

from lore.evaluation import (
    ALONE,
    ANOTHER,
    POPULATION,
    SHARED_OWN,
    SHUFFLED,
    Fitted,
    Setting,
    cell_of,
    score,
)
from lore.lbfgs import minimise
from lore.likelihood import LOGIT_SCALE, margins, user_mean_weights
from lore.objective import HEAD_SPREAD, JointProblem
from lore.ridge import FIRST_PASSES, fit_shared_and_own

USERS_AT_ONCE = 16  # whose own rewards are fitted together


def baseline_cells(fitted, groups, V_ref, device, weigh, refit):
    """Cells of all baselines of some fits.

    refit(settings, train, few_shot_train) fits the same settings to other labels -> [Fitted].
    """
    others = []
    for one in fitted:
        if one.setting.K > 1:
            others += other_mixtures(one)
    alone = []
    for seed in dict.fromkeys(one.setting.seed for one in fitted):
        settings = [one.setting for one in fitted if one.setting.seed == seed]
        settings = [setting for setting in settings if setting.K > 0]
        if settings:
            labels = groups.train.shuffled(seed), groups.few_shot_train.shuffled(seed)
            others += [one._replace(variant=SHUFFLED) for one in refit(settings, *labels)]
        fit = fit_shared_and_own(groups.train, V_ref, seed, device, weigh)
        new = fit.new_people(groups.few_shot_train)
        others.append(Fitted(Setting(seed, None, 1), fit, new.W.float(), SHARED_OWN, new.own))
        alone.append(each_alone(groups, V_ref, seed, device, fit.choice["common_spread"]))
    return score(others, groups) + alone


def other_mixtures(one):
    """The same basis with one mixture for all people, and with that of the person before.

    Nobody has anything of their own.
    """
    fit = one.fit._replace(own=None)
    mean = fit.W.mean(0)  # of the people seen, for the unseen as well
    everybody = fit._replace(W=mean.expand_as(fit.W))
    yield Fitted(one.setting, everybody, mean.expand_as(one.W_unseen), POPULATION)
    before = fit._replace(W=fit.W.roll(1, dims=0))
    yield Fitted(one.setting, before, one.W_unseen.roll(1, dims=0), ANOTHER)


def each_alone(groups, V_ref, seed, device, s):
    """A reward of each user's own, from their own pairs, with Bradley-Terry's spread s -> Cell.

    loss of user i = Eq. 11 for x @ r_i, r_i = unit * (c_i * head + s * u_i), plus the ridge of
    lore/objective.py over m_i. Only s is not their own: it is that of the seen users.
    """
    problem = JointProblem(groups.train, V_ref, device, "people")
    margins_of = {}
    for to_fit, to_test in (("train", "seen"), ("few_shot_train", "unseen")):
        data = getattr(groups, to_fit)
        test = getattr(groups, to_test)
        parts = []
        for users in torch.arange(len(data.user_ids)).split(USERS_AT_ONCE):
            parts.append(alone(data, test, users, problem, s))
        margins_of[to_fit], margins_of[to_test] = map(torch.cat, zip(*parts))
    return cell_of(Setting(seed, None, "alone"), margins_of, groups, ALONE)


def alone(data, test, users, problem, s):
    """Margins of the pairs of U users in a row: those that they are fitted on, those of `test`."""
    X, user, votes = rows_of(data, users, problem.X.rest)
    weight = user_mean_weights(user, votes)
    m = torch.bincount(user, votes)
    U = len(users)
    number = torch.arange(U)
    owner = torch.cat([number, number.repeat_interleave(problem.d)]).to(X.device)

    def rewards(theta):
        c = theta[:U].unsqueeze(1)
        u = theta[U:].view(U, -1)
        return (problem.unit * (c * problem.head.T + s * u)).float()  # (U, 1) * (1, d) + (U, d)

    def losses(theta):
        nll = -F.logsigmoid(margins(X, rewards(theta), user) / LOGIT_SCALE) * weight  # (n,)
        ridge = (theta[:U] / HEAD_SPREAD).square() + theta[U:].view(U, -1).square().sum(1)
        return nll.new_zeros(U).index_add_(0, user, nll) + ridge / (2 * m)

    start = problem.head.new_zeros(U * (1 + problem.d))
    r = rewards(minimise(losses, start, owner, FIRST_PASSES))
    X_test, user_test, _ = rows_of(test, users, problem.X.rest)
    return margins(X, r, user), margins(X_test, r, user_test)


def rows_of(pairs, users, like):
    """X (n, d) of the pairs of some users in a row, whose they are, counted from the first, and how much
    each counts."""
    ends = torch.stack([users[0], users[-1] + 1])
    first, last = torch.searchsorted(pairs.user.cpu(), ends).tolist()
    user = (pairs.user[first:last] - users[0]).to(like.device)
    votes = pairs.votes[first:last].to(like.device)
    return pairs.differences(like, slice(first, last)), user, votes
