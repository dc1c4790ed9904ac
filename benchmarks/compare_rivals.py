"""Every rival on the same embeddings, people, splits and statistics as LoRe: tables, ranks and a picture.

    python benchmarks/compare_rivals.py                           planted people only
    python benchmarks/compare_rivals.py --shared FOLDER           also real people; --decoder MODEL for MT-Bench (accuracy.py)
    python benchmarks/compare_rivals.py --only "arguments" --seeds 1      data sets whose name holds that

Writes: results/rivals.json and .png (accuracy of unseen people against seconds, one panel a data set)

Accuracies of planted people are planted. Each row is over --seeds populations or splits, each with fits of its own;
differences are to the ridge solver's Bradley-Terry. A rival that cannot take a data set says so in its row.
"""

import argparse
import importlib.util
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import accuracy
import numpy as np
import torch
from rivals import Rival, mrm, pal, pref, rbd, vpl

from lore.common import InputError, start, written_whole
from lore.fit.evaluation import Cell, Setting, fitted_cell, score_cells
from lore.fit.few_shot import Draws
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import EVERYBODY, Fit, Prior
from lore.fit.product import project
from lore.fit.refits import each_alone
from lore.fit.ridge import fit_ridge, fit_shared_and_own
from lore.fit.sweeps import Recipe
from lore.report.statistics import paired_difference, summarise
from lore.report.text_tables import print_aligned
from lore.settings import defaults_of
from utils import fit_all, personalise

RANK = 5  # of LoRe, as in the paper
COMMON = "Bradley-Terry, ridge"
OURS = "LoRe, ridge"
RIVALS = {"RBD": rbd.fit, "RBD, tuned ridge": partial(rbd.fit, person=rbd.TUNED)}
RIVALS |= {"PReF": pref.fit, "VPL": vpl.fit, "PAL-A": pal.fit}
MRM = ("MRM, last epoch", "MRM, best test epoch", "MRM, 20 steps of 0.1")
ORDER = ("LoRe, published", "Bradley-Terry, published", "VPL", "PAL-A")  # of the paper's Table 1
RESAMPLES = 2000  # of the data sets, for the interval of a mean rank


class Entry(NamedTuple):
    """How one method did on one population or split."""

    cell: object
    seconds: float
    seconds_new: float  # to take in one person
    numbers: int  # stored per person


# ------------------------------------------------------------------------------------------------
# The methods
# ------------------------------------------------------------------------------------------------


def timed(work):
    begin = time.perf_counter()
    found = work()
    return found, time.perf_counter() - begin


def named(cell, name):
    return cell._replace(K=name, alpha=None)


def ours(groups, head, seed):
    """Yield (name, Entry) of LoRe and what is simpler."""
    few = groups.few_shot_train
    C = len(few.user_ids)

    def entry(name, fit, people, seconds, seconds_new, numbers):
        (cell,) = score_cells([fitted_cell(Setting(seed, None, name), fit, people)], groups)
        return name, Entry(cell, seconds, seconds_new / C, numbers)

    if head is not None:
        ones = torch.ones(len(groups.train.user_ids), 1)
        fit = Fit(head.float(), ones, prior=Prior(ones[0], EVERYBODY))
        yield entry("reference head", fit, fit.new_people(few), 0.0, 0.0, 0)
    for K, name in ((1, "Bradley-Terry, published"), (RANK, "LoRe, published")):
        recipe = Recipe(accuracy.LoRe, "cpu", 1000, 0.1)
        make = lambda K=K, recipe=recipe: fit_all(
            recipe, [Setting(seed, 0.0, K)], head, groups.train
        )
        (fit,), seconds = timed(make)
        Zs = project(few, [fit.V])
        work = lambda r=recipe, f=fit, Z=Zs: personalise(r, [f], Z, few, Draws(few.user, C))
        (people,), seconds_new = timed(work)
        yield entry(name, fit, people, seconds, seconds_new, K if K > 1 else 0)
    fits, seconds = timed(lambda: fit_ridge(groups.train, [RANK], head, seed))
    for K, name in ((1, COMMON), (RANK, OURS)):
        people, seconds_new = timed(lambda fit=fits[K]: fit.new_people(few))
        numbers = fits[K].V.shape[1] if K > 1 else 0
        numbers += groups.train.num_features if fits[K].deviations is not None else 0
        yield entry(name, fits[K], people, seconds, seconds_new, numbers)
    plain = fits[RANK]._replace(
        deviations=None, prior=fits[RANK].prior._replace(deviation_spread=0.0)
    )
    people, seconds_new = timed(lambda: plain.new_people(few))
    yield entry("LoRe, ridge, without own", plain, people, seconds, seconds_new, plain.V.shape[1])
    fit, seconds = timed(lambda: fit_shared_and_own(groups.train, head, seed))
    people, seconds_new = timed(lambda: fit.new_people(few))
    d = groups.train.num_features
    yield entry(
        "shared + own", fit, people, seconds, seconds_new, d if fit.deviations is not None else 0
    )
    s = fit.choice["common_spread"]
    cell, seconds = timed(lambda: each_alone(groups, head, seed, "cpu", s))
    yield "each alone", Entry(named(cell, "each alone"), seconds, seconds / 2 / C, d)


def rivals(groups, head, seed):
    """Yield (name, Entry, or the reason why there is none)."""
    C = len(groups.unseen.user_ids)
    for name, fit in RIVALS.items():
        try:
            found = {name: fit(groups, head, seed)}
        except InputError as error:
            found = {name: str(error)}
        for each, rival in found.items():
            yield each, of_rival(rival, each, groups, seed, C)
    try:
        found = mrm.fits(groups, head, seed)
    except InputError as error:
        found = dict.fromkeys(MRM, str(error))
    for name, rival in found.items():
        yield name, of_rival(rival, name, groups, seed, C)


def of_rival(rival, name, groups, seed, C):
    if not isinstance(rival, Rival):
        return rival
    margins = {}
    for group, log_odds in rival.log_odds.items():
        margins[group] = LOGIT_SCALE * log_odds.float()
    cell = Cell(seed, None, name).scored(margins, groups)
    return Entry(cell, rival.seconds, rival.seconds_new / C, rival.numbers)


def study(populations):
    """{name: [Entry, ..] or the reason why there are none}; populations: (Groups, head)s."""
    entries = {}
    for seed, (groups, head) in enumerate(populations):
        for ways in (ours, rivals):
            for name, entry in ways(groups, head, seed):
                if isinstance(entry, str) or isinstance(entries.get(name), str):
                    entries[name] = entry if isinstance(entry, str) else entries[name]
                else:
                    entries.setdefault(name, []).append(entry)
    return entries


# ------------------------------------------------------------------------------------------------
# The data
# ------------------------------------------------------------------------------------------------


def folder_module(folder):
    """people.py of a data set, under a name of its own."""
    spec = importlib.util.spec_from_file_location(
        f"people_of_{folder}", HERE.parent / folder / "people.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def planted_personal_llm(seed, a):
    people = folder_module("PersonalLLM")
    sides = people.plant(defaults_of(people, seed=seed))
    return people.split(sides, a, 150, 150, 45, 9, seed), sides.head


def planted_prism(seed):
    people = folder_module("PRISM")
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
    """{name: list of (Groups, head)s, made when they are asked for}."""
    found = {}
    for name, make in PLANTED.items():
        found[f"planted: {name}"] = lambda make=make: [make(seed) for seed in range(args.seeds)]
    if not args.shared:
        print("real people left out: no --shared")
        return found
    encoder = args.encoder or accuracy.default_encoder()
    if not encoder:
        raise InputError("--shared: a text encoder is needed; name it with --encoder")
    tables = accuracy.embedded(args.shared, encoder, args.decoder)
    for name, (split, key, least, few) in tables.items():
        if "busy" not in name:
            parts = (split, key, least, few)
            found[name] = lambda parts=parts: [
                accuracy.halves(*parts, seed) for seed in range(args.seeds)
            ]
    return found


# ------------------------------------------------------------------------------------------------
# What is said
# ------------------------------------------------------------------------------------------------


def rows_of(entries):
    """A dict per method, the best on unseen people first; those without a fit last."""
    rows = []
    common = [entry.cell for entry in entries[COMMON]]
    for name, found in entries.items():
        if isinstance(found, str):
            rows.append({"name": name, "reason": found, "unseen": -1.0})
            continue
        cells = [named(entry.cell, name) for entry in found]
        (row,) = summarise(cells)
        row |= {"name": name, "over_common": paired_difference(cells, common, "unseen")}
        row["seconds"] = float(np.mean([entry.seconds for entry in found]))
        row["milliseconds_new"] = 1000 * float(np.mean([entry.seconds_new for entry in found]))
        row["numbers"] = found[0].numbers
        rows.append(row)
    return sorted(rows, key=lambda row: -row["unseen"])


def print_rows(name, rows):
    lines = [
        [name, "seen", "unseen", f"over {COMMON}", "log-loss", "s to fit", "ms a person", "numbers"]
    ]
    for row in rows:
        if "reason" in row:
            lines.append([row["name"], *[""] * 7])
            continue
        cells = []
        for group in ("seen", "unseen"):
            low, high = row[f"{group}_interval"]
            cells.append(f"{100 * row[group]:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        cells.append("{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * np.array(row["over_common"]))))
        loss = "-" if row["name"] == "reference head" else f"{row['unseen_log_loss']:.3f}"
        cells += [
            loss,
            f"{row['seconds']:.1f}",
            f"{row['milliseconds_new']:.1f}",
            str(row["numbers"]),
        ]
        lines.append([row["name"], *cells])
    print_aligned(lines)
    for row in rows:
        if "reason" in row:
            print(f"{row['name']}: {row['reason']}")
    print(flush=True)


def mean_ranks(tables):
    """{name: [mean, low, high]} of the places in all tables, those without a fit last; drawn over tables."""
    names = [row["name"] for row in next(iter(tables.values())) if row["name"] != "reference head"]
    places = np.array([[place_of(name, rows) for name in names] for rows in tables.values()])
    drawn = np.random.default_rng(0).integers(len(places), size=(RESAMPLES, len(places)))
    means = places[drawn].mean(1)  # (RESAMPLES, methods)
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    return {name: [*found] for name, *found in zip(names, places.mean(0), low, high)}


def place_of(name, rows):
    """1 = best on unseen people; equal ones share a mean place."""
    scores = {
        row["name"]: round(row["unseen"], 6) for row in rows if row["name"] != "reference head"
    }
    above = sum(score > scores[name] for score in scores.values())
    equal = sum(score == scores[name] for score in scores.values())
    return above + (equal + 1) / 2


def significantly_below(tables):
    """(data set, rival) where OURS is below a rival of the literature, its interval without zero."""
    found = []
    for data, entries in tables.items():
        own = [named(entry.cell, OURS) for entry in entries[OURS]]
        for name in (*RIVALS, *MRM):
            if isinstance(entries[name], str):
                continue
            rival = [named(entry.cell, name) for entry in entries[name]]
            mean, _, high = paired_difference(own, rival, "unseen")
            if high < 0:
                found.append(f"{data}: {name}, {100 * mean:+.1f}")
    return found


def plot(path, tables):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(5, len(tables))
    count = -(-len(tables) // columns)
    figure, panels = plt.subplots(
        count, columns, figsize=(4 * columns + 1, 3.2 * count + 1.2), squeeze=False
    )
    names = sorted({row["name"] for rows in tables.values() for row in rows} - {"reference head"})
    colours = dict(zip(names, plt.get_cmap("tab20").colors))
    for panel, (data, rows) in zip(panels.flat, tables.items()):
        for row in rows:
            if "reason" not in row and row["name"] != "reference head":
                low, high = row["unseen_interval"]
                size = [[100 * (row["unseen"] - low)], [100 * (high - row["unseen"])]]
                panel.errorbar(
                    max(row["seconds"], 0.01), 100 * row["unseen"], size, fmt="o", ms=5, lw=0.8,
                    color=colours[row["name"]], label=row["name"],
                )  # fmt: skip
        panel.set_xscale("log")
        panel.set_title(data, fontsize=10)
    for panel in panels.flat[len(tables) :]:
        panel.axis("off")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, fontsize=8)
    figure.supxlabel("seconds to fit", y=0.08, fontsize=9)
    figure.supylabel("accuracy on unseen people, percent", fontsize=9)
    figure.tight_layout(rect=(0.02, 0.1, 1, 1))
    with written_whole(path) as file:
        figure.savefig(file, format="png", dpi=130)


def verdict(text, reached):
    print(f"{text}: {'reached' if reached else 'MISSED'}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, help="folder whose data/ holds the real comparisons")
    parser.add_argument("--encoder", help="a text encoder")
    parser.add_argument("--decoder", help="a decoder, for MT-Bench")
    parser.add_argument(
        "--seeds", type=int, default=2, help="populations or splits of each data set"
    )
    parser.add_argument("--only", default="", help="data sets whose name holds this")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    args = parser.parse_args()
    begin = time.perf_counter()
    entries, tables = {}, {}
    for name, make in data_sets(args).items():
        if args.only in name:
            entries[name] = study(make())
            tables[name] = rows_of(entries[name])
            print_rows(name, tables[name])
    if not tables:
        raise InputError(f"--only {args.only}: no data set has that in its name")
    ranks = mean_ranks(tables)
    lines = [["mean place over the data sets", ""]]
    for name, (mean, low, high) in sorted(ranks.items(), key=lambda item: item[1][0]):
        lines.append([name, f"{mean:.1f} [{low:.1f}, {high:.1f}]"])
    print_aligned(lines)
    args.results.mkdir(parents=True, exist_ok=True)
    with written_whole(args.results / "rivals.json") as file:
        file.write_text(json.dumps({"tables": tables, "ranks": ranks}, indent=1))
    plot(args.results / "rivals.png", tables)
    below = significantly_below(entries)
    for name, rows in tables.items():
        if "PersonalLLM" in name:
            places = {row["name"]: row["unseen"] for row in rows}
            accuracies = [places[method] for method in ORDER]
            told = ", ".join(f"{method} {100 * places[method]:.1f}" for method in ORDER)
            verdict(
                f"{name}: LoRe above the others, as in the paper ({told})",
                accuracies[0] == max(accuracies),
            )
    verdict(f"{OURS} is significantly below no rival ({'; '.join(below) or 'none'})", not below)
    first = min(ranks, key=lambda name: ranks[name][0])
    verdict(f"{OURS} has the best mean place ({first})", first == OURS)
    minutes = (time.perf_counter() - begin) / 60
    verdict(f"whole study {minutes:.0f} minutes, target 60", minutes < 60)


if __name__ == "__main__":
    start(main)
