"""Reddit TL;DR, step 3: accuracy on unseen workers against the number of their comparisons that are known.

    python RedditTLDR/vary_fewshot.py --synthetic       planted workers, nothing to download or prepare
    python RedditTLDR/vary_fewshot.py                   the prepared comparisons

Reads:  data/{train,validation}.{safetensors,parquet}, made by prepare.py
Writes: results/vary_fewshot.json, results/vary_fewshot.png (planted: *_synthetic.*)
Cost:   seconds on a CPU for planted workers; no GPU needed otherwise either, and no model is loaded.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from train_basis import load_sides, planted, split_workers

from lore.common import pick_device, start
from lore.report import (
    few_shot_rows,
    plot_accuracy_vs_shots,
    print_choices,
    print_few_shot_table,
    save_results,
)
from lore.settings import alphas_of, settings
from utils import run_few_shot_vary_shots

# --------------------------------------------------------------------------------------------------- settings ---
K_list = [5]  # ranks: 0 = the reference head as it is, 1 = Bradley-Terry
alpha_list = [0.0]  # pull of every basis reward to the reference head, 0 = none
num_shots = [5, 10, 15, 20, 25, 30, 35, 40, 45, 50]  # known comparisons of each unseen worker
trials = 20  # draws of those comparisons
min_comparisons = 50  # workers with fewer on either side are left out
max_train = 150  # training comparisons of a seen worker
max_few_shot = 100  # comparisons of an unseen worker that the shots are drawn from, as published
train_posts = (
    0.0  # where only one side is prepared: share of its posts to train on; 0 = expect both sides
)
solver = "adam"  # adam = as published, for num_iterations steps; ridge = chooses its own penalties on held-out prompts
num_iterations = 500  # Adam steps of the joint fit, as published for this curve
learning_rate = 0.5  # of the joint fit, as published
seed = 0  # of the choice of workers and comparisons, of the start of the fits, of the draws, of the planted workers
device = "auto"  # auto, cpu, cuda, cuda:1
data = HERE / "data"  # prepared comparisons
results = HERE / "results"  # table and picture
synthetic = False  # planted workers instead of the prepared data
# --------------------------------------------------------------------------------------------------------------------


def main():
    args = settings(globals())
    torch_device, alpha_list = pick_device(args.device), alphas_of(args)
    args.results.mkdir(parents=True, exist_ok=True)
    synthetic, data = args.synthetic, (args.data, args.train_posts, args.seed)
    train, test = planted(args.seed).splits.values() if synthetic else load_sides(*data)
    groups = split_workers(
        train, test, args.min_comparisons, args.max_train, args.max_few_shot, args.seed
    )
    result = run_few_shot_vary_shots(
        args.trials, alpha_list, args.K_list, args.num_shots, groups.train, groups.few_shot_train, groups.unseen,
        train.head, len(groups.train.user_ids), len(groups.unseen.user_ids), torch_device,
        num_iterations=args.num_iterations, learning_rate=args.learning_rate, seed=args.seed, solver=args.solver,
    )  # fmt: skip
    print_choices(result.cells)
    rows = few_shot_rows(result, args.K_list, alpha_list, args.num_shots)
    print_few_shot_table(rows)
    output = args.results / ("vary_fewshot_synthetic" if args.synthetic else "vary_fewshot")
    save_results(output, rows, args)
    plot_accuracy_vs_shots(output)
    print(f"results are in {output}.json and .png")


if __name__ == "__main__":
    start(main)
