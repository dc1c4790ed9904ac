"""Reddit TL;DR, step 2: learn a basis of rewards from seen workers, adapt it to unseen ones, sweep the rank.

    python RedditTLDR/train_basis.py --synthetic        planted workers, nothing to download or prepare
    python RedditTLDR/train_basis.py                    the prepared comparisons
    python RedditTLDR/train_basis.py --solver ridge --baselines
    python RedditTLDR/train_basis.py --repeats 20 --resplit --train_posts 0.5

Reads:  data/{train,validation}.{safetensors,parquet}, made by prepare.py
Writes: results/train_basis.json, .png, and V, W, worker ids of each rank as .safetensors, the
        starred one's as _best too (planted: *_synthetic.*)
Cost:   seconds on a CPU for planted workers; no GPU needed otherwise either, and no model is loaded.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import people
from lore import sweep_settings
from lore.common import pick_device, require, start
from lore.fit.evaluation import best_cells
from lore.report.results import report_run
from lore.settings import output_of, settings
from lore.sweep_settings import repeats_of, run_options
from utils import run

# ------------------------------------------------------------------------------- settings ---
K_list = [0, 1, 2, 3, 4, 5, 6]  # ranks: 0 = the reference head as it is, 1 = Bradley-Terry
alpha_list = [0.0]  # pull of every basis reward to the reference head, 0 = none
min_comparisons = 50  # workers with fewer on either side are left out
drop_smallest = 0  # of each side, so many workers with the fewest are left out; published code: 2
max_train = [150]  # training comparisons of a seen worker; of several, as 100 150, a table each
max_few_shot = 50  # few-shot comparisons of an unseen worker
train_posts = 0.0  # where only one side is prepared: share of its posts to train on
solver = "adam"  # adam = as published, num_iterations steps; ridge = chooses its own penalties
num_iterations = 1000  # Adam steps of the joint fit, as published
learning_rate = 0.5  # of the joint fit, as published
seed = 0  # of the choice of workers and comparisons, the start of the fits, the planted workers
data = HERE / "data"  # prepared comparisons
results = HERE / "results"  # table, picture and bases
synthetic = False  # planted workers instead of the prepared data
# -------------------------------------------------------------------------------------------
# Repeats, baselines, device: lore/sweep_settings.py; what --synthetic plants: people.py.


def main():
    args = settings(globals(), people, sweep_settings)
    device = pick_device(args.device)
    output = output_of(args, "train_basis")
    sides = people.plant(args) if args.synthetic else people.load(args.data)
    require(len({*args.max_train}) == len(args.max_train), "max_train holds a value twice")
    for max_train in args.max_train:
        path = output if len(args.max_train) == 1 else f"{output}_{max_train}"
        cells = []
        for seeds in repeats_of(args):
            groups = people.split(
                sides, args.min_comparisons, max_train, args.max_few_shot, args.train_posts, seeds[0],
                args.drop_smallest,
            )  # fmt: skip
            result = run(
                args.K_list, args.alpha_list, sides.train.head, *groups, *groups.sizes, device,
                seeds=seeds, save=path, model=sides.train.model, **run_options(args),
            )  # fmt: skip
            cells += result.cells + best_cells(sides.train.planted, groups, seeds[0])
        report_run(path, cells, args, model=sides.train.model, max_train=max_train)
        print(f"results are in {path}.json and .png, V and W beside them (_best: of the starred rank)")


if __name__ == "__main__":
    start(main)
