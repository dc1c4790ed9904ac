"""What the ridge solver chose, and the held-out gains that it chose by, as tables of text."""

import math
from itertools import chain

from lore.fit.evaluation import LORE
from lore.report.text_tables import Table, print_table


def print_ridge_choices(cells):
    """What the ridge solver chose, and the held-out gains that it chose by; nothing for others."""
    by_seed = {}
    for cell in cells:
        if cell.variant == LORE and cell.fit is not None and cell.fit.choice:
            by_seed.setdefault(cell.seed, {})[cell.K] = cell.fit.choice
    for seed, choices in by_seed.items():
        common = next(iter(choices.values()))  # what all ranks share
        path = []
        for s, loss in zip(common["common_spreads"], common["common_held_out_loss"]):
            path.append(f"{s:.2g}: {loss:.4f}")
        without = "" if common["head"] else ", without a reference head"
        print(f"ridge, seed {seed}: held-out loss of Bradley-Terry{without} {', '.join(path)}")
        print(f"chosen s = {common['common_spread']:.2g}")
        ranked = {K: choice for K, choice in choices.items() if "tried" in choice}
        if ranked:
            print("what more rewards than that one gain in log P of a held-out pair, ± std. error:")
            print_table(tried_table(ranked))
            print_table(rank_choices(ranked))
        if ranked and (1 in choices or any(choice["personal_spread"] for choice in ranked.values())):
            print("and what something of one's own beside them adds to that:")
            print_table(deviation_choices(choices))


def tried_table(choices):
    """The gain of each rank on the first fold, of each personal spread that was tried."""
    trials = chain.from_iterable(choice["tried"] for choice in choices.values())
    columns = sorted({trial["p"] for trial in trials}, reverse=True)
    lines = []
    for K, choice in choices.items():
        for has_head in (True, False):
            gains = {trial["p"]: trial["gain"] for trial in choice["tried"] if trial["head"] == has_head}
            if gains:
                texts = [gain_text(gains[p]) if p in gains else "" for p in columns]
                lines.append([str(K), "yes" if has_head else "no", *texts])
    return Table(["K", "head", *(f"p = {p:g}" for p in columns)], lines)


def rank_choices(choices):
    """What was chosen for each rank, and, where a smaller one is clearly better, which."""
    head = ["K", "by all folds", "chosen", "as new", "prior", "doubt"]
    lines = []
    notes = []
    for K, choice in choices.items():
        gain = gain_text(choice["gain"]) if "gain" in choice else ""
        lines.append([str(K), gain, *chosen_texts(choice)])
        if "smaller_rank" in choice:
            smaller = choice["smaller_rank"]
            more = gain_text(smaller["gain"])
            notes.append(f"K = {K} is clearly worse on held-out pairs than K = {smaller['K']}: {more}")
    return Table(head, lines, notes)


def deviation_choices(choices):
    """The gain of deviations beside Bradley-Terry and beside each rank that was found clear."""
    gains = {}
    for K, choice in choices.items():
        if K == 1 or choice.get("personal_spread"):
            gains[K] = choice["deviation_gain"]
    most = max(map(len, gains.values()))
    spreads = next(iter(choices.values()))["deviation_spreads"][:most]
    lines = []
    for K, of_rank in gains.items():
        texts = [*map(gain_text, of_rank)] + [""] * (most - len(of_rank))
        lines.append([str(K), *texts, f"o = {choices[K]['deviation_spread']:g}"])
    return Table(["K", *(f"o = {o:g}" for o in spreads), "chosen"], lines)


def chosen_texts(choice):
    """Spread, gain on seen people posing as new, strength of the prior, doubt."""
    doubt = f"{choice['doubt']:g}" if "doubt" in choice else ""
    if not choice["personal_spread"]:
        return ["1 and own" if choice["deviation_spread"] else "1 Bradley-Terry", "", "", doubt]
    strength = choice["strength"]
    prior = "everybody's" if math.isinf(float(strength)) else f"{strength} pairs"
    as_new = gain_text(choice["gain_as_new"][strength])
    without = "" if choice["rank_head"] else ", no head"
    return [f"p = {choice['personal_spread']:g}{without}", as_new, prior, doubt]


def gain_text(gain):
    mean, error = gain
    return f"{mean:+.4f} ±{error:.4f}"
