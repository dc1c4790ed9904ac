"""PRISM, step 5: has a learned basis kept its general quality? Its rewards on RewardBench 2.

    python PRISM/eval_rb2.py                                   the reward model's own head alone
    python PRISM/eval_rb2.py --rm_head BASIS.safetensors --users user682 user173
                                                               of train_basis.py, with two people
    python PRISM/eval_rb2.py --subset ties --limit 10 --source FILE.jsonl       ten rows of a file

Reads:  allenai/reward-bench-2 (1,865 rows) or --source; a basis of train_basis.py, or a .pt or .npy
        with V (d, K)
Writes: results/eval_rb2*.csv, .json; data/rb2*.{safetensors,parquet}, so that other heads need no
        model
Cost:   one pass of the model over the prompts, each with its replies, on a GPU; scoring any number
        of heads: a second.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import numpy as np
import torch

from lore.common import require, start, written_whole
from lore.report.results import save_results
from lore.report.text_tables import difference_text, print_aligned
from lore.settings import settings
from lore.splits import TABLE_ROWS, load_split
from lore.text import encoder_settings
from lore.text.conversations import exchange
from lore.text.embeddings import embed_split
from lore.text.encoder import encoder_of
from rewardbench2 import (
    DRAWS,
    MEAN,
    interval,
    load_heads,
    over_first,
    print_lonely,
    read_bench,
    subset_scores,
)

# ------------------------------------------------------------------------------- settings ---
rm_head = ""  # a basis of train_basis.py, or .pt or .npy with V (d, K); empty = no other head
users = []  # ids of people in that basis whose own reward is scored too; all = everybody
source = "allenai/reward-bench-2"  # Hub data set, or a JSON-lines or parquet file with its columns
subset = ""  # Factuality, Precise IF, Math, Safety, Focus or Ties; empty = all six
limit = 0  # only the first N rows (of the subset), for a smoke test; 0 = all
model = encoder_settings.model  # the model whose embeddings the basis was learned on
data = HERE / "data"  # where the embedded replies go
results = HERE / "results"  # table
# -------------------------------------------------------------------------------------------
# How the model is used: lore/text/encoder_settings.py, flags of this script as well.

MADE_BY = "python PRISM/eval_rb2.py"
REFERENCE = "reference head"
SHOWN = 60  # rewards in the printed table
OVERFITTED = 5  # points below the reference head that are called so


def wanted_heads(args, encoder):
    """({name: (d,) reward}, model of their embeddings) of --rm_head, before anything is embedded."""
    require(args.rm_head or not args.users, "--users: whose? name their basis with --rm_head")
    nothing = "a text encoder has no head of its own; give one with --rm_head"
    require(args.rm_head or args.pooling != "mean", f"nothing to score: {nothing}")
    return load_heads(args.rm_head, encoder.num_features, args.users) if args.rm_head else ({}, "")


def embedded(path, rows, encoder):
    """Split of all replies, made unless it is there; those of a row stand together, correct ones first."""
    import pandas as pd

    replies = []
    for number, row in enumerate(rows):
        for text in row["chosen"] + row["rejected"]:
            replies.append({"row": number, "reply": exchange(row["prompt"], text)})
    embed_split(path, pd.DataFrame(replies), encoder, columns=["reply"], whole="row")
    split = load_split(path, MADE_BY, columns=["reply"], needed=["row"])
    in_order = split.frame["row"].is_monotonic_increasing
    require(in_order, f"{path}.parquet was changed by others; delete it and its .safetensors")
    return split


def scored(split, heads):
    """{row: (replies, H) rewards}, of the rows whose replies are not too long for the model."""
    H = torch.stack(list(heads.values()), dim=1).float()  # (d, H)
    blocks = split.table.split(TABLE_ROWS)
    R = torch.cat([block.float() @ H for block in blocks]).double().numpy()  # (table rows, H)
    return {row: R[reply.to_numpy()] for row, reply in split.frame.groupby("row")["reply"]}


def print_lost(table):
    """Say how far the learned rewards lie from the reference head: the mean mixture, else the best column."""
    if REFERENCE not in table.index or len(table) == 1 or table.isna().all(axis=None):
        return
    means = 100 * table.mean(axis=1)
    points = (means - means[REFERENCE]).drop(REFERENCE)
    learned = MEAN if MEAN in points else points.idxmax()
    print(f"{learned}: {points[learned]:+.1f} points above the {REFERENCE}, mean of the subsets")
    if points[learned] < -OVERFITTED:
        lost = "fitting these people has cost general quality (overfitting)"
        print(f"more than {OVERFITTED} points below it: {lost}")


def print_scores(table, intervals):
    """The first SHOWN rewards in percent; intervals: {reward: [mean, low, high]} over the reference."""
    over = {REFERENCE: ""} | {name: difference_text(interval) for name, interval in intervals.items()}
    lines = [["reward", *table, *[f"over the {REFERENCE}"] * bool(intervals)]]
    for name, values in table.iloc[:SHOWN].iterrows():
        percents = ["-" if np.isnan(value) else f"{100 * value:.1f}" for value in values]
        lines.append([name, *percents, *[over.get(name)] * bool(intervals)])
    print_aligned(lines)
    complete = "" if table["Overall"].notna().any() else ", not all here"
    print(f"percent; Overall is the mean of the six subsets{complete}")
    if intervals:
        print("last column: points of Overall [95 % interval over rows]")
    if len(table) > SHOWN:
        print(f"and {len(table) - SHOWN} more in the CSV")


def main():
    args = settings(globals(), encoder_settings)
    import pandas as pd

    rows = read_bench(args.source, args.subset, args.limit)
    encoder = encoder_of(args)
    selected = f"_{args.subset.lower().replace(' ', '_')}" if args.subset else ""
    selected += f"_first{args.limit}" if args.limit else ""
    path = args.data / f"rb2{selected}"
    output = args.results / f"eval_rb2{selected}"
    heads, learned_on = wanted_heads(args, encoder)
    args.results.mkdir(parents=True, exist_ok=True)
    split = embedded(path, rows, encoder)
    if split.head is not None:
        heads = {REFERENCE: split.head[:, 0], **heads}
    if learned_on and learned_on != split.model:
        print(f"warning: the basis was learned on {learned_on},", end=" ")
        print(f"these are embeddings of {split.model}")
    scores = scored(split, heads)
    rows = [rows[row] for row in scores]
    print_lonely(rows)
    print(f"{len(rows)} rows")
    by_subset = subset_scores(rows, scores.values(), DRAWS)
    columns = {name: values[0] for name, values in by_subset.items()}
    table = pd.DataFrame({**columns, "Overall": columns.get("Overall", np.nan)}, [*heads])
    with written_whole(f"{output}.csv") as file:
        table.to_csv(file, index_label="reward")
    intervals = {}
    if REFERENCE in heads and table["Overall"].notna().all():
        intervals = dict(zip([*heads][1:], over_first(by_subset["Overall"])))
    json_rows = [{"reward": name, **row.dropna()} for name, row in table.iterrows()]
    for subset, values in by_subset.items():
        for row, limits in zip(json_rows, interval(values).tolist()):
            if subset in row:
                row[f"{subset}_interval"] = limits
    save_results(output, json_rows, args, over_reference=intervals, model=split.model)
    print_scores(table, intervals)
    print_lost(table.drop(columns="Overall"))
    print(f"results are in {output}.csv and .json")


if __name__ == "__main__":
    start(main)
