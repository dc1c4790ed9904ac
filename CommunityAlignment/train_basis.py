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

import people
from choices import (
    Choices,
    another_of_language,
    by_trait,
    consistency,
    print_choices,
    print_traits,
    rows_of,
)  # fmt: skip
from lore.common import InputError, pick_device, start
from lore.fit.evaluation import ANOTHER, LORE
from lore.report.results import report_run
from lore.settings import repeats_of, settings
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
repeats = 1  # fits from seeds seed, seed + 1, ...; the table then shows the spread over them
resplit = False  # each repeat also draws its people and prompts anew: spread of splits
mark_best = True  # say which rank held-out training prompts speak for; fits once more with adam
baselines = False  # also one mixture for all, another's, shuffled labels, what is one's own alone
who = False  # also accuracy and mixtures by what people say of themselves
seed = 0  # of the choice of people and prompts, the start of the fits, the planted people
device = "auto"  # auto, cpu, cuda, cuda:1
data = HERE / "data"  # prepared choices
results = HERE / "results"  # table, picture and bases
synthetic = False  # planted people instead of the prepared data; their settings: people.py
# -------------------------------------------------------------------------------------------


def main():
    args = settings(globals(), people)
    device = pick_device(args.device)
    if args.likelihood == "softmax" and (args.solver == "ridge" or args.baselines):
        wrong = "the ridge solver, and two of the --baselines, know pairs only"
        raise InputError(f"--likelihood softmax: {wrong}; --solver adam --no-baselines")
    args.results.mkdir(parents=True, exist_ok=True)
    if args.synthetic:
        prepared = people.plant(
            args.seed, args.planted_people, args.planted_conversations, args.planted_prompts,
            args.planted_features, args.planted_countries, args.planted_popularity,
            args.planted_accuracy,
        )  # fmt: skip
        best = f"knows people and items is right about {args.planted_accuracy:.0%} of the pairs"
        print(f"planted people: who {best}")
    else:
        prepared = people.load(args.data)
    name = "train_basis" + ("_synthetic" if args.synthetic else "")
    output = args.results / (name + ("_turn" if args.split == "turn" else ""))
    frame = prepared.comparisons.frame
    cells, by_choice, shared = [], [], []
    for starts in repeats_of(args):
        groups = people.split(
            prepared, args.split, args.min_choices, args.max_few_shot, args.train_share,
            args.likelihood, starts[0],
        )  # fmt: skip
        N, N_unseen = len(groups.train.user_ids), len(groups.unseen.user_ids)
        result = run(
            args.K_list, args.alpha_list, prepared.head, *groups, N, N_unseen, device,
            num_iterations=args.num_iterations, learning_rate=args.learning_rate, seeds=starts,
            solver=args.solver, mark_best=args.mark_best, baselines=args.baselines, save=output,
            model=prepared.model,
        )  # fmt: skip
        found = [cell for cell in result.cells if cell.variant != ANOTHER]
        found += another_of_language(found, groups, prepared.language)
        choices = Choices(groups)
        first = [choices.first_places(cell) for cell in found]
        cells += found
        by_choice += first
        shared += choices.of_shared_items(first, frame)
    over = "splits" if args.resplit else "seeds"
    more = {"by_choice": rows_of(by_choice, over), "of_shared_items": rows_of(shared, over)}
    more["consistency"] = consistency(frame)
    if args.who:
        more["who"] = by_trait(best_of(found), frame, people.TRAITS)
    report_run(output, cells, args, **more)
    print_choices(more, choices.chance())
    if args.who:
        print_traits(more["who"])
    print(f"\nresults are in {output}.json and .png, V and W beside them")


def best_of(cells):
    """That of the starred rank of the first alpha, else of the largest rank."""
    fits = [cell for cell in cells if cell.variant == LORE and cell.alpha == cells[0].alpha]
    return next((cell for cell in fits if cell.best), max(fits, key=lambda cell: cell.K))


if __name__ == "__main__":
    start(main)
