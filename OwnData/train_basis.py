"""Your own people, step 2: learn a basis of rewards from half of them, adapt it to the others, sweep the rank.

    python OwnData/train_basis.py --synthetic        planted people, nothing to prepare
    python OwnData/train_basis.py                    the prepared comparisons
    python OwnData/train_basis.py --solver adam --baselines
    python OwnData/train_basis.py --repeats 20 --resplit

Reads:  data/comparisons.{safetensors,parquet}, made by prepare.py
Writes: results/train_basis.json, .png, and V, W, people's ids of each rank as .safetensors, which the
        scripts of apply/ take (planted: *_synthetic.*)
Cost:   seconds to minutes on a CPU; no GPU needed, and no model is loaded.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import people
from lore.common import pick_device, start
from lore.fit.evaluation import best_cell
from lore.report.results import report_run
from lore.settings import repeats_of, settings
from utils import run

# ------------------------------------------------------------------------------- settings ---
K_list = [0, 1, 2, 3, 5]  # ranks: 0 = the reference head as it is, 1 = Bradley-Terry
alpha_list = [0.0]  # pull of every basis reward to the reference head, 0 = none
min_comparisons = 5  # people with fewer on either side are left out
max_few_shot = 10  # comparisons that are known of an unseen person
train_prompts = 0.5  # share of the prompts to train on; where the file has a split, it holds
solver = "ridge"  # ridge = chooses its own penalties; adam = as published, num_iterations steps
num_iterations = 1000  # Adam steps of the joint fit, as published
learning_rate = 0.5  # of the joint fit, as published
repeats = 1  # fits from seeds seed, seed + 1, ...; the table then shows the spread over them
resplit = False  # each repeat also draws its people, prompts and comparisons anew: spread of splits
mark_best = True  # say which rank held-out training prompts speak for; fits once more with adam
baselines = False  # also one mixture for all, another's, shuffled labels, what is one's own alone
seed = 0  # of the choice of people and prompts, the start of the fits, the planted people
device = "auto"  # auto, cpu, cuda, cuda:1
data = HERE / "data"  # prepared comparisons
results = HERE / "results"  # table, picture and bases
synthetic = False  # planted people instead of the prepared data; their settings: people.py
# -------------------------------------------------------------------------------------------


def main():
    args = settings(globals(), people)
    device = pick_device(args.device)
    args.results.mkdir(parents=True, exist_ok=True)
    if args.synthetic:
        prepared = people.plant(
            args.seed, args.planted_people, args.planted_pairs, args.planted_features,
            args.planted_directions, args.planted_concentration, args.planted_accuracy,
        )  # fmt: skip
    else:
        prepared = people.load(args.data)
    output = args.results / ("train_basis_synthetic" if args.synthetic else "train_basis")
    cells = []
    for starts in repeats_of(args):
        groups = people.split(
            prepared, args.min_comparisons, args.max_few_shot, args.train_prompts, starts[0]
        )
        N, N_unseen = len(groups.train.user_ids), len(groups.unseen.user_ids)
        result = run(
            args.K_list, args.alpha_list, prepared.head, *groups, N, N_unseen, device,
            num_iterations=args.num_iterations, learning_rate=args.learning_rate, seeds=starts,
            solver=args.solver, mark_best=args.mark_best, baselines=args.baselines, save=output,
            model=prepared.model,
        )  # fmt: skip
        cells += result.cells
        if prepared.planted:
            cells.append(best_cell(prepared.planted, groups, starts[0]))
    if prepared.planted:
        best = f"{args.planted_accuracy:.0%} by construction"
        print(f"planted people: the best possible accuracy is {best}")
    report_run(output, cells, args)
    print(f"results are in {output}.json and .png, V and W beside them")


if __name__ == "__main__":
    start(main)
