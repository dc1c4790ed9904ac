"""Reddit TL;DR, step 3: accuracy on unseen workers against the number of their comparisons known.

    python RedditTLDR/vary_fewshot.py --synthetic       planted workers, nothing to prepare
    python RedditTLDR/vary_fewshot.py                   the prepared comparisons

Reads:  data/{train,validation}.{safetensors,parquet}, made by prepare.py
Writes: results/vary_fewshot.json, results/vary_fewshot.png (planted: *_synthetic.*)
Cost:   seconds on a CPU for planted workers; no GPU needed otherwise either, and no model is loaded.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import people
from lore.common import pick_device, start
from lore.report.results import report_few_shot
from lore.settings import output_of, settings
from utils import run_few_shot_vary_shots

# ------------------------------------------------------------------------------- settings ---
K_list = [5]  # ranks: 0 = the reference head as it is, 1 = Bradley-Terry
alpha_list = [0.0]  # pull of every basis reward to the reference head, 0 = none
num_shots = [5, 10, 15, 20, 25, 30, 35, 40, 45, 50]  # known comparisons of each unseen worker
trials = 20  # draws of those comparisons
min_comparisons = 50  # workers with fewer on either side are left out
drop_smallest = 0  # of each side, so many workers with the fewest are left out; published code: 2
max_train = 150  # training comparisons of a seen worker
max_few_shot = 100  # of an unseen worker, from which the shots are drawn, as published
train_posts = 0.0  # where only one side is prepared: share of its posts to train on
solver = "adam"  # adam = as published, num_iterations steps; ridge = chooses its own penalties
num_iterations = 500  # Adam steps of the joint fit, as published for this curve
learning_rate = 0.5  # of the joint fit, as published
seed = 0  # of the choice of workers and comparisons, of the fits, the draws, the planted workers
device = "auto"  # auto, cpu, cuda, cuda:1
data = HERE / "data"  # prepared comparisons
results = HERE / "results"  # table and picture
synthetic = False  # planted workers instead of the prepared data; its settings: people.py
# -------------------------------------------------------------------------------------------


def main():
    args = settings(globals(), people)
    device = pick_device(args.device)
    output = output_of(args, "vary_fewshot")
    sides = people.plant(args) if args.synthetic else people.load(args.data)
    groups = people.split(
        sides, args.min_comparisons, args.max_train, args.max_few_shot, args.train_posts, args.seed,
        args.drop_smallest,
    )  # fmt: skip
    result = run_few_shot_vary_shots(
        args.trials, args.alpha_list, args.K_list, args.num_shots,
        groups.train, groups.few_shot_train, groups.unseen, sides.train.head, *groups.sizes, device,
        num_iterations=args.num_iterations, learning_rate=args.learning_rate, seed=args.seed,
        solver=args.solver,
    )  # fmt: skip
    report_few_shot(output, result, args, model=sides.train.model)
    print(f"results are in {output}.json and .png")


if __name__ == "__main__":
    start(main)
