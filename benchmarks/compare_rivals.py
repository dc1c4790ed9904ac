"""Every rival on the same embeddings, people, splits and statistics as LoRe: tables, places and a picture.

    python benchmarks/compare_rivals.py                      planted people only
    python benchmarks/compare_rivals.py --shared FOLDER      also real people; --decoder MODEL for MT-Bench
                                                             (accuracy.py)
    python benchmarks/compare_rivals.py --prepared           the paper's data sets as prepare.py has left them, split
                                                             as in the paper (docs/reproduce.md)
    python benchmarks/compare_rivals.py --sets arguments "low rank" --seeds 1     data sets whose name holds one of them
    python benchmarks/compare_rivals.py --method module:function      with a method of your own (docs/rivals.md)
    python benchmarks/compare_rivals.py --export FOLDER               the populations and splits alone, for other code

Writes: results/rivals.json (settings, versions, commit, a row per data set and method, mean places), rivals.md (the
table of docs/rivals.md), rivals.png (accuracy of unseen people against seconds, one panel a data set), and
rivals.parts, from which a run that was interrupted goes on: what a method made of a population, as long as the data
and the method's source are the same. Seconds are those of when a part was made. Your own method is run each time.

Accuracies of planted people are planted. Each row is over --seeds populations or splits, each with fits of its own;
differences are to the ridge solver's Bradley-Terry. A rival that cannot take a data set says so in its row.
"""

import sys
from functools import partial
from pathlib import Path

from measure import HERE, ROOT, Clock, flags, judge
from rivals import entry_of, mrm, ours, own_method, pal, parts, pref, rbd, vpl
from rivals.data_sets import data_sets
from rivals.ours import OURS, STARRED
from rivals.overview import as_markdown, difference, overview, places_by_kind, plot, print_rows, rows_of
from rivals.splits_on_disk import file_name, save_population

from lore.common import InputError, require, require_writable, start, written_whole
from lore.report.results import save_results
from lore.report.text_tables import print_aligned

RIVALS = {
    "RBD": rbd.fit,
    "RBD, tuned ridge": partial(rbd.fit, person=rbd.TUNED),
    "PReF": pref.fit,
    "VPL": vpl.fit,
    "PAL-A": pal.fit,
}
MRM = ("MRM, last epoch", "MRM, best test epoch", "MRM, 20 steps of 0.1")
SOURCES = ("benchmarks/rivals/__init__.py",)  # of every method
RIVAL_SOURCES = [f"benchmarks/rivals/{name}.py" for name in ("mrm", "pal", "pref", "rbd", "vpl")]
OUR_SOURCES = ("benchmarks/rivals/ours.py", "lore/fit", "utils.py")


def of_rival(rows, fit, groups, head, seed):
    """{row: Entry, or the reason why there is none}; fit: (groups, head, seed) -> Rival, or one of each row."""
    try:
        made = fit(groups, head, seed)
    except InputError as error:
        return dict.fromkeys(rows, str(error))
    by_row = made if isinstance(made, dict) else dict.fromkeys(rows, made)
    return {row: entry_of(rival, row, groups, seed) for row, rival in by_row.items()}


def methods():
    """{part: what fits its rows, (groups, head, seed) -> {row: Entry or reason}; hash of the sources}"""
    source = parts.digest_of_sources([*SOURCES, *OUR_SOURCES])
    made_of = {name: (entries, source) for name, entries in ours.METHODS.items()}
    source = parts.digest_of_sources([*SOURCES, *RIVAL_SOURCES])
    for name, fit in RIVALS.items():
        made_of[name] = (partial(of_rival, [name], fit), source)
    made_of["MRM"] = (partial(of_rival, MRM, mrm.fits), source)
    return made_of


def study(name, make, args, made_of):
    """{row: [Entry, ..] or the reason why there are none} of a data set; make: seed -> (Groups, head).

    What is among the parts already is not fitted again. made_of: methods(), as they were when the study began
    """
    by_row = {}
    for seed in range(args.seeds):
        print(f"{name}: population or split {seed + 1} of {args.seeds}", file=sys.stderr, flush=True)
        groups, head = make(seed)
        data = parts.digest_of_data(groups, head)
        entries = {}
        for part, (fit, source) in made_of.items():
            path = parts.part_path(args.output.with_suffix(".parts"), part, seed, data, source)
            if not path.exists():
                parts.save_part(path, fit(groups, head, seed))
            entries |= parts.load_part(path, groups)
        for method in dict.fromkeys(args.method):
            entries |= own_method.entries(method, groups, head, seed)
        for row, entry in entries.items():
            by_row.setdefault(row, []).append(entry)
    for row, entries in by_row.items():
        reasons = [entry for entry in entries if isinstance(entry, str)]
        by_row[row] = reasons[-1] if reasons else entries
    return by_row


def export(folder, made, seeds):
    for name, data_set in made.items():
        for seed in range(seeds):
            path = folder / file_name(name, seed)
            save_population(path, *data_set.make(seed), data_set=name, seed=seed)
            print(f"{path}.safetensors, .parquet: {name}")


def judge_below(studies, method):
    """Say which rivals of the literature a method is below on some data set, its interval without zero."""
    below = []
    for data_set, entries in studies.items():
        for name in (*RIVALS, *MRM):
            if not isinstance(entries[name], str):
                mean, _, high = difference(entries, method, name)
                if high < 0:
                    below.append(f"{data_set}: {name}, {100 * mean:+.1f}")
    judge(f"{method} is significantly below no rival ({'; '.join(below) or 'none'})", not below)


def described_rows(tables, made, seeds):
    """All rows, each with the data set it is of."""
    rows = []
    for name, of_set in tables.items():
        about = {"data_set": name, "planted": made[name].planted, "populations": seeds}
        if not about["planted"]:  # what benchmarks/paper.py asks for
            groups, _ = made[name].make(0)
            about |= {"model": made[name].model, "people": [*groups.sizes]}
        rows += [about | row for row in of_set]
    return rows


def arguments():
    parser = flags(__doc__, seeds=2)
    parser.set_defaults(script="benchmarks/compare_rivals.py")  # so that results say what wrote them
    add = parser.add_argument
    add("--shared", type=Path, help="folder whose data/ holds the real comparisons")
    whose = "only what is prepared in FOLDER/RedditTLDR/data and its like [this repository]"
    add("--prepared", type=Path, nargs="?", const=ROOT, metavar="FOLDER", help=whose)
    add("--encoder", help="a text encoder")
    add("--decoder", help="a decoder with a head, which is not used, for MT-Bench")
    several = {"action": "extend", "nargs": "+", "default": []}
    add("--sets", **several, help="only data sets whose name has this")
    add("--output", type=Path, default=HERE / "results/rivals.json", help="FILE.json")
    add("--method", **several, help="module:function of your own")
    add("--export", type=Path, help="folder for the populations; nothing is fitted then")
    args = parser.parse_args()
    require(args.seeds >= 1, f"--seeds {args.seeds}: at least one population of each kind is needed")
    require(args.output.suffix == ".json", f"--output {args.output}: name a file that ends in .json")
    require_writable(args.output)
    for method in args.method:
        own_method.function_named(method)
    return args


def main():
    clock = Clock()
    args = arguments()
    made = data_sets(args)
    if args.export:
        export(args.export, made, args.seeds)
        return
    made_of = methods()
    studies = {}
    tables = {}
    for name, data_set in made.items():
        studies[name] = study(name, data_set.make, args, made_of)
        tables[name] = rows_of(studies[name])
        print_rows(name, tables[name])
    places = places_by_kind(tables, made)
    rows = described_rows(tables, made, args.seeds)
    save_results(args.output.with_suffix(""), rows, args, places=places)
    lines = overview(tables, places)
    print_aligned(lines)
    with written_whole(args.output.with_suffix(".md")) as file:
        file.write_text(as_markdown(lines))
    plot(args.output.with_suffix(".png"), tables)
    for method in (OURS, STARRED):
        judge_below(studies, method)
    print(f"{clock() / 60:.1f} minutes; results: {args.output}, .md, .png")


if __name__ == "__main__":
    start(main)
