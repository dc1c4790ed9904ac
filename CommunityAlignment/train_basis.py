"""Community Alignment, step 2: learn a basis of rewards from half of the people, adapt it to the others.

    python CommunityAlignment/train_basis.py --synthetic         planted people, nothing to prepare
    python CommunityAlignment/train_basis.py                     the prepared choices
    python CommunityAlignment/train_basis.py --split turn        as others have split: flatters, see below
    python CommunityAlignment/train_basis.py --solver adam --likelihood softmax
    python CommunityAlignment/train_basis.py --who               also by country, language, age, leaning

Reads:  data/comparisons.{safetensors,parquet}, made by prepare.py
Writes: results/train_basis.json, .png, and V, W, people's ids of each rank as .safetensors (planted:
        *_synthetic.*; by turn: *_turn.*)
Cost:   minutes on a CPU; no GPU needed, and no model is loaded.

Two tables: of pairs (chance 50 %), and of choices, where all four replies have to be told apart (chance
25 %). What stands beside the sweep: the reward model (K = 0), Bradley-Terry (K = 1), the mixture of another
person of the same language, what most others preferred of the very same replies, and how often people
agree with themselves.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import choices
import people
from lore import sweep_settings
from lore.common import InputError, pick_device, start
from lore.fit.evaluation import ANOTHER, LORE
from lore.report.results import report_run
from lore.settings import output_of, settings
from lore.sweep_settings import repeats_of, run_options
from utils import run

# ------------------------------------------------------------------------------- settings ---
K_list = [0, 1, 2, 5, 10, 20]  # ranks: 0 = the reference head as it is, 1 = Bradley-Terry
alpha_list = [0.0]  # pull of every basis reward to the reference head, 0 = none
split = "group"  # group = by first prompt, for everybody; turn = by choice, which leaks
likelihood = "pairs"  # pairs = each a share of a choice; softmax = one over all replies, adam only
min_choices = 5  # people with fewer on either side are left out
max_few_shot = 32  # choices that are known of an unseen person
train_share = 0.5  # of the first prompts (or choices) to train on
solver = "ridge"  # ridge = chooses its own penalties; adam = as published, num_iterations steps
num_iterations = 1000  # Adam steps of the joint fit
learning_rate = 0.5  # of the joint fit, as published
who = False  # also accuracy and mixtures by what people say of themselves
seed = 0  # of the choice of people and prompts, the start of the fits, the planted people
data = HERE / "data"  # prepared choices
results = HERE / "results"  # table, picture and bases
synthetic = False  # planted people instead of the prepared data
# -------------------------------------------------------------------------------------------
# Repeats, baselines, device: lore/sweep_settings.py; what --synthetic plants: people.py.


def main():
    args = settings(globals(), people, sweep_settings)
    device = pick_device(args.device)
    if args.likelihood == "softmax" and (args.solver == "ridge" or args.baselines):
        wrong = "the ridge solver, and two of the --baselines, know pairs only"
        raise InputError(f"--likelihood softmax: {wrong}; --solver adam --no-baselines")
    output = output_of(args, "train_basis")
    if args.split == "turn":
        output = f"{output}_turn"
    prepared = people.plant(args) if args.synthetic else people.load(args.data)
    if prepared.planted:
        best = f"knows people and items is right about {args.planted_accuracy:.0%} of the pairs"
        print(f"planted people: who {best}")
    frame = prepared.frame
    language = choices.most_said(frame, "lang")
    cells = []  # of pairs
    top = []  # of choices
    shared = []  # of choices that other people made as well
    chances = []
    for seeds in repeats_of(args):
        groups = people.split(
            prepared, args.split, args.min_choices, args.max_few_shot, args.train_share,
            args.likelihood, seeds[0],
        )  # fmt: skip
        result = run(
            args.K_list, args.alpha_list, prepared.head, *groups, *groups.sizes, device,
            seeds=seeds, save=output, model=prepared.model, **run_options(args),
        )  # fmt: skip
        of_split = [cell for cell in result.cells if cell.variant != ANOTHER]
        of_split += choices.another_of_language(of_split, groups, language)
        first = [choices.first_places(cell) for cell in of_split]
        cells += of_split
        top += first
        shared += choices.of_shared_items(first, groups, frame)
        chances.append(choices.chance(groups.unseen))
    over = "splits" if args.resplit else "seeds"
    report = {"by_choice": choices.choice_rows(top, over)}
    report["of_shared_items"] = choices.choice_rows(shared, over)
    report["consistency"] = choices.consistency(frame)
    if args.who:
        report["who"] = choices.by_trait(best_of(cells), frame, people.TRAITS)
    report_run(output, cells, args, **report)
    choices.print_top_choices(report, sum(chances) / len(chances))
    if args.who:
        choices.print_traits(report["who"])
    print(f"\nresults are in {output}.json and .png, V and W beside them (_best: of the starred rank)")


def best_of(cells):
    """That of the starred rank of the first seed and alpha, else of the largest rank."""
    first = cells[0].setting[:2]
    fits = [cell for cell in cells if cell.variant == LORE and cell.setting[:2] == first]
    return next((cell for cell in fits if cell.best), max(fits, key=lambda cell: cell.K))


if __name__ == "__main__":
    start(main)
