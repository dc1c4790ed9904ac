"""New people for a saved basis: their mixtures from a few comparisons each. The basis stays as it is.

    python apply/adapt.py --basis BASIS --input COMPARISONS --output ADAPTED
    python apply/adapt.py --basis ADAPTED --input MORE --output ADAPTED2            adds to what somebody has answered
    python apply/adapt.py --basis ADAPTED --input OTHERS --output ADAPTED2 --replace        forgets it

Reads:  --basis, a .safetensors file of a train_basis.py or of adapt.py
        --input, comparisons, as OwnData/prepare.py takes them, or what ask.py has written with a choice of 0 or
        1 and a user_id in each row
Writes: --output, a basis with these people in it, which every script of apply/ takes, and beside it a
        .json with what is found of each: mixture, posterior spread, certificate, what the pairs are
        worth. Leave-one-out: the pairs on each prompt, judged by the fit to the person's other
        prompts; beside it the population's mixture on the same pairs. The basis also holds the vectors
        of the replies that these people have compared, so that answers can be added.
Cost:   one pass of the encoder over the conversations; the mixtures take seconds for thousands of people.
"""

import sys
from os.path import splitext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from outputs import require_output, require_results

import saved_basis
from lore.common import start
from lore.fit.basis import save_basis
from lore.report.results import save_results
from lore.report.text_tables import Table, print_table
from lore.settings import settings
from lore.text.input_rows import read_judgements
from questions import is_one_for_all
from saved_basis import encoder_of_basis, open_basis
from stored_answers import StoredAnswers, answer_keys, require_kept, require_new, taken_in, to_fit

# ------------------------------------------------------------------------------- settings ---
basis = ""  # a basis of train_basis.py or adapt.py
input = ""  # comparisons, of new people or of some whom adapt.py has taken in
columns = []  # OURS=THEIRS, where its columns have other names: user_id=annotator
output = ""  # where the basis with these people goes, a .safetensors file
replace = False  # who is in the basis already is fitted to the given comparisons alone
# -------------------------------------------------------------------------------------------

SHOWN = 20  # people in the printed table
ADVICE = "give new people other ids, or fit them anew, to all their comparisons, with --replace"


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
    judgements = read_judgements(args.input, args.columns)
    back = basis.everybody if args.replace else StoredAnswers.in_basis(basis).users
    require_new(judgements, basis, args.basis, back, ADVICE)
    judgements = to_fit(judgements)
    users = {each.user_id for each in judgements}
    require_kept(args.output, basis, users, None if args.replace else answer_keys(judgements))
    encoder = encoder_of_basis(args.basis, basis, args)
    extended, rows = taken_in(basis, StoredAnswers.embed(judgements, encoder), args.replace)
    save_basis(args.output, extended)
    save_results(prefix, rows, args)
    print_table(people_table(rows))
    if is_one_for_all(basis.prior):
        print("this basis found one reward for everybody: nothing was there to adapt")
    more = len(extended.everybody) - len(basis.everybody)
    print(f"a basis with {more} more people is in {args.output}, the table in its .json")


if __name__ == "__main__":
    start(main)
