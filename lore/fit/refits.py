"""What a sweep is fitted once more for: the rank that held-out prompts speak for, and what a personal
fit has to beat."""

import math

import torch

from lore.fit import evaluation
from lore.fit.evaluation import LORE, Setting, fitted_cell, score_cells, share_right
from lore.fit.likelihood import margins
from lore.fit.product import project
from lore.fit.ridge_shared import SharedSearch

HELD_OUT = 4  # one prompt in so many
CROSS_VALIDATED = "cross-validated"  # in place of the rank, where it is chosen anew in each split


# ------------------------------------------------------------------------------------------------
# The rank that held-out prompts speak for. Test pairs are never looked at
# ------------------------------------------------------------------------------------------------


def mark_best_rank(cells, groups, refit):
    """The same cells, those of the fits marked as `best` or not: one rank of each seed and alpha is.

    refit(settings, train, few_shot_train) fits the same settings to fewer pairs -> [Cell].
    """
    fits = {cell.setting: cell.fit for cell in cells if cell.variant == LORE}
    sweeps = {}
    for setting in sorted(fits):
        sweeps.setdefault((setting.seed, setting.alpha), []).append(setting)
    gains = {}  # on held-out prompts, of each setting
    to_refit = {}  # of each seed, which holds the same prompts out for all
    for (seed, _), settings in sweeps.items():
        choices = {setting: fits[setting].choice for setting in settings if fits[setting].choice}
        for setting, choice in choices.items():  # the ridge solver has held prompts out already
            gains[setting] = choice["held_out_gain"]
        if not choices and len(settings) > 1:
            to_refit.setdefault(seed, []).extend(settings)
    for seed, settings in to_refit.items():
        gains |= zip(settings, held_out_accuracies(seed, settings, groups, refit))
    best = set()
    for settings in sweeps.values():  # of equal ones the smallest
        best.add(max(settings, key=lambda setting: gains.get(setting, -math.inf)))
    marked = []
    for cell in cells:
        if cell.variant == LORE:
            said = {"best": cell.setting in best, "held_out": gains.get(cell.setting)}
            cell = cell._replace(**said)
        marked.append(cell)
    return marked


def cross_validated(cells):
    """Of each seed and alpha the fit whose rank, of those above 1, held-out prompts speak for.

    All are called K = CROSS_VALIDATED, so that they are summed up as the paper does. Of equal ranks
    the first counts; nothing where held-out prompts were not asked.
    """
    best = {}
    for cell in cells:
        if cell.variant == LORE and cell.K not in (0, 1, "best") and cell.held_out is not None:
            key = (cell.seed, cell.alpha)
            if key not in best or cell.held_out > best[key].held_out:
                best[key] = cell
    return [cell._replace(K=CROSS_VALIDATED) for cell in best.values()]


def held_out_accuracies(seed, settings, groups, refit):
    """What each setting reaches on one prompt in HELD_OUT of the seen people's training pairs when it
    is fitted to the rest; the mean over users of Eq. 15."""
    train = groups.train
    prompt = train.prompts()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(int(prompt.max()) + 1, generator=generator)
    user = train.user.cpu()
    fitted = order[prompt] % HELD_OUT > 0
    has_some = torch.zeros(len(train.user_ids), dtype=torch.bool)
    has_some[user[fitted]] = True
    fitted |= ~has_some[user]  # who would have nothing to be fitted to keeps all
    fits = [cell.fit for cell in refit(settings, train.subset(fitted), groups.few_shot_train)]
    accuracies = []
    for fit, Z in zip(fits, project(train, [fit.V for fit in fits])):
        margin = margins(Z, fit.W, train.user.to(Z.device)).cpu()[~fitted]
        share = share_right(margin, user[~fitted], len(train.user_ids))
        accuracies.append(share.nanmean().item())
    return accuracies


# ------------------------------------------------------------------------------------------------
# What a personal fit has to beat: other people's mixtures, shuffled labels, what is one's own alone
# ------------------------------------------------------------------------------------------------


def baseline_cells(cells, groups, V_ref, device, weigh, refit):
    """Cells of all baselines of some fitted cells.

    refit(settings, train, few_shot_train) fits the same settings to other labels -> [Cell].
    """
    baselines = []
    for cell in cells:
        if cell.K > 1:
            baselines += with_other_mixtures(cell)
    for seed in dict.fromkeys(cell.seed for cell in cells):
        settings = [cell.setting for cell in cells if cell.seed == seed and cell.K > 0]
        if settings:
            shuffled = groups.train.shuffled(seed), groups.few_shot_train.shuffled(seed)
            for cell in refit(settings, *shuffled):
                baselines.append(cell._replace(variant=evaluation.SHUFFLED))
        search = SharedSearch(groups.train, V_ref, seed, device, weigh)
        fits = {
            evaluation.SHARED_OWN: (1, search.shared_and_own(search.bradley_terry())),
            evaluation.ALONE: ("alone", search.each_alone()),
        }
        for variant, (K, fit) in fits.items():
            cell = fitted_cell(Setting(seed, None, K), fit, fit.new_people(groups.few_shot_train))
            baselines.append(cell._replace(variant=variant))
    return score_cells(baselines, groups)


def with_other_mixtures(cell):
    """The same basis with one mixture for all people, and with that of the person before.

    Nobody deviates from it.
    """
    fit = cell.fit._replace(deviations=None, prior=None)  # nothing is unsure of these
    mean = fit.W.mean(0)  # of the people seen, for the unseen as well
    mixtures = {
        evaluation.POPULATION: lambda W: mean.expand_as(W),
        evaluation.ANOTHER: lambda W: W.roll(1, dims=0),
    }
    for variant, of in mixtures.items():
        mixed = cell._replace(variant=variant, deviations_unseen=None)
        yield mixed._replace(fit=fit._replace(W=of(fit.W)), W_unseen=of(cell.W_unseen))
