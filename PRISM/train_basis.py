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
from lore import sweep_settings
from lore.common import pick_device, start
from lore.fit.basis import basis_health
from lore.fit.evaluation import LORE, best_cells
from lore.report.results import report_run, run_rows
from lore.report.text_tables import health_table, print_table
from lore.settings import output_of, settings
from lore.sweep_settings import repeats_of, run_options
from utils import run_regularized

# ------------------------------------------------------------------------------- settings ---
K_list = [0, 1, 5, 10, 15, 20, 25, 50]  # ranks: 0 = the reference head as it is, 1 = Bradley-Terry
alpha_list = [1e4]  # pull of every basis reward to the reference head; 0 = none, or no head
solver = "adam"  # adam = as published, num_iterations steps; ridge = chooses its own penalties
num_iterations = 20000  # alternating Adam steps of the joint fit, as published
learning_rate = 0.5  # of the joint fit, as published
seen_fraction = 0.0  # of --resplit: share of people that are seen, paper 0.5; 0 = as prepared
seed = 0  # of the start of the fits, of the planted people
data = HERE / "data"  # prepared dialogues
results = HERE / "results"  # table, picture and bases
synthetic = False  # planted people instead of the prepared data
# -------------------------------------------------------------------------------------------
# Repeats, baselines, device: lore/sweep_settings.py; what --synthetic plants: people.py.

COLLAPSED = 0.99  # cosine to the reference head above which a column is nothing but that head


def with_health(cells, V_ref):
    """One row per cell for the JSON, those of a fit with what tells whether its basis is healthy."""
    rows = run_rows(cells)
    for row, cell in zip(rows, cells):
        if cell.fit is not None and cell.variant == LORE and cell.K not in (0, "best"):
            row |= basis_health(cell.fit.V, cell.fit.W, V_ref)
    return rows


def main():
    args = settings(globals(), people, sweep_settings)
    device = pick_device(args.device)
    output = output_of(args, "train_basis")
    dialogues = people.plant(args) if args.synthetic else people.load(args.data)
    comparisons = dialogues.comparisons
    cells = []
    for seeds in repeats_of(args):
        groups = people.split(dialogues, seeds[0] if args.resplit else None, args.seen_fraction)
        result = run_regularized(
            args.K_list, args.alpha_list, comparisons.head, *groups, *groups.sizes, device,
            seeds=seeds, save=output, model=comparisons.model, **run_options(args),
        )  # fmt: skip
        cells += result.cells + best_cells(comparisons.planted, groups, seeds[0])
    rows = with_health(cells, comparisons.head)
    report_run(output, cells, args, rows, model=comparisons.model)
    print_table(health_table(rows))
    several = [row for row in rows if row.get("columns", 0) > 1 and row["to_head"]]
    if any(row["to_head"][0] > COLLAPSED for row in several):
        print("some bases are the reference head several times over:", end=" ")
        print("their pull to it is too strong to learn anything")
    print(f"results are in {output}.json and .png, V and W beside them (_best: of the starred rank)")


if __name__ == "__main__":
    start(main)
