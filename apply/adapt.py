"""New people for a saved basis: their mixtures from a few comparisons each. The basis stays as it is.

    python apply/adapt.py --basis BASIS --input COMPARISONS --output ADAPTED

Reads:  --basis, a .safetensors file of a train_basis.py or of adapt.py
        --input, comparisons of the new people, as OwnData/prepare.py takes them
Writes: --output, a basis with these people in it, which every script of apply/ takes, and beside it a
        .json with what is found of each: mixture, posterior spread, certificate, what the pairs are
        worth. Leave-one-out: the pairs on each prompt, judged by the fit to the person's other
        prompts; beside it the population's mixture on the same pairs.
Cost:   one pass of the encoder over the conversations; the mixtures take seconds for thousands of people.
"""

import sys
from math import isfinite
from os.path import splitext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pandas as pd
import torch
from outputs import require_output, require_people, require_results

import saved_basis
from leave_one_out import adapt
from lore.common import InputError, require, start
from lore.fit.basis import save_basis, stacked_deviations
from lore.fit.comparisons import Comparisons
from lore.fit.groups import names_of
from lore.fit.mixtures import EVERYBODY
from lore.report.results import save_results
from lore.report.text_tables import Table, print_table
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


def to_fit(judgements):
    """Those that tell something new and are not of a test side; prints what is left out, and whom."""
    fitted = [each for each in judgements if each.side != "test"]
    if len(fitted) < len(judgements):
        count = len(judgements) - len(fitted)
        nobody = {each.user_id for each in judgements} - {each.user_id for each in fitted}
        print(f"left out: {count} x of a test side (split), {len(nobody)} people{names_of(nobody)}")
    require(fitted, "every comparison is of a test side (split): none is left to fit")
    return [fitted[number] for number in first_times(fitted)]


def embedded_pairs(judgements, encoder):
    """Comparisons of all people of a file, sorted by id."""
    talks = [each.chosen for each in judgements] + [each.rejected for each in judgements]
    lines = [each.file_and_line for each in judgements]
    with Tally(sum(map(text_bytes, talks))) as tally:
        table, rows = encoder.embed_distinct(talks, tally, lines + lines)
    tally.report()
    frame = pd.DataFrame({"user_id": [each.user_id for each in judgements]})
    frame["prompt"] = [each.prompt_id for each in judgements]
    frame["chosen"], frame["rejected"] = rows.view(2, -1).numpy()
    return Comparisons.from_frame(table, frame, prompt="prompt")


def require_new(judgements, basis, path):
    """InputError: somebody stands in the basis already."""
    there = {user.casefold(): user for user in basis.everybody}
    for each in judgements:
        user = there.get(each.user_id.casefold())
        if user is not None:
            text = f"{path} has a user {user} already; give new people other ids"
            raise InputError(f"{each.file_and_line}: {text}")


def extend(basis, pairs, newcomers, rows):
    """The basis with these people among its unseen ones, and what is said of them."""
    mixtures = newcomers.mixtures
    more = {"unseen_ids": (*basis.unseen_ids, *pairs.user_ids)}
    more["W_unseen"] = torch.cat([basis.W_unseen, mixtures.W.float()])
    if mixtures.deviations is not None:
        E = stacked_deviations(mixtures.deviations, pairs.user_ids)
        more["E_unseen"] = torch.cat([basis.E_unseen, E])
    for name, column in (("pairs", "pairs"), ("words", "word")):
        said = {row["user_id"]: row[column] for row in rows}
        more[name] = (getattr(basis, name) or {}) | said
    return basis._replace(**more)


def people_rows(pairs, newcomers):
    """One dict per person."""
    columns = {
        "user_id": pairs.user_ids,
        "pairs": pairs.counts.tolist(),
        "mixture": newcomers.mixtures.W.tolist(),
        "spread": newcomers.mixtures.spread.tolist(),
        "gap": newcomers.mixtures.gap.tolist(),
        "leave_one_out": newcomers.accuracy.tolist(),
        "population": newcomers.population.tolist(),
        "gain": newcomers.gain.tolist(),
        "gain_error": [error if isfinite(error) else None for error in newcomers.error.tolist()],
        "prompts_left_out": newcomers.prompts.tolist(),
        "word": [*map(newcomers.word, range(len(pairs.user_ids)))],
    }
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def people_table(rows):
    head = ["", "pairs", "left out", "population", "gain in log P", "mixture", "certificate", "word"]
    lines = []
    for row in rows[:SHOWN]:
        error = "" if row["gain_error"] is None else f" ±{row['gain_error']:.3f}"
        weights = zip(row["mixture"], row["spread"])
        mixture = " ".join(f"{weight:.2f}±{spread:.2f}" for weight, spread in weights)
        accuracies = [f"{100 * row[name]:.0f}" for name in ("leave_one_out", "population")]
        line = [row["user_id"], str(row["pairs"]), *accuracies, f"{row['gain']:+.3f}{error}"]
        lines.append([*line, mixture, f"{row['gap']:.0e}", row["word"]])
    notes = [
        "left out: accuracy (%) on the pairs of each prompt by the fit to all others; ±: posterior spread",
        "certificate: the fit is within it of the best there is, in log P of a pair",
    ]
    if len(rows) > SHOWN:
        notes.insert(0, f"and {len(rows) - SHOWN} more people in the .json")
    return Table(head, lines, notes)


def main():
    args = settings(globals(), saved_basis)
    basis = open_basis(args.basis)
    prefix, _ = splitext(args.output)
    require_output(args.output, [args.basis, args.input], (".safetensors",), [f"{prefix}.json"])
    require_results(prefix, args.output)
    judgements = read_judgements(args.input)
    require_new(judgements, basis, args.basis)
    judgements = to_fit(judgements)
    require_people(args.output, basis, {each.user_id for each in judgements})
    encoder = encoder_of_basis(args.basis, basis, args)
    pairs = embedded_pairs(judgements, encoder)
    newcomers = adapt(basis, pairs)
    rows = people_rows(pairs, newcomers)
    save_basis(args.output, extend(basis, pairs, newcomers, rows))
    save_results(prefix, rows, args)
    print_table(people_table(rows))
    if basis.strength == EVERYBODY and not basis.deviation_spread:
        print("this basis found one reward for everybody: nothing was there to adapt")
    print(f"a basis with {len(rows)} more people is in {args.output}, the table in its .json")


if __name__ == "__main__":
    start(main)
