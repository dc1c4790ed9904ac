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
from rivals import Rival, entry_of, mrm, ours, own_method, pal, parts, pref, rbd, vpl
from rivals.data_sets import data_sets
from rivals.ours import OURS, STARRED
from rivals.overview import as_markdown, difference, mean_places, overview, plot, print_rows, rows_of
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
ORDER = ("LoRe, published", "Bradley-Terry, published", "VPL", "PAL-A")  # of the paper's Table 1
RIVAL_SOURCES = [f"benchmarks/rivals/{name}.py" for name in ("__init__", "mrm", "pal", "pref", "rbd", "vpl")]
OUR_SOURCES = ("benchmarks/rivals/__init__.py", "benchmarks/rivals/ours.py", "lore/fit", "utils.py")


def of_rival(names, fit, groups, head, seed):
    """{row: Entry, or the reason why there is none} of a fit, which gives one Rival or one for each name."""
    try:
        rivals = fit(groups, head, seed)
    except InputError as error:
        return dict.fromkeys(names, str(error))
    rivals = {names[0]: rivals} if isinstance(rivals, Rival) else rivals
    return {name: entry_of(rival, name, groups, seed) for name, rival in rivals.items()}


def methods():
    """{name of a part: (function, source)}, each one fit, or some that share one.

    function: (groups, head, seed) -> {row: Entry, or the reason why there is none}; source: hash of the files
    that decide what it gives, as they are when the study starts
    """
    of_ours, of_rivals = map(parts.digest_of_sources, (OUR_SOURCES, RIVAL_SOURCES))
    made_of = {name: (entries, of_ours) for name, entries in ours.METHODS.items()}
    for name, fit in RIVALS.items():
        made_of[name] = (partial(of_rival, [name], fit), of_rivals)
    return made_of | {"MRM": (partial(of_rival, MRM, mrm.fits), of_rivals)}


def study(name, make, args, made_of):
    """{row: [Entry, ..] or the reason why there are none} of a data set; make: seed -> (Groups, head).

    made_of: methods(), as they were when the study began. What is among the parts already is not fitted again.
    """
    folder = args.output.with_suffix(".parts")
    entries = {}
    reasons = {}
    for seed in range(args.seeds):
        print(f"{name}: population or split {seed + 1} of {args.seeds}", file=sys.stderr, flush=True)
        groups, head = make(seed)
        data = parts.digest_of_data(groups, head)
        of_split = {}
        for method, (entries_of, source) in made_of.items():
            path = parts.part_path(folder, method, seed, data, source)
            if not path.exists():
                parts.save_part(path, entries_of(groups, head, seed))
            of_split |= parts.load_part(path, groups)
        for method in dict.fromkeys(args.method):
            of_split |= own_method.entries(method, groups, head, seed)
        for row, entry in of_split.items():
            if isinstance(entry, str):
                reasons[row] = entry
            else:
                entries.setdefault(row, []).append(entry)
    return entries | reasons


def export(folder, made, seeds):
    for name, data_set in made.items():
        for seed in range(seeds):
            path = folder / file_name(name, seed)
            save_population(path, *data_set.make(seed), data_set=name, seed=seed)
            print(f"{path}.safetensors, .parquet: {name}")


def significantly_below(studies, method):
    """Texts of data set and rival of the literature below which a method is, its interval without zero."""
    below = []
    for data_set, entries in studies.items():
        for name in (*RIVALS, *MRM):
            if not isinstance(entries[name], str):
                mean, _, high = difference(entries, method, name)
                if high < 0:
                    below.append(f"{data_set}: {name}, {100 * mean:+.1f}")
    return below


def judge_order(data_set, rows):
    """Whether published LoRe is above the others of the paper's Table 1, of those that took the data set."""
    unseen = {row["method"]: row["unseen"] for row in rows if row["method"] in ORDER and "unseen" in row}
    told = ", ".join(f"{name} {100 * accuracy:.1f}" for name, accuracy in unseen.items())
    what = f"{data_set}: LoRe above the others, as in the paper ({told})"
    judge(what, unseen[ORDER[0]] == max(unseen.values()))


def places_by_kind(tables, made):
    """{"all", "planted", "real": mean_places}, of the kinds that are there."""
    kinds = {"all": tables}
    for kind, planted in (("planted", True), ("real", False)):
        of_kind = {name: rows for name, rows in tables.items() if made[name].planted == planted}
        if of_kind:
            kinds[kind] = of_kind
    return {kind: mean_places(of_kind) for kind, of_kind in kinds.items()}


def write_all(args, tables, made, places):
    rows = []
    for data_set, of_set in tables.items():
        about = {"data_set": data_set, "planted": made[data_set].planted, "populations": args.seeds}
        if not about["planted"]:  # what benchmarks/paper.py asks for
            groups, _ = made[data_set].make(0)
            about |= {"model": made[data_set].model, "people": [*groups.sizes]}
        rows += [about | row for row in of_set]
    save_results(args.output.with_suffix(""), rows, args, places=places)
    lines = overview(tables, places)
    print_aligned(lines)
    with written_whole(args.output.with_suffix(".md")) as file:
        file.write_text(as_markdown(lines))
    plot(args.output.with_suffix(".png"), tables)


def main():
    parser = flags(__doc__)
    parser.set_defaults(script="benchmarks/compare_rivals.py")  # so that results say what wrote them
    add = parser.add_argument
    several = {"action": "extend", "nargs": "+", "default": []}
    whose = "only what is prepared in FOLDER/RedditTLDR/data and its like [this repository]"
    add("--shared", type=Path, help="folder whose data/ holds the real comparisons")
    add("--prepared", type=Path, nargs="?", const=ROOT, metavar="FOLDER", help=whose)
    add("--encoder", help="a text encoder")
    add("--decoder", help="a decoder with a head, which is not used, for MT-Bench")
    add("--seeds", type=int, default=2, help="populations or splits of a data set")
    add("--sets", help="only data sets whose name has this", **several)
    add("--output", type=Path, default=HERE / "results/rivals.json", help="FILE.json")
    add("--method", help="module:function of your own", **several)
    add("--export", type=Path, help="folder for the populations; nothing is fitted then")
    args = parser.parse_args()
    require(args.seeds >= 1, f"--seeds {args.seeds}: at least one population of each kind is needed")
    require(args.output.suffix == ".json", f"--output {args.output}: name a file that ends in .json")
    require_writable(args.output)
    clock = Clock()
    for method in args.method:
        own_method.function_named(method)
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
    write_all(args, tables, made, places)
    for name, rows in tables.items():
        if "PersonalLLM" in name:
            judge_order(name, rows)
    for method in (OURS, STARRED):
        below = significantly_below(studies, method)
        judge(f"{method} is significantly below no rival ({'; '.join(below) or 'none'})", not below)
    first = next(iter(places["all"]))
    judge(f"{OURS} has the best mean place ({first})", first.startswith(OURS))
    print(f"{clock() / 60:.1f} minutes; results: {args.output}, .md, .png")


if __name__ == "__main__":
    start(main)
