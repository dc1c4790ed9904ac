"""Your own people, step 3: accuracy on unseen people against the number of their comparisons known.

    python OwnData/vary_fewshot.py --synthetic       planted people, nothing to prepare
    python OwnData/vary_fewshot.py                   the prepared comparisons

Reads:  data/comparisons.{safetensors,parquet}, made by prepare.py
Writes: results/vary_fewshot.json, results/vary_fewshot.png (planted: *_synthetic.*)
Cost:   seconds on a CPU for planted people; no GPU needed otherwise either, and no model is loaded.
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
K_list = [3]  # ranks: 0 = the reference head as it is, 1 = Bradley-Terry
alpha_list = [0.0]  # pull of every basis reward to the reference head, 0 = none
num_shots = [1, 2, 5, 10, 0]  # known comparisons of each unseen person; 0 = max_few_shot
trials = 20  # draws of those comparisons
min_comparisons = 10  # people with fewer on either side are left out
max_few_shot = 20  # of an unseen person, from which the shots are drawn
train_prompts = 0.5  # share of the prompts to train on; where the file has a split, it holds
solver = "ridge"  # ridge = chooses its own penalties; adam = as published, num_iterations steps
num_iterations = 500  # Adam steps of the joint fit, as published for this curve
learning_rate = 0.5  # of the joint fit, as published
seed = 0  # of the choice of people and prompts, of the fits, the draws, the planted people
device = "auto"  # auto, cpu, cuda, cuda:1
data = HERE / "data"  # prepared comparisons
results = HERE / "results"  # table and picture
synthetic = False  # planted people instead of the prepared data; its settings: people.py
# -------------------------------------------------------------------------------------------


def main():
    args = settings(globals(), people)
    device = pick_device(args.device)
    output = output_of(args, "vary_fewshot")
    prepared = people.plant(args) if args.synthetic else people.load(args.data)
    groups = people.split(prepared, args.min_comparisons, args.max_few_shot, args.train_prompts, args.seed)
    result = run_few_shot_vary_shots(
        args.trials, args.alpha_list, args.K_list, args.num_shots,
        groups.train, groups.few_shot_train, groups.unseen, prepared.head, *groups.sizes, device,
        num_iterations=args.num_iterations, learning_rate=args.learning_rate, seed=args.seed,
        solver=args.solver,
    )  # fmt: skip
    report_few_shot(output, result, args)
    print(f"results are in {output}.json and .png")


if __name__ == "__main__":
    start(main)
