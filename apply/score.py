"""What replies are worth to the people of a saved basis.

    python apply/score.py --basis BASIS --input ROWS --output SCORED                     the population
    python apply/score.py --basis BASIS --input ROWS --output SCORED --users ann bob          these two
    python apply/score.py --basis BASIS --input ROWS --output SCORED --everybody

Reads:  --basis, a .safetensors file of a train_basis.py or of adapt.py
        --input, JSON lines (plain or gzip), CSV or parquet: prompt, or messages; response
Writes: --output, the same rows as JSON lines (gzip where the name says so) with `population`, and with
        `rewards`, {id: reward}. On the scale of log-odds: of two replies to one prompt, a person
        prefers the first with probability sigmoid(their difference). By itself a reward says nothing.
Cost:   one pass of the encoder over the replies; memory for 4 MB of text and one row's rewards.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from outputs import require_rows

import saved_basis
from lore.common import start
from lore.settings import settings
from lore.text.input_rows import reply_of
from lore.text.json_text import written_rows
from saved_basis import chosen_users, encoder_of_basis, open_basis, print_worth, scored_rows

# ------------------------------------------------------------------------------- settings ---
basis = ""  # a basis of train_basis.py or adapt.py
input = ""  # rows with a prompt and a response
output = ""  # where the rows go with their rewards
users = []  # ids of people whose rewards are wanted, beside the population's
everybody = False  # those of all people of the basis
# -------------------------------------------------------------------------------------------

ADDED = ("population", "rewards")  # fields that are written


def replies_of(where, fields):
    return [reply_of(where, fields)]


def main():
    args = settings(globals(), saved_basis)
    basis = open_basis(args.basis)
    users = chosen_users(basis, args.users, args.everybody)
    require_rows(args.output, [args.basis, args.input], "population")
    encoder = encoder_of_basis(args.basis, basis, args)
    count = 0
    with written_rows(args.output) as write:
        for row in scored_rows(args.input, replies_of, encoder, basis, users, ADDED):
            added = {"population": row.population.item()}
            if users:
                added["rewards"] = dict(zip(users, row.rewards[0].tolist()))
            write(row.fields | added)
            count += 1
    print_worth(basis)
    print(f"{count} rows, with rewards of {len(users)} people and the population: {args.output}")


if __name__ == "__main__":
    start(main)
