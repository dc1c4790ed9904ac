"""PRISM, step 3: learn a basis of rewards from seen people, adapt it to unseen ones, sweep the rank.

    python PRISM/train_basis.py --synthetic        planted people in dialogues of the real structure
    python PRISM/train_basis.py                    the prepared dialogues
    python PRISM/train_basis.py --K_list 1 10 --alpha_list 0 1e4 --num_iterations 2000

Reads:  data/prism.{safetensors,parquet}, data/prism_split_ids_50.json, made by the two steps before
Writes: results/train_basis.json, .png, and V, W, user ids of each rank as .safetensors
        (planted: *_synthetic.*)
Cost:   20,000 steps; the default sweep of planted people takes about two minutes on two cores.
        No model is loaded.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import people
from lore.common import pick_device, start
from lore.fit.basis import basis_health
from lore.fit.evaluation import LORE, best_cell
from lore.report.results import report_run, run_rows
from lore.report.text_tables import health_table, print_table
from lore.settings import repeats_of, settings
from utils import run_regularized

# ------------------------------------------------------------------------------- settings ---
K_list = [0, 1, 5, 10, 15, 20, 25, 50]  # ranks: 0 = the reference head as it is, 1 = Bradley-Terry
alpha_list = [1e4]  # pull of every basis reward to the reference head; 0 = none, or no head
solver = "adam"  # adam = as published, num_iterations steps; ridge = chooses its own penalties
num_iterations = 20000  # alternating Adam steps of the joint fit, as published
learning_rate = 0.5  # of the joint fit, as published
repeats = 1  # fits from seeds seed, seed + 1, ...; the table then shows the spread over them
resplit = False  # each repeat also draws its people and dialogues anew, as many: spread of splits
mark_best = True  # say which rank held-out training prompts speak for; fits once more with adam
baselines = False  # also one mixture for all, another's, shuffled labels, what is one's own alone
seed = 0  # of the start of the fits, of the planted people
device = "auto"  # auto, cpu, cuda, cuda:1
data = HERE / "data"  # prepared dialogues
results = HERE / "results"  # table, picture and bases
synthetic = False  # planted people instead of the prepared data; their settings: people.py
# -------------------------------------------------------------------------------------------

COLLAPSED = 0.99  # cosine to the reference head above which a column is nothing but that head


def with_health(cells, V_ref):
    """One row per cell for the JSON, those of a fit with what tells whether its basis is healthy."""
    rows = run_rows(cells)
    for row, cell in zip(rows, cells):
        if cell.fit is not None and cell.variant == LORE and cell.K not in (0, "best"):
            row |= basis_health(cell.fit.V, cell.fit.W, V_ref)
    return rows


def main():
    args = settings(globals(), people)
    device = pick_device(args.device)
    args.results.mkdir(parents=True, exist_ok=True)
    if args.synthetic:
        dialogues = people.plant(
            args.seed, args.planted_users, args.planted_features, args.planted_directions,
            args.planted_concentration, args.planted_accuracy,
        )  # fmt: skip
    else:
        dialogues = people.load(args.data)
    output = args.results / ("train_basis_synthetic" if args.synthetic else "train_basis")
    cells = []
    for starts in repeats_of(args):
        groups = people.split(dialogues, seed=starts[0] if args.resplit else None)
        N, N_unseen = len(groups.train.user_ids), len(groups.unseen.user_ids)
        result = run_regularized(
            args.K_list, args.alpha_list, dialogues.head, *groups, N, N_unseen, device,
            num_iterations=args.num_iterations, learning_rate=args.learning_rate, seeds=starts,
            solver=args.solver, mark_best=args.mark_best, baselines=args.baselines, save=output,
            model=dialogues.model,
        )  # fmt: skip
        cells += result.cells
        if dialogues.planted:
            cells.append(best_cell(dialogues.planted, groups, starts[0]))
    rows = with_health(cells, dialogues.head)
    if dialogues.planted:
        best = f"{args.planted_accuracy:.0%} by construction"
        print(f"planted people: the best possible accuracy is {best}")
    report_run(output, cells, args, rows)
    print_table(health_table(rows))
    several = [row for row in rows if row.get("columns", 0) > 1 and row["to_head"]]
    if any(row["to_head"][0] > COLLAPSED for row in several):
        print("some bases are the reference head several times over:", end=" ")
        print("their pull to it is too strong to learn anything")
    print(f"results are in {output}.json and .png, V and W beside them")


if __name__ == "__main__":
    start(main)
