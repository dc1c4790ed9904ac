"""PersonalLLM, step 2: a basis of rewards from seen people, adapted to unseen ones, in populations.

    python PersonalLLM/train_basis.py --synthetic       planted reward models, nothing to prepare
    python PersonalLLM/train_basis.py                   the prepared responses; three populations
    python PersonalLLM/train_basis.py --dirichlet_list 0.1 --K_list 1 2 5 10 20 50 --standardise

Reads:  data/{train,test}.{safetensors,parquet}, made by prepare.py
Writes: results/train_basis[_synthetic]_a*.json, .png, _mixtures.png, and V, W of each rank
Cost:   no GPU needed; benchmarks/personalllm.py measures the full size. No model is loaded.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import people
from lore import sweep_settings
from lore.common import pick_device, start
from lore.fit.evaluation import LORE
from lore.report.pictures import plot_mixtures
from lore.report.results import report_run
from lore.report.text_tables import key_text, print_aligned
from lore.settings import output_of, settings
from lore.sweep_settings import repeats_of, run_options
from utils import run

# ------------------------------------------------------------------------------- settings ---
K_list = [0, 1, 2, 3, 4, 5]  # ranks: 0 = reference head, 1 = Bradley-Terry; up to 50 in the paper
alpha_list = [0.0]  # pull of every basis reward to the reference head, 0 = none
dirichlet_list = [0.001, 0.01, 0.1]  # a population each: w ~ Dirichlet(a); small a = pure types
num_seen = 1000  # seen people of a population
num_unseen = 1000  # unseen people of a population
train_prompts = 45  # training prompts of a seen person
few_shot_prompts = 9  # training prompts known of an unseen person
standardise = False  # each reward model's scores to mean 0 and std 1: none outweighs another
solver = "adam"  # adam = as published, num_iterations steps; ridge = chooses its own penalties
num_iterations = 1000  # Adam steps of the joint fit, as published
learning_rate = 0.5  # of the joint fit, as published
seed = 0  # of the people, of their prompts, of the start of the fits, of the planted reward models
data = HERE / "data"  # prepared responses
results = HERE / "results"  # tables, pictures and bases
synthetic = False  # planted reward models instead of the prepared
# -------------------------------------------------------------------------------------------
# Repeats, baselines, device: lore/sweep_settings.py; what --synthetic plants: people.py.


def print_paper_table(populations, num_seen, num_unseen):
    """As Table 1 of the paper: rank by rank, each population's seen, unseen and overall accuracy."""
    summaries = list(populations.values())
    keys = ["K", "alpha"] if len({row["alpha"] for row in summaries[0]} - {None}) > 1 else ["K"]
    lines = [[*keys]]
    for a in populations:
        lines[0] += [f"a = {a:g}: seen", "unseen", "overall"]
    for rows in zip(*summaries):
        line = [key_text(rows[0], key) for key in keys]
        for row in rows:
            everybody = num_seen * row["seen"] + num_unseen * row["unseen"]
            accuracies = (row["seen"], row["unseen"], everybody / (num_seen + num_unseen))
            line += [f"{100 * accuracy:.1f}" for accuracy in accuracies]
        lines.append(line)
    print()
    print_aligned(lines)


def plot_learned(output, cells, sides, a, args):
    """OUTPUT_mixtures.png: true and learned mixtures of the seen, for the largest rank and first seed."""
    largest = (max(args.K_list), args.seed, LORE)
    cell = next((cell for cell in cells if (cell.K, cell.seed, cell.variant) == largest), None)
    if cell is None or not cell.K:
        return
    true, _ = people.true_mixtures(sides, a, "seen", args.num_seen, args.seed)
    title = f"learned, K = {cell.K}, alpha = {cell.alpha:g}, seed {args.seed}"
    plot_mixtures(f"{output}_mixtures", true, cell.fit.W.cpu().numpy(), title)


def main():
    args = settings(globals(), people, sweep_settings)
    device = pick_device(args.device)
    start_of_name = f"{output_of(args, 'train_basis')}{'_standardised' * args.standardise}"
    sides = people.sides_of(args)
    populations = {}
    for a in args.dirichlet_list:
        print(f"\npeople mix the reward models with w ~ Dirichlet({a:g})")
        output = f"{start_of_name}_a{a:g}"
        cells = []
        for seeds in repeats_of(args):
            groups = people.split(
                sides, a, args.num_seen, args.num_unseen, args.train_prompts,
                args.few_shot_prompts, seeds[0],
            )  # fmt: skip
            result = run(
                args.K_list, args.alpha_list, sides.head, *groups, *groups.sizes, device,
                seeds=seeds, save=output, model=sides.model, **run_options(args),
            )  # fmt: skip
            cells += result.cells
        populations[a] = report_run(output, cells, args, model=sides.model, population=a)
        plot_learned(output, cells, sides, a, args)
    print_paper_table(populations, args.num_seen, args.num_unseen)
    print(f"accuracy in percent; results are in {args.results}, a JSON and its pictures each")


if __name__ == "__main__":
    start(main)
