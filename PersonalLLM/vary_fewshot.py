"""PersonalLLM, step 3: accuracy on unseen people against the number of their comparisons known.

    python PersonalLLM/vary_fewshot.py --synthetic       planted reward models, nothing to prepare
    python PersonalLLM/vary_fewshot.py                   the prepared responses

Reads:  data/{train,test}.{safetensors,parquet}, made by prepare.py
Writes: for each population results/vary_fewshot_a*.json, .png (planted: vary_fewshot_synthetic_a*)
Cost:   a joint fit as in train_basis.py, then seconds for each population. No model is loaded.
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
dirichlet_list = [0.001, 0.1]  # a population each: w ~ Dirichlet(a); small a = pure types
num_shots = [1, 2, 5, 9, 15, 25, 45]  # known comparisons of each unseen person; 0 = all max_shots
max_shots = 45  # training prompts of an unseen person that the shots are drawn from
trials = 5  # draws of those comparisons
num_seen = 1000  # seen people of a population
num_unseen = 200  # unseen people of a population
train_prompts = 45  # training prompts of a seen person
standardise = False  # each reward model's scores to mean 0 and std 1: none outweighs another
solver = "adam"  # adam = as published, num_iterations steps; ridge = chooses its own penalties
num_iterations = 1000  # Adam steps of the joint fit, as published for the table of train_basis.py
learning_rate = 0.5  # of the joint fit, as published
seed = 0  # of the people, their prompts, the start of the fits, the draws, what is planted
device = "auto"  # auto, cpu, cuda, cuda:1
data = HERE / "data"  # prepared responses
results = HERE / "results"  # tables and pictures
synthetic = False  # planted reward models instead of the prepared; its settings: people.py
# -------------------------------------------------------------------------------------------


def main():
    args = settings(globals(), people)
    device = pick_device(args.device)
    start_of_name = f"{output_of(args, 'vary_fewshot')}{'_standardised' * args.standardise}"
    sides = people.sides_of(args)
    for a in args.dirichlet_list:
        print(f"\npeople mix the reward models with w ~ Dirichlet({a:g})")
        groups = people.split(
            sides, a, args.num_seen, args.num_unseen, args.train_prompts, args.max_shots, args.seed
        )
        result = run_few_shot_vary_shots(
            args.trials, args.alpha_list, args.K_list, args.num_shots,
            groups.train, groups.few_shot_train, groups.unseen, sides.head, *groups.sizes, device,
            num_iterations=args.num_iterations, learning_rate=args.learning_rate, seed=args.seed,
            solver=args.solver,
        )  # fmt: skip
        output = f"{start_of_name}_a{a:g}"
        report_few_shot(output, result, args, model=sides.model, population=a)
        print(f"results are in {output}.json and .png")


if __name__ == "__main__":
    start(main)
