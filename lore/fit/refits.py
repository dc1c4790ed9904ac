"""What a sweep is fitted once more for: the rank that held-out prompts speak for, and what a personal
fit has to beat."""

import torch
import torch.nn.functional as F

from lore.fit.evaluation import (
    ALONE,
    ANOTHER,
    LORE,
    POPULATION,
    SHARED_OWN,
    SHUFFLED,
    Fitted,
    Setting,
    cell_of,
    score,
    share_right,
)  # fmt: skip
from lore.fit.lbfgs import minimise
from lore.fit.likelihood import LOGIT_SCALE, margins, user_mean_weights
from lore.fit.product import project
from lore.fit.ridge import FIRST_PASSES, fit_shared_and_own
from lore.fit.ridge_model import HEAD_SPREAD, JointProblem

HELD_OUT = 4  # one prompt in so many
USERS_AT_ONCE = 16  # whose own rewards are fitted together


# ------------------------------------------------------------------------------------------------
# The rank that held-out prompts speak for. Test pairs are never looked at
# ------------------------------------------------------------------------------------------------


def marked(cells, fitted, groups, refit):
    """The cells, those of the best rank of each seed and alpha marked as `best`.

    refit(settings, train, few_shot_train) fits the same settings to fewer pairs -> [Fitted].
    """
    best = set()
    by_sweep = {}
    for one in fitted:
        by_sweep.setdefault(one.setting[:2], []).append(one)
    for fits in by_sweep.values():
        fits.sort(key=lambda one: one.setting.K)
        gains = [one.fit.choice["held_out_gain"] for one in fits if one.fit.choice]
        if gains:  # the ridge solver has held prompts out already
            fits = [one for one in fits if one.fit.choice]
        else:
            gains = held_out_accuracies(fits, groups, refit)
        best.add(fits[gains.index(max(gains))].setting)  # of equal ones the smallest
    result = []
    for cell in cells:
        is_best = cell.variant == LORE and cell.setting in best
        result.append(cell._replace(best=is_best))
    return result


def held_out_accuracies(fits, groups, refit):
    """What each setting reaches on one prompt in HELD_OUT of the seen people's training pairs when it
    is fitted to the others; the mean over users of Eq. 15."""
    train = groups.train
    seed = fits[0].setting.seed
    prompt = train.prompts()
    order = torch.randperm(int(prompt.max()) + 1, generator=torch.Generator().manual_seed(seed))
    user = train.user.cpu()
    kept = order[prompt] % HELD_OUT > 0
    has_some = torch.zeros(len(train.user_ids), dtype=torch.bool)
    has_some[user[kept]] = True
    kept |= ~has_some[user]  # who would have nothing left keeps all
    settings = [one.setting for one in fits]
    refitted = refit(settings, train.subset(kept), groups.few_shot_train)
    accuracies = []
    for one, Z in zip(refitted, project(train, [one.fit.V for one in refitted])):
        margin = margins(Z, one.fit.W, train.user.to(Z.device)).cpu()[~kept]
        share = share_right(margin, user[~kept], len(train.user_ids))
        accuracies.append(share.nanmean().item())
    return accuracies


# ------------------------------------------------------------------------------------------------
# What a personal fit has to beat: other people's mixtures, shuffled labels, what is one's own alone
# ------------------------------------------------------------------------------------------------


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
        others.append(
            Fitted(Setting(seed, None, 1), fit, new.W.float(), SHARED_OWN, new.deviations)
        )
        alone.append(each_alone(groups, V_ref, seed, device, fit.choice["common_spread"]))
    return score(others, groups) + alone


def other_mixtures(one):
    """The same basis with one mixture for all people, and with that of the person before.

    Nobody has anything of their own.
    """
    fit = one.fit._replace(deviations=None)
    mean = fit.W.mean(0)  # of the people seen, for the unseen as well
    everybody = fit._replace(W=mean.expand_as(fit.W))
    yield Fitted(one.setting, everybody, mean.expand_as(one.W_unseen), POPULATION)
    before = fit._replace(W=fit.W.roll(1, dims=0))
    yield Fitted(one.setting, before, one.W_unseen.roll(1, dims=0), ANOTHER)


def each_alone(groups, V_ref, seed, device, s):
    """A reward of each user's own, from their own pairs, with Bradley-Terry's spread s -> Cell.

    loss of user i = Eq. 11 for x @ r_i, r_i = unit * (c_i * head + s * u_i), plus the ridge of
    lore/fit/ridge_model.py over m_i. Only s is not their own: it is that of the seen users.
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
