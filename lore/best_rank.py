"""Which rank of a sweep held-out prompts speak for. Test pairs are never looked at."""

import torch

from lore.evaluation import LORE, share_right
from lore.likelihood import margins
from lore.product import project

HELD_OUT = 4  # one prompt in so many


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
