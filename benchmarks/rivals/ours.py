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


class Population:
    """Groups, the reward model's head or None, and the seed of what is random in a fit."""

    def __init__(self, groups, head, seed):
        self.groups = groups
        self.head = head
        self.seed = seed
        self.few = groups.few_shot_train
        self.new = len(self.few.user_ids)
        self.d = groups.train.num_features

    def entry(self, name, fit, people, seconds, seconds_new, numbers, rank=None):
        unscored = fitted_cell(Setting(self.seed, None, name), fit, people)
        (cell,) = score_cells([unscored], self.groups)
        return Entry.of(cell, seconds, seconds_new / self.new, numbers, rank)

    def ridge_entry(self, name, fit, seconds, rank=None):
        """Of a solution of the ridge solver: a weight for each reward, and e_i where there is one."""
        people, seconds_new = timed(fit.new_people, self.few)
        numbers = fit.V.shape[1] if fit.V.shape[1] > 1 else 0
        if fit.deviations is not None:
            numbers += self.d
        return self.entry(name, fit, people, seconds, seconds_new, numbers, rank)

    def fit_ridge(self, K_list):
        return timed(fit_ridge, self.groups.train, K_list, self.head, self.seed)


def reference_head(groups, head, seed):
    if head is None:
        return {HEAD: "no head is used of these embeddings"}
    population = Population(groups, head, seed)
    ones = torch.ones(len(groups.train.user_ids), 1)
    fit = Fit(head.float(), ones, prior=Prior(ones[0], EVERYBODY))
    people = fit.new_people(population.few)
    return {HEAD: population.entry(HEAD, fit, people, 0.0, 0.0, 0)}


def published(groups, head, seed):
    """One fit at a time, so that each has seconds of its own."""
    population = Population(groups, head, seed)
    recipe = Recipe(LoRe, "cpu", STEPS, 0.1)
    entries = {}
    for name, K in (("Bradley-Terry, published", 1), ("LoRe, published", RANK)):
        fits, seconds = timed(fit_all, recipe, [Setting(seed, 0.0, K)], head, groups.train)
        Zs = project(population.few, [fits[0].V])
        draws = Draws(population.few.user, population.new)
        (people,), seconds_new = timed(personalise, recipe, fits, Zs, population.few, draws)
        numbers = K if K > 1 else 0
        entries[name] = population.entry(name, fits[0], people, seconds, seconds_new, numbers)
    return entries


def ridge(groups, head, seed):
    """Bradley-Terry, which is fitted on the way; rank RANK with something of one's own, and without."""
    population = Population(groups, head, seed)
    fits, seconds = population.fit_ridge([RANK])
    of_row = {COMMON: fits[1], OURS: fits[RANK], f"{OURS}, without own": without_deviations(fits[RANK])}
    return {name: population.ridge_entry(name, fit, seconds) for name, fit in of_row.items()}


def starred(groups, head, seed):
    """The rank among RANKS that held-out prompts prefer, marked as the scripts mark theirs."""
    population = Population(groups, head, seed)
    fits, seconds = population.fit_ridge(RANKS)
    cells = []
    for K, fit in fits.items():
        people = fit.new_people(population.few)
        cells.append(fitted_cell(Setting(seed, 0.0, K), fit, people)._replace(variant=LORE))
    (best,) = [cell for cell in mark_best_rank(cells, groups, refit=None) if cell.best]
    return {STARRED: population.ridge_entry(STARRED, best.fit, seconds, best.K)}


def own(groups, head, seed):
    """What is simpler: one reward for all and something of one's own, and each person by themselves."""
    population = Population(groups, head, seed)
    search = SharedSearch(groups.train, head, seed, "cpu", "pairs")
    of_row = {
        "shared + own": timed(lambda: search.shared_and_own(search.bradley_terry())),
        "each alone": timed(search.each_alone),
    }
    return {name: population.ridge_entry(name, *fitted) for name, fitted in of_row.items()}


METHODS = {
    "reference head": reference_head,
    "published": published,
    "ridge": ridge,
    "starred": starred,
    "own": own,
}  # name of a part: its function
