"""Your own people, step 2: learn a basis of rewards from half of them, adapt it to the others, sweep the rank.

    python OwnData/train_basis.py --synthetic        planted people, nothing to prepare
    python OwnData/train_basis.py                    the prepared comparisons
    python OwnData/train_basis.py --solver adam --baselines
    python OwnData/train_basis.py --repeats 20 --resplit

Reads:  data/comparisons.{safetensors,parquet}, made by prepare.py
Writes: results/train_basis.json, .png, and V, W, people's ids of each rank as .safetensors, the
        starred one's as _best too, which the scripts of apply/ take (planted: *_synthetic.*)
Cost:   seconds to minutes on a CPU; no GPU needed, and no model is loaded.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import people
from lore import sweep_settings
from lore.common import pick_device, start
from lore.fit.evaluation import best_cells
from lore.report.results import report_run
from lore.settings import output_of, settings
from lore.sweep_settings import repeats_of, run_options
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
seed = 0  # of the choice of people and prompts, the start of the fits, the planted people
data = HERE / "data"  # prepared comparisons
results = HERE / "results"  # table, picture and bases
synthetic = False  # planted people instead of the prepared data
# -------------------------------------------------------------------------------------------
# Repeats, baselines, device: lore/sweep_settings.py; what --synthetic plants: people.py.


def main():
    args = settings(globals(), people, sweep_settings)
    device = pick_device(args.device)
    output = output_of(args, "train_basis")
    prepared = people.plant(args) if args.synthetic else people.load(args.data)
    cells = []
    for seeds in repeats_of(args):
        groups = people.split(prepared, args.min_comparisons, args.max_few_shot, args.train_prompts, seeds[0])
        result = run(
            args.K_list, args.alpha_list, prepared.head, *groups, *groups.sizes, device,
            seeds=seeds, save=output, model=prepared.model, **run_options(args),
        )  # fmt: skip
        cells += result.cells + best_cells(prepared.planted, groups, seeds[0])
    report_run(output, cells, args)
    print(f"results are in {output}.json and .png, V and W beside them (_best: of the starred rank)")


if __name__ == "__main__":
    start(main)
