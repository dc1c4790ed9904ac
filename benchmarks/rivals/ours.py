"""LoRe and what is simpler, on one population: each method a function that gives {row: Entry}."""

import torch
from accuracy import without_deviations
from measure import timed

from lore.fit.evaluation import LORE, Setting, fitted_cell, score_cells
from lore.fit.few_shot import Draws
from lore.fit.mixtures import EVERYBODY, Fit, Prior
from lore.fit.product import project
from lore.fit.refits import mark_best_rank
from lore.fit.ridge import fit_ridge
from lore.fit.ridge_shared import SharedSearch
from lore.fit.sweeps import Recipe
from rivals import Entry
from utils import LoRe, fit_all, personalise

RANK = 5  # of LoRe, as in the paper
RANKS = [1, 2, 3, 5, 8, 12]  # among which the star of the scripts is
STEPS = 1000  # of the published fits
COMMON = "Bradley-Terry, ridge"
OURS = "LoRe, ridge"
STARRED = "LoRe, ridge, starred rank"
HEAD = "reference head"


def entry(name, groups, seed, fit, people, seconds, seconds_new, numbers, rank=None):
    """The Entry of a Fit and the Mixtures of the unseen people."""
    unscored = fitted_cell(Setting(seed, None, name), fit, people)
    (cell,) = score_cells([unscored], groups)
    return Entry.of(cell, seconds, seconds_new / len(people.W), numbers, rank)


def ridge_entry(name, groups, seed, fit, seconds, rank=None):
    """Of a solution of the ridge solver: a weight for each reward, and e_i where there is one."""
    people, seconds_new = timed(fit.new_people, groups.few_shot_train)
    numbers = fit.V.shape[1] if fit.V.shape[1] > 1 else 0
    if fit.deviations is not None:
        numbers += groups.train.num_features
    return entry(name, groups, seed, fit, people, seconds, seconds_new, numbers, rank)


def reference_head(groups, head, seed):
    if head is None:
        return {HEAD: "no head is used of these embeddings"}
    ones = torch.ones(len(groups.train.user_ids), 1)
    fit = Fit(head.float(), ones, prior=Prior(ones[0], EVERYBODY))
    people = fit.new_people(groups.few_shot_train)
    return {HEAD: entry(HEAD, groups, seed, fit, people, 0.0, 0.0, 0)}


def published(groups, head, seed):
    """One fit at a time, so that each has seconds of its own."""
    few = groups.few_shot_train
    recipe = Recipe(LoRe, "cpu", STEPS, 0.1)
    entries = {}
    for name, K in (("Bradley-Terry, published", 1), ("LoRe, published", RANK)):
        fits, seconds = timed(fit_all, recipe, [Setting(seed, 0.0, K)], head, groups.train)
        Zs = project(few, [fits[0].V])
        draws = Draws(few.user, len(few.user_ids))
        (people,), seconds_new = timed(personalise, recipe, fits, Zs, few, draws)
        numbers = K if K > 1 else 0
        entries[name] = entry(name, groups, seed, fits[0], people, seconds, seconds_new, numbers)
    return entries


def ridge(groups, head, seed):
    """Bradley-Terry, which is fitted on the way; rank RANK with something of one's own, and without."""
    fits, seconds = timed(fit_ridge, groups.train, [RANK], head, seed)
    of_row = {COMMON: fits[1], OURS: fits[RANK], f"{OURS}, without own": without_deviations(fits[RANK])}
    return {name: ridge_entry(name, groups, seed, fit, seconds) for name, fit in of_row.items()}


def starred(groups, head, seed):
    """The rank among RANKS that held-out prompts prefer, marked as the scripts mark theirs."""
    fits, seconds = timed(fit_ridge, groups.train, RANKS, head, seed)
    cells = []
    for K, fit in fits.items():
        people = fit.new_people(groups.few_shot_train)
        cells.append(fitted_cell(Setting(seed, 0.0, K), fit, people)._replace(variant=LORE))
    (best,) = [cell for cell in mark_best_rank(cells, groups, refit=None) if cell.best]
    return {STARRED: ridge_entry(STARRED, groups, seed, best.fit, seconds, best.K)}


def own(groups, head, seed):
    """What is simpler: one reward for all and something of one's own, and each person by themselves."""
    search = SharedSearch(groups.train, head, seed, "cpu", "pairs")
    of_row = {
        "shared + own": timed(lambda: search.shared_and_own(search.bradley_terry())),
        "each alone": timed(search.each_alone),
    }
    return {name: ridge_entry(name, groups, seed, *fitted) for name, fitted in of_row.items()}


METHODS = {
    "reference head": reference_head,
    "published": published,
    "ridge": ridge,
    "starred": starred,
    "own": own,
}  # name of a part: its function
