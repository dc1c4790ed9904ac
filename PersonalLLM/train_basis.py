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
from lore.common import pick_device, start
from lore.fit.evaluation import LORE
from lore.report.pictures import plot_mixtures
from lore.report.results import report_run
from lore.report.text_tables import key_text, print_aligned
from lore.settings import repeats_of, settings
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
repeats = 1  # fits from seeds seed, seed + 1, ...; the table then shows the spread over them
resplit = False  # each repeat also draws its people and their prompts anew: spread of splits
mark_best = True  # say which rank held-out training prompts speak for; fits once more with adam
baselines = False  # also one mixture for all, another's, shuffled labels, what is one's own alone
seed = 0  # of the people, of their prompts, of the start of the fits, of the planted reward models
device = "auto"  # auto, cpu, cuda, cuda:1
data = HERE / "data"  # prepared responses
results = HERE / "results"  # tables, pictures and bases
synthetic = False  # planted reward models instead of the prepared; their settings: people.py
# -------------------------------------------------------------------------------------------


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


def main():
    args = settings(globals(), people)
    device = pick_device(args.device)
    args.results.mkdir(parents=True, exist_ok=True)
    people.check_populations(args.dirichlet_list)
    if args.synthetic:
        sides = people.plant(
            args.seed, args.planted_prompts, args.planted_tests, args.planted_features,
            args.planted_agreement, args.planted_unexplained,
        )  # fmt: skip
    else:
        sides = people.load(args.data)
    if args.standardise:
        sides = sides.standardised()
    kind = "_synthetic" * args.synthetic + "_standardised" * args.standardise
    N, N_unseen, populations = args.num_seen, args.num_unseen, {}
    known = args.train_prompts, args.few_shot_prompts
    for a in args.dirichlet_list:
        print(f"\npeople mix the reward models with w ~ Dirichlet({a:g})")
        output, cells = args.results / f"train_basis{kind}_a{a:g}", []
        for starts in repeats_of(args):
            groups = people.split(sides, a, N, N_unseen, *known, starts[0])
            result = run(
                args.K_list, args.alpha_list, sides.head, *groups, N, N_unseen, device,
                num_iterations=args.num_iterations, learning_rate=args.learning_rate, seeds=starts,
                solver=args.solver, mark_best=args.mark_best, baselines=args.baselines,
                save=output, model=sides.model,
            )  # fmt: skip
            cells += result.cells
        populations[a] = report_run(output, cells, args)
        for cell in cells:
            if (cell.K, cell.seed, cell.variant) == (max(args.K_list), args.seed, LORE) and cell.K:
                true, _ = people.true_mixtures(sides, a, "seen", N, args.seed)
                title = f"learned, K = {cell.K}, alpha = {cell.alpha:g}, seed {args.seed}"
                plot_mixtures(f"{output}_mixtures", true, cell.fit.W.cpu().numpy(), title)
                break
    print_paper_table(populations, N, N_unseen)
    print(f"accuracy in percent; results are in {args.results}, a JSON and its pictures each")


if __name__ == "__main__":
    start(main)
