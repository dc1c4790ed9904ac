"""Which pairs of replies to show a new person: those whose answers would tell most about their mixture.

    python apply/ask.py --basis BASIS --input PAIRS --output ASKED --questions 10

Reads:  --basis, a .safetensors file of a train_basis.py or of adapt.py
        --input, the pool: JSON lines (plain or gzip), CSV or parquet: prompt, or messages; candidates,
        two of them
Writes: --output, the chosen rows as JSON lines in the order in which to ask them, with `told`, by how much
        an answer raises the log-determinant of what is known (D-optimal design); beside it a .json and
        a .png with a trial: planted people, who mix the basis as the people of its file do, answer these
        questions, or as many random ones of the pool, and are predicted on other pairs
Cost:   one pass of the encoder over the pool; seconds for the rest.

Look at the trial before you believe in choosing questions: published studies of it report little difference
to random ones, and the last line printed says whether there is one here.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from lore import applied
from lore.applied import (
    encoder_of_basis,
    extended,
    open_basis,
    scored_rows,
    written_rows,
)
from lore.common import InputError, require_apart, start
from lore.inputs import candidates_of, rows_of
from lore.mixtures import EVERYBODY
from lore.pictures import plot_questions
from lore.questions import most_telling, try_out
from lore.report import save_results
from lore.settings import settings
from lore.values import require

# ------------------------------------------------------------------------------- settings ---
basis = ""  # a basis of train_basis.py or adapt.py
input = ""  # the pool: rows with a prompt and two candidates
output = ""  # where the chosen rows go
questions = 10  # how many to choose
trials = 200  # planted people of the trial, each with a half of the pool to be asked about
seed = 0  # of the trial
# -------------------------------------------------------------------------------------------


def two_of(place, fields):
    """InputError: other than two candidates, or two that are one."""
    pair = candidates_of(place, fields)
    if len(pair) != 2 or pair[0] == pair[1]:
        raise InputError(f"{place}: two different candidates are needed")
    return pair


def describe(trial, count):
    """What the trial shows, in a sentence."""
    mean, low, high = [100 * value for value in trial.difference()]
    said = f"chosen minus random questions, after {count}: {mean:+.1f} [{low:+.1f}, {high:+.1f}] points"
    if low > 0:
        return f"{said}: choosing helps here"
    if high < 0:
        return f"{said}: choosing harms here; ask at random"
    return f"{said}: no difference that this trial could show"


def main():
    args = settings(globals(), applied)
    basis = open_basis(args.basis)
    prior = basis.prior._replace(own=0.0)  # questions are about the mixture
    if prior.strength == EVERYBODY or len(prior.mean) == 1:
        raise InputError(
            f"{args.basis} has one reward for everybody: no question tells people apart"
        )
    require(args.questions > 0 and args.trials > 1, "--questions: at least 1; --trials: at least 2")
    path = Path(args.output).with_suffix("")
    beside = [f"{path}.json", f"{path}.png"]
    require(args.output, "where to? name a file with --output")
    require_apart([args.output, *beside], [args.basis, args.input])
    pool = [two_of(place, fields) for place, fields in rows_of(args.input)]
    if len(pool) < 2 * args.questions:
        raise InputError(
            f"{args.input} has {len(pool)} pairs; the trial asks {args.questions} of one half of them"
        )
    encoder = encoder_of_basis(args.basis, basis, args)
    columns = basis.of_columns()
    rows = [*scored_rows(args.input, two_of, encoder, columns, columns.user_ids, ["told"])]
    z = torch.stack([row.rewards[0] - row.rewards[1] for row in rows])  # (pool, K)
    numbers, told = most_telling(z, prior, args.questions)
    W = torch.cat([basis.W, basis.W_unseen])
    trial = try_out(z, prior, W, args.questions, args.trials, args.seed)
    with written_rows(args.output) as write:
        for number, more in zip(numbers, told):
            write(extended(rows[number], {"told": more}))
    save_results(path, trial.rows(), args, difference=trial.difference())
    plot_questions(path)
    before, after = trial.rows()[0], trial.rows()[-1]
    print(
        f"planted people, on other pairs: {100 * before['random']:.1f} % before any question,"
        f" {100 * after['random']:.1f} after {args.questions} random ones,"
        f" {100 * after['chosen']:.1f} after the chosen ones, {100 * after['best']:.1f} at best"
    )
    print(describe(trial, args.questions))
    print(f"the questions are in {args.output}, the trial in {path}.json and .png")


if __name__ == "__main__":
    start(main)
