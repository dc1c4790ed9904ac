"""Community Alignment, step 3: accuracy on unseen people against the number of their choices known.

    python CommunityAlignment/vary_fewshot.py --synthetic       planted people, nothing to prepare
    python CommunityAlignment/vary_fewshot.py                   the prepared choices

Reads:  data/comparisons.{safetensors,parquet}, made by prepare.py
Writes: results/vary_fewshot.json, results/vary_fewshot.png (planted: *_synthetic.*; by turn: *_turn.*)
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
K_list = [1, 5]  # ranks: 0 = the reference head as it is, 1 = Bradley-Terry
alpha_list = [0.0]  # pull of every basis reward to the reference head, 0 = none
split = "group"  # group = by first prompt, for everybody; turn = by choice, which leaks
likelihood = "pairs"  # pairs = each a share of a choice; softmax = one over all replies, adam only
num_shots = [1, 2, 4, 8, 16, 32]  # known choices of each unseen person; 0 = max_few_shot
trials = 20  # draws of those choices
min_choices = 32  # people with fewer on either side are left out
max_few_shot = 64  # choices of an unseen person, from which the shots are drawn
train_share = 0.5  # of the first prompts (or choices) to train on
solver = "ridge"  # ridge = chooses its own penalties; adam = as published, num_iterations steps
num_iterations = 500  # Adam steps of the joint fit, as published for this curve
learning_rate = 0.5  # of the joint fit, as published
seed = 0  # of the choice of people and prompts, of the fits, the draws, the planted people
device = "auto"  # auto, cpu, cuda, cuda:1
data = HERE / "data"  # prepared choices
results = HERE / "results"  # table and picture
synthetic = False  # planted people instead of the prepared data; its settings: people.py
# -------------------------------------------------------------------------------------------


def main():
    args = settings(globals(), people)
    device = pick_device(args.device)
    output = output_of(args, "vary_fewshot")
    if args.split == "turn":
        output = f"{output}_turn"
    prepared = people.plant(args) if args.synthetic else people.load(args.data)
    groups = people.split(
        prepared, args.split, args.min_choices, args.max_few_shot, args.train_share,
        args.likelihood, args.seed,
    )  # fmt: skip
    result = run_few_shot_vary_shots(
        args.trials, args.alpha_list, args.K_list, args.num_shots,
        groups.train, groups.few_shot_train, groups.unseen, prepared.head, *groups.sizes, device,
        num_iterations=args.num_iterations, learning_rate=args.learning_rate, seed=args.seed,
        solver=args.solver,
    )  # fmt: skip
    report_few_shot(output, result, args, "choices")
    print(f"results are in {output}.json and .png")


if __name__ == "__main__":
    start(main)
