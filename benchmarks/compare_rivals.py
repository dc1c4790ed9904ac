"""Every rival on the same embeddings, people, splits and statistics as LoRe: tables, ranks and a picture.

    python benchmarks/compare_rivals.py                      planted people only
    python benchmarks/compare_rivals.py --shared FOLDER      also real people; --decoder MODEL for MT-Bench
                                                             (accuracy.py)
    python benchmarks/compare_rivals.py --only "arguments" --seeds 1      data sets whose name holds that

Writes: results/rivals.json and .png (accuracy of unseen people against seconds, one panel a data set)

Accuracies of planted people are planted. Each row is over --seeds populations or splits, each with fits of its own;
differences are to the ridge solver's Bradley-Terry. A rival that cannot take a data set says so in its row.
"""

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import accuracy
import numpy as np
import torch
from measure import HERE, Clock, flags, judge, load_module, timed
from rivals import mrm, pal, pref, rbd, vpl

from lore.common import InputError, require, start, written_whole
from lore.fit.evaluation import Cell, Setting, fitted_cell, score_cells
from lore.fit.few_shot import Draws
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import EVERYBODY, Fit, Prior
from lore.fit.product import project
from lore.fit.refits import each_alone
from lore.fit.ridge import fit_ridge, fit_shared_and_own
from lore.fit.sweeps import Recipe
from lore.report.statistics import paired_difference, summarise
from lore.report.text_tables import difference_text, print_aligned
from lore.settings import defaults_of
from utils import LoRe, fit_all, personalise

RANK = 5  # of LoRe, as in the paper
STEPS = 1000  # of the published fits
COMMON = "Bradley-Terry, ridge"
OURS = "LoRe, ridge"
HEAD = "reference head"
RIVALS = {
    "RBD": rbd.fit,
    "RBD, tuned ridge": partial(rbd.fit, person=rbd.TUNED),
    "PReF": pref.fit,
    "VPL": vpl.fit,
    "PAL-A": pal.fit,
}
MRM = ("MRM, last epoch", "MRM, best test epoch", "MRM, 20 steps of 0.1")
ORDER = ("LoRe, published", "Bradley-Terry, published", "VPL", "PAL-A")  # of the paper's Table 1
RESAMPLES = 2000  # of the data sets, for the interval of a mean rank


class Entry(NamedTuple):
    """How one method did on one population or split."""

    cell: object  # lore.fit.evaluation.Cell
    seconds: float  # to fit the seen people
    seconds_new: float  # to take in one person
    numbers: int  # stored per person


# ------------------------------------------------------------------------------------------------
# The methods
# ------------------------------------------------------------------------------------------------


def named(cell, name):
    return cell._replace(K=name, alpha=None)


class Ours:
    """LoRe and what is simpler, on one population."""

    def __init__(self, groups, head, seed):
        self.groups = groups
        self.head = head
        self.seed = seed
        self.few = groups.few_shot_train
        self.new = len(self.few.user_ids)
        self.d = groups.train.num_features

    def entries(self):
        """Yield (name, Entry)."""
        if self.head is not None:
            yield self.reference()
        yield self.published(1, "Bradley-Terry, published", 0)
        yield self.published(RANK, "LoRe, published", RANK)
        fits, seconds = timed(fit_ridge, self.groups.train, [RANK], self.head, self.seed)
        yield self.ridge(COMMON, fits[1], seconds, 0)
        yield self.ridge(OURS, fits[RANK], seconds, fits[RANK].V.shape[1])
        plain = accuracy.without_deviations(fits[RANK])
        yield self.ridge("LoRe, ridge, without own", plain, seconds, plain.V.shape[1])
        fit, seconds = timed(fit_shared_and_own, self.groups.train, self.head, self.seed)
        yield self.ridge("shared + own", fit, seconds, 0)
        yield self.alone(fit.choice["common_spread"])

    def entry(self, name, fit, people, seconds, seconds_new, numbers):
        unscored = fitted_cell(Setting(self.seed, None, name), fit, people)
        (cell,) = score_cells([unscored], self.groups)
        return name, Entry(cell, seconds, seconds_new / self.new, numbers)

    def reference(self):
        ones = torch.ones(len(self.groups.train.user_ids), 1)
        fit = Fit(self.head.float(), ones, prior=Prior(ones[0], EVERYBODY))
        return self.entry(HEAD, fit, fit.new_people(self.few), 0.0, 0.0, 0)

    def published(self, K, name, numbers):
        recipe = Recipe(LoRe, "cpu", STEPS, 0.1)
        settings = [Setting(self.seed, 0.0, K)]
        clock = Clock()
        fits = fit_all(recipe, settings, self.head, self.groups.train)
        seconds = clock()
        Zs = project(self.few, [fits[0].V])
        clock()
        (people,) = personalise(recipe, fits, Zs, self.few, Draws(self.few.user, self.new))
        return self.entry(name, fits[0], people, seconds, clock(), numbers)

    def ridge(self, name, fit, seconds, numbers):
        people, seconds_new = timed(fit.new_people, self.few)
        if fit.deviations is not None:
            numbers += self.d
        return self.entry(name, fit, people, seconds, seconds_new, numbers)

    def alone(self, spread):
        """Seen and unseen people are fitted alike, half of the seconds each."""
        cell, seconds = timed(each_alone, self.groups, self.head, self.seed, "cpu", spread)
        name = "each alone"
        return name, Entry(named(cell, name), seconds, seconds / 2 / self.new, self.d)


def rivals(groups, head, seed):
    """Yield (name, Rival, or the reason why there is none)."""
    for name, fit in RIVALS.items():
        try:
            yield name, fit(groups, head, seed)
        except InputError as error:
            yield name, str(error)
    try:
        yield from mrm.fits(groups, head, seed).items()
    except InputError as error:
        yield from dict.fromkeys(MRM, str(error)).items()


def of_rival(rival, name, groups, seed):
    margins = {group: LOGIT_SCALE * odds.float() for group, odds in rival.log_odds.items()}
    cell = Cell(seed, None, name).scored(margins, groups)
    return Entry(cell, rival.seconds, rival.seconds_new / len(groups.unseen.user_ids), rival.numbers)


def study(populations):
    """{name: [Entry, ..] or the reason why there are none}; populations: (Groups, head)s."""
    entries = {}
    reasons = {}
    for seed, (groups, head) in enumerate(populations):
        for name, entry in Ours(groups, head, seed).entries():
            entries.setdefault(name, []).append(entry)
        for name, rival in rivals(groups, head, seed):
            if isinstance(rival, str):
                reasons[name] = rival
            else:
                entries.setdefault(name, []).append(of_rival(rival, name, groups, seed))
    return entries | reasons


# ------------------------------------------------------------------------------------------------
# The data
# ------------------------------------------------------------------------------------------------


def planted_personal_llm(seed, a):
    people = load_module("PersonalLLM/people.py")
    sides = people.plant(defaults_of(people, seed=seed))
    return people.split(sides, a, 150, 150, 45, 9, seed), sides.head


def planted_prism(seed):
    people = load_module("PRISM/people.py")
    dialogues = people.plant(defaults_of(people, seed=seed))
    return people.split(dialogues), dialogues.comparisons.head


PLANTED = {
    "low rank": lambda seed: accuracy.planted(100, 50, 10, seed),
    "no differences": lambda seed: accuracy.planted(100, 50, 10, seed, personal=0.0),
    "wide, d = 512": lambda seed: accuracy.planted(100, 50, 10, seed, d=512),
    "few pairs": lambda seed: accuracy.planted(200, 5, 5, seed),
    "signed tastes": lambda seed: accuracy.planted(100, 50, 10, seed, signed=True),
    "PRISM's structure": planted_prism,
    "PersonalLLM, a = 0.001": lambda seed: planted_personal_llm(seed, 0.001),
    "PersonalLLM, a = 0.01": lambda seed: planted_personal_llm(seed, 0.01),
    "PersonalLLM, a = 0.1": lambda seed: planted_personal_llm(seed, 0.1),
}


def data_sets(args):
    """{name: seed -> (Groups, head)}"""
    makers = {f"planted: {name}": make for name, make in PLANTED.items()}
    if not args.shared:
        print("real people left out: no --shared")
        return makers
    encoder = args.encoder or accuracy.default_encoder()
    require(encoder, "--shared: a text encoder is needed; name it with --encoder")
    for name, real in accuracy.embedded(args.shared, encoder, args.decoder).items():
        if "busy" not in name:
            makers[name] = real.groups
    return makers


# ------------------------------------------------------------------------------------------------
# What is said
# ------------------------------------------------------------------------------------------------


def rows_of(entries):
    """A dict per method, the best on unseen people first; those without a fit last."""
    rows = []
    for name, by_seed in entries.items():
        if isinstance(by_seed, str):
            rows.append({"name": name, "reason": by_seed, "unseen": -1.0})
            continue
        (row,) = summarise(cells_of(entries, name))
        row |= {"name": name, "over_common": difference(entries, name, COMMON)}
        row["seconds"] = float(np.mean([entry.seconds for entry in by_seed]))
        row["milliseconds_new"] = 1000 * float(np.mean([entry.seconds_new for entry in by_seed]))
        row["numbers"] = by_seed[0].numbers
        rows.append(row)
    return sorted(rows, key=lambda row: -row["unseen"])


def cells_of(entries, name):
    return [named(entry.cell, name) for entry in entries[name]]


def difference(entries, name, other_name):
    """[mean, low, high] on unseen people."""
    return paired_difference(cells_of(entries, name), cells_of(entries, other_name), "unseen")


def print_rows(data_set, rows):
    columns = ["seen", "unseen", f"over {COMMON}", "log-loss", "s to fit", "ms a person", "numbers"]
    lines = [[data_set, *columns]]
    reasons = []
    for row in rows:
        texts = [""] * len(columns)
        if "reason" in row:
            reasons.append(f"{row['name']}: {row['reason']}")
        else:
            texts = row_texts(row)
        lines.append([row["name"], *texts])
    print_aligned(lines)
    for reason in reasons:
        print(reason)
    print(flush=True)


def row_texts(row):
    texts = []
    for group in ("seen", "unseen"):
        low, high = row[f"{group}_interval"]
        texts.append(f"{100 * row[group]:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
    texts.append(difference_text(row["over_common"]))
    texts.append("-" if row["name"] == HEAD else f"{row['unseen_log_loss']:.3f}")
    texts.append(f"{row['seconds']:.1f}")
    texts.append(f"{row['milliseconds_new']:.1f}")
    return [*texts, str(row["numbers"])]


def mean_ranks(tables):
    """{name: [mean, low, high]} of the ranks in all tables, those without a fit last; drawn over tables."""
    by_name = {}
    for rows in tables.values():
        for name, rank in ranks_of(rows).items():
            by_name.setdefault(name, []).append(rank)
    ranks = np.array([*by_name.values()]).T  # (tables, methods)
    drawn = np.random.default_rng(0).integers(len(ranks), size=(RESAMPLES, len(ranks)))
    means = ranks[drawn].mean(1)  # (RESAMPLES, methods)
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    return dict(zip(by_name, np.stack([ranks.mean(0), low, high], axis=1).tolist()))


def ranks_of(rows):
    """{name: rank}; 1 = best on unseen people; equal ones share a mean rank."""
    scores = {row["name"]: round(row["unseen"], 6) for row in rows if row["name"] != HEAD}
    ranks = {}
    for name, score in scores.items():
        above = sum(higher > score for higher in scores.values())
        equal = sum(same == score for same in scores.values())
        ranks[name] = above + (equal + 1) / 2
    return ranks


def significantly_below(studies):
    """(data set, rival) where OURS is below a rival of the literature, its interval without zero."""
    below = []
    for data_set, entries in studies.items():
        for name in (*RIVALS, *MRM):
            if not isinstance(entries[name], str):
                mean, _, high = difference(entries, OURS, name)
                if high < 0:
                    below.append(f"{data_set}: {name}, {100 * mean:+.1f}")
    return below


def plot(path, tables):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(5, len(tables))
    count = -(-len(tables) // columns)
    size = (4 * columns + 1, 3.2 * count + 1.2)
    figure, panels = plt.subplots(count, columns, figsize=size, squeeze=False)
    names = {row["name"] for row in next(iter(tables.values()))}
    colours = dict(zip(sorted(names - {HEAD}), plt.get_cmap("tab20").colors))
    for panel, (data_set, rows) in zip(panels.flat, tables.items()):
        for row in rows:
            if "reason" not in row and row["name"] != HEAD:
                low, high = row["unseen_interval"]
                bars = [[100 * (row["unseen"] - low)], [100 * (high - row["unseen"])]]
                panel.errorbar(
                    max(row["seconds"], 0.01), 100 * row["unseen"], bars, fmt="o", ms=5, lw=0.8,
                    color=colours[row["name"]], label=row["name"],
                )  # fmt: skip
        panel.set_xscale("log")
        panel.set_title(data_set, fontsize=10)
    for panel in panels.flat[len(tables) :]:
        panel.axis("off")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, fontsize=8)
    figure.supxlabel("seconds to fit", y=0.08, fontsize=9)
    figure.supylabel("accuracy on unseen people, percent", fontsize=9)
    figure.tight_layout(rect=(0.02, 0.1, 1, 1))
    with written_whole(path) as file:
        figure.savefig(file, format="png", dpi=130)


def judge_order(data_set, rows):
    """Whether published LoRe is above the others of the paper's Table 1."""
    unseen = {row["name"]: row["unseen"] for row in rows}
    accuracies = [unseen[name] for name in ORDER]
    told = ", ".join(f"{name} {100 * unseen[name]:.1f}" for name in ORDER)
    what = f"{data_set}: LoRe above the others, as in the paper ({told})"
    judge(what, accuracies[0] == max(accuracies))


def main():
    parser = flags(__doc__)
    parser.add_argument("--shared", type=Path, help="folder whose data/ holds the real comparisons")
    parser.add_argument("--encoder", help="a text encoder")
    parser.add_argument("--decoder", help="a decoder, for MT-Bench")
    parser.add_argument("--seeds", type=int, default=2, help="populations or splits of a data set")
    parser.add_argument("--only", default="", help="data sets whose name holds this")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()
    clock = Clock()
    studies = {}
    tables = {}
    for name, make in data_sets(args).items():
        if args.only in name:
            studies[name] = study([make(seed) for seed in range(args.seeds)])
            tables[name] = rows_of(studies[name])
            print_rows(name, tables[name])
    require(tables, f"--only {args.only}: no data set has that in its name")
    ranks = mean_ranks(tables)
    names = sorted(ranks, key=lambda name: ranks[name][0])
    lines = [["mean place over the data sets", ""]]
    lines += [[name, "{:.1f} [{:.1f}, {:.1f}]".format(*ranks[name])] for name in names]
    print_aligned(lines)
    args.results.mkdir(parents=True, exist_ok=True)
    with written_whole(args.results / "rivals.json") as file:
        file.write_text(json.dumps({"tables": tables, "ranks": ranks}, indent=1))
    plot(args.results / "rivals.png", tables)
    for name, rows in tables.items():
        if "PersonalLLM" in name:
            judge_order(name, rows)
    below = significantly_below(studies)
    judge(f"{OURS} is significantly below no rival ({'; '.join(below) or 'none'})", not below)
    judge(f"{OURS} has the best mean place ({names[0]})", names[0] == OURS)
    minutes = clock() / 60
    judge(f"whole study {minutes:.0f} minutes, target 60", minutes < 60)


if __name__ == "__main__":
    start(main)
