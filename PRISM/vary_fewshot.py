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

import people
from lore.common import pick_device, start
from lore.report.results import report_few_shot
from lore.settings import output_of, settings
from utils import LoRe_regularized, run_few_shot_vary_shots

# ------------------------------------------------------------------------------- settings ---
K_list = [1, 5]  # ranks: 0 = the reference head as it is, 1 = Bradley-Terry
alpha_list = [0.0, 1e4]  # pull of every basis reward to the reference head; 0 = none, or no head
num_shots = [1, 2, 3, 0]  # known dialogues of each unseen person; 0 = all of the training ones
trials = 20  # draws of those dialogues
solver = "adam"  # adam = as published, num_iterations steps; ridge = chooses its own penalties
num_iterations = 20000  # alternating Adam steps of the joint fit, as published
learning_rate = 0.5  # of the joint fit, as published
few_shot_learning_rate = 0.5  # of the unseen people's mixtures, as published for this data set
seed = 0  # of the start of the fits, of the draws, of the planted people
device = "auto"  # auto, cpu, cuda, cuda:1
data = HERE / "data"  # prepared dialogues
results = HERE / "results"  # table and picture
synthetic = False  # planted people instead of the prepared data; its settings: people.py
# -------------------------------------------------------------------------------------------


def main():
    args = settings(globals(), people)
    device = pick_device(args.device)
    output = output_of(args, "vary_fewshot")
    dialogues = people.plant(args) if args.synthetic else people.load(args.data)
    groups = people.split(dialogues, least=max(args.num_shots))
    result = run_few_shot_vary_shots(
        args.trials, args.alpha_list, args.K_list, args.num_shots,
        groups.train, groups.few_shot_train, groups.unseen, dialogues.comparisons.head,
        *groups.sizes, device,
        num_iterations=args.num_iterations, learning_rate=args.learning_rate, seed=args.seed,
        solver=args.solver, few_shot_learning_rate=args.few_shot_learning_rate,
        model_class=LoRe_regularized,
    )  # fmt: skip
    report_few_shot(output, result, args, shot="dialogues", model=dialogues.comparisons.model)
    print(f"results are in {output}.json and .png")


if __name__ == "__main__":
    start(main)
