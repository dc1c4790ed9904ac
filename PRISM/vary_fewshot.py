"""PRISM, step 4: accuracy on unseen people against the number of their dialogues that are known.

    python PRISM/vary_fewshot.py --synthetic       planted people, nothing to prepare
    python PRISM/vary_fewshot.py                   the prepared dialogues

Reads:  data/prism.{safetensors,parquet}, data/prism_split_ids_50.json, made by steps 1 and 2
Writes: results/vary_fewshot.json, results/vary_fewshot.png (planted: *_synthetic.*)
Cost:   a joint fit as in train_basis.py, then seconds. No model is loaded.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from train_basis import load_dialogues, planted_dialogues, split_dialogues

from lore.common import InputError, pick_device, start
from lore.report import (
    few_shot_rows,
    plot_accuracy_vs_shots,
    print_choices,
    print_few_shot_table,
    save_results,
)
from lore.settings import alphas_of, settings
from utils import LoRe_regularized, run_few_shot_vary_shots

# --------------------------------------------------------------------------------------------------- settings ---
K_list = [1, 5]  # ranks: 0 = the reference head as it is, 1 = Bradley-Terry
alpha_list = [
    0.0,
    1e4,
]  # pull of every basis reward to the reference head, 0 = none (needed where there is no head)
num_shots = [1, 2, 3, 0]  # known dialogues of each unseen person; 0 = all of the training ones
trials = 20  # draws of those dialogues
solver = "adam"  # adam = as published, for num_iterations steps; ridge = chooses its own penalties on held-out prompts
num_iterations = 20000  # alternating Adam steps of the joint fit, as published
learning_rate = 0.5  # of the joint fit, as published
few_shot_learning_rate = 0.5  # of the unseen people's mixtures, as published for this data set
seed = 0  # of the start of the fits, of the draws, of the planted people
device = "auto"  # auto, cpu, cuda, cuda:1
data = HERE / "data"  # prepared dialogues
results = HERE / "results"  # table and picture
synthetic = False  # planted people instead of the prepared data
# --------------------------------------------------------------------------------------------------------------------


def with_enough_dialogues(split, ids, least):
    """Split ids without the unseen people who have pairs in fewer than `least` training dialogues."""
    train = split.frame[split.frame["dialogue"].isin(ids["train_dialog_ids"])]
    known = train.groupby("user_id")["dialogue"].nunique()
    enough = {user: 0 for user in ids["unseen_user_ids"] if known.get(user, 0) >= least}
    if not enough:
        raise InputError(f"no unseen person has {least} training dialogues; lower --num_shots")
    print(
        f"left out: {len(ids['unseen_user_ids']) - len(enough)} unseen people with fewer than {least} dialogues"
    )
    return {**ids, "unseen_user_ids": enough}


def main():
    args = settings(globals())
    torch_device, alpha_list = pick_device(args.device), alphas_of(args)
    args.results.mkdir(parents=True, exist_ok=True)
    if args.synthetic:
        population, ids = planted_dialogues(args.seed)
        split = population.splits["prism"]
    else:
        split, ids = load_dialogues(args.data)
    groups = split_dialogues(split, with_enough_dialogues(split, ids, max(args.num_shots)))
    result = run_few_shot_vary_shots(
        args.trials, alpha_list, args.K_list, args.num_shots, groups.train, groups.few_shot_train, groups.unseen,
        split.head, len(groups.train.user_ids), len(groups.unseen.user_ids), torch_device,
        num_iterations=args.num_iterations, learning_rate=args.learning_rate, seed=args.seed, solver=args.solver,
        few_shot_learning_rate=args.few_shot_learning_rate, model_class=LoRe_regularized,
    )  # fmt: skip
    print_choices(result.cells)
    rows = few_shot_rows(result, args.K_list, alpha_list, args.num_shots)
    print_few_shot_table(rows)
    output = args.results / ("vary_fewshot_synthetic" if args.synthetic else "vary_fewshot")
    save_results(output, rows, args)
    plot_accuracy_vs_shots(output, "dialogues")
    print(f"results are in {output}.json and .png")


if __name__ == "__main__":
    start(main)
