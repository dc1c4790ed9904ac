"""New people for a saved basis: their mixtures from a few comparisons each. The basis stays as it is.

    python apply/adapt.py --basis BASIS --input COMPARISONS --output ADAPTED

Reads:  --basis, a .safetensors file of a train_basis.py or of adapt.py
        --input, comparisons of the new people, as OwnData/prepare.py takes them
Writes: --output, a basis with these people in it, which every script of apply/ takes, and beside it a
        .json with what is found of each: mixture, posterior spread, certificate, what the pairs are
        worth. Leave-one-out: each pair, judged by the fit to the person's other pairs; beside it the
        population's mixture on the same pairs.
Cost:   one pass of the encoder over the conversations; the mixtures take seconds for thousands of people.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
import torch

import saved_basis
from leave_one_out import adapt
from lore.common import InputError, require, require_apart, start
from lore.fit.basis import save_basis, stacked_deviations
from lore.fit.comparisons import Comparisons
from lore.fit.mixtures import EVERYBODY
from lore.report.results import save_results
from lore.report.text_tables import print_aligned
from lore.settings import settings
from lore.text.conversations import text_bytes
from lore.text.input_rows import first_times, read_judgements
from lore.text.throughput import Tally
from saved_basis import encoder_of_basis, open_basis

# ------------------------------------------------------------------------------- settings ---
basis = ""  # a basis of train_basis.py or adapt.py
input = ""  # comparisons of people who are not in it
output = ""  # where the basis with these people goes, a .safetensors file
# -------------------------------------------------------------------------------------------

SHOWN = 20  # people in the printed table


def embedded_pairs(judgements, encoder):
    """Comparisons of all people of a file, sorted by id."""
    talks = [each.chosen for each in judgements] + [each.rejected for each in judgements]
    places = [each.place for each in judgements]
    with Tally(sum(map(text_bytes, talks))) as tally:
        table, rows = encoder.embed_distinct(talks, tally, places + places)
    tally.report()
    frame = pd.DataFrame({"user_id": [each.user_id for each in judgements]})
    frame["chosen"], frame["rejected"] = rows.view(2, -1).numpy()
    return Comparisons.from_frame(table, frame)


def require_new(judgements, basis, path):
    """InputError: somebody stands in the basis already."""
    known = {*basis.everybody}
    for one in judgements:
        if one.user_id in known:
            raise InputError(
                f"{one.place}: {path} has a user {one.user_id} already; give new people other ids"
            )


def extend(basis, pairs, found):
    """The basis with these people among its unseen ones."""
    more = {"unseen_ids": (*basis.unseen_ids, *pairs.user_ids)}
    more["W_unseen"] = torch.cat([basis.W_unseen, found.mixtures.W.float()])
    if found.mixtures.deviations is not None:
        E = stacked_deviations(found.mixtures.deviations, pairs.user_ids)
        more["E_unseen"] = torch.cat([basis.E_unseen, E])
    return basis._replace(**more)


def rows_of(pairs, found):
    """One dict per person."""
    counts = pairs.counts.tolist()
    rows = []
    for person, user in enumerate(pairs.user_ids):
        row = {"user_id": user, "pairs": counts[person]}
        row["mixture"] = found.mixtures.W[person].tolist()
        row["spread"] = found.mixtures.spread[person].tolist()
        row["gap"] = found.mixtures.gap[person].item()
        row["leave_one_out"] = found.accuracy[person].item()
        row["population"] = found.population[person].item()
        row["gain"] = found.gain[person].item()
        row["gain_error"] = found.error[person].item() if counts[person] > 1 else None
        row["word"] = found.word(person, counts[person])
        rows.append(row)
    return rows


def print_people(rows):
    lines = [["", "pairs", "left out", "population", "gain in log P", "mixture", "", ""]]
    lines[0][-2:] = ["certificate", "word"]
    for row in rows[:SHOWN]:
        error = "" if row["gain_error"] is None else f" ±{row['gain_error']:.3f}"
        mixture = []
        for weight, spread in zip(row["mixture"], row["spread"]):
            mixture.append(f"{weight:.2f}±{spread:.2f}")
        accuracies = [f"{100 * row[name]:.0f}" for name in ("leave_one_out", "population")]
        gain = f"{row['gain']:+.3f}{error}"
        line = [row["user_id"], str(row["pairs"]), *accuracies, gain, " ".join(mixture)]
        lines.append([*line, f"{row['gap']:.0e}", row["word"]])
    print_aligned(lines)
    if len(rows) > SHOWN:
        print(f"and {len(rows) - SHOWN} more people in the .json")
    print("left out: accuracy (%) on each pair by the fit to all others; ±: posterior spread")
    print("certificate: the fit is within it of the best there is, in log P of a pair")


def main():
    args = settings(globals(), saved_basis)
    basis = open_basis(args.basis)
    right = Path(args.output).suffix == ".safetensors"
    require(right, "--output: name a .safetensors file for the basis with the new people")
    beside = Path(args.output).with_suffix(".json")
    require_apart([args.output, beside], [args.basis, args.input])
    judgements = read_judgements(args.input)
    require_new(judgements, basis, args.basis)
    judgements = [judgements[number] for number in first_times(judgements)]
    encoder = encoder_of_basis(args.basis, basis, args)
    pairs = embedded_pairs(judgements, encoder)
    found = adapt(basis, pairs)
    save_basis(args.output, extend(basis, pairs, found))
    rows = rows_of(pairs, found)
    save_results(Path(args.output).with_suffix(""), rows, args)
    print_people(rows)
    if basis.strength == EVERYBODY and not basis.deviation_spread:
        print("this basis found one reward for everybody: nothing was there to adapt")
    print(f"a basis with {len(rows)} more people is in {args.output}, the table in its .json")


if __name__ == "__main__":
    start(main)
