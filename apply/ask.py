"""Which pairs of replies to show a person next: those whose answers would tell most about what they prefer.

    python apply/ask.py --basis BASIS --input PAIRS --output ASKED --questions 10
    python apply/ask.py --basis BASIS --input PAIRS --output ASKED --known ANSWERS              goes on from answers
    python apply/ask.py --basis ADAPTED --user ann --input PAIRS --output ASKED                 from those of adapt.py

Reads:  --basis, a .safetensors file of a train_basis.py or of adapt.py
        --input, the pool: JSON lines (plain or gzip), CSV or parquet: prompt, or messages; candidates,
        two of them
        --known, what somebody has answered, as adapt.py reads it, or what this script has written, with a
        `choice`, 0 or 1, in each row; a row without one was asked in vain
Writes: --output, the chosen rows as JSON lines in the order in which to ask them, with `told`, what an
        answer tells: by how much the better reply of a pair is expected to be worth more to the person, in
        log-odds; beside it a .json and a .png with a trial: planted people, who mix the basis as the people
        of its file do and deviate as its prior says, answer as many questions, chosen one after the other,
        or random ones, and are predicted on other pairs of the pool
        With --format also OUTPUT.argilla.json or OUTPUT.labelstudio.json, which these tools import.
Cost:   one pass of the encoder over the pool; seconds for the rest.

The first row is the question to ask now. With its answer among the known the next one may be another. Look at
the trial before you believe in choosing questions: the last line printed says whether it makes a difference.
"""

import sys
from os.path import splitext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from outputs import require_results, require_rows
from question_formats import question_of, require_format, write_questions

import saved_basis
from interviews import Interviewee, agreement_after_each
from lore.common import InputError, require, start
from lore.fit.likelihood import LOGIT_SCALE
from lore.report.pictures import plot_questions
from lore.report.results import save_results
from lore.settings import settings
from lore.text.input_rows import candidates_of, identifier, is_nothing, judgements_of, rows_of
from lore.text.json_text import written_rows
from lore.text.spellings import as_read
from questions import CHOSEN, RANDOM, WAYS, Pool, Posterior, is_one_for_all, most_telling
from saved_basis import conversations_in, embedded, encoder_of_basis, open_basis
from stored_answers import PAIR, StoredAnswers, text_numbers, to_fit

# ------------------------------------------------------------------------------- settings ---
basis = ""  # a basis of train_basis.py or adapt.py
input = ""  # the pool: rows with a prompt and two candidates
output = ""  # where the chosen rows go
known = ""  # what the person has answered so far; nothing of it is asked again
user = ""  # who they are in --known, and among the people whom adapt.py has taken into the basis
questions = 10  # how many to choose
format = ""  # also as a file that a tool imports: argilla, labelstudio
trials = 100  # planted people of the trial, each with a half of its pairs to be asked about
seed = 0  # of the trial
# -------------------------------------------------------------------------------------------

SURE = 1.96  # standard errors of a difference that is called one
TRIAL_PAIRS = 400  # of the pool, at most, that the trial is about
TRIAL_QUESTIONS = 20  # at most
SOMEBODY = "the person"  # whose id nobody has said


# ------------------------------------------------------------------------------------------------
# The trial
# ------------------------------------------------------------------------------------------------


def try_out(pool, W, count, trials, seed):
    """Planted people mix the basis as W (people, K) do and answer questions of half a pool.

    Each trial draws a person, a half of the pool, or of TRIAL_PAIRS of it, to ask about, the random
    questions and the answers; on the other half, right is the probability that the planted person agrees
    with the prediction. -> one dict for each number of questions: mean of each way and its standard error,
    and of who knows the planted reward; [mean, low, high] of chosen minus random questions after all of them.
    """
    generator = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(pool.pairs), generator=generator)[:TRIAL_PAIRS]
    pool = Pool(pool.table, pool.pairs[some], pool.V, pool.prior)
    people = torch.randint(len(W), (trials,), generator=generator)
    planted = [plant(pool, w, generator) for w in W[people].double()]
    agreed = {way: agreement_after_each(pool, planted, count, way) for way in WAYS}  # (trials, count + 1)
    best = torch.stack([torch.maximum(each.first, 1 - each.first).mean() for each in planted]).mean().item()
    rows = []
    for asked in range(count + 1):
        rows.append({"questions": asked, "best": best})
        for way in WAYS:
            mean, error = mean_and_error(agreed[way][:, asked])
            rows[-1] |= {way: mean, f"{way}_error": error}
    gain, error = mean_and_error(agreed[CHOSEN][:, -1] - agreed[RANDOM][:, -1])
    return rows, [gain, gain - SURE * error, gain + SURE * error]


def mean_and_error(values):
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def plant(pool, w, generator):
    """An Interviewee who mixes the basis by w (K,), with an e drawn from the prior."""
    e = pool.prior.deviation_spread * torch.randn(1, pool.table.shape[1], generator=generator)
    logits = pool.z @ w + pool.times(e)[:, 0] / LOGIT_SCALE  # (n, K) @ (K,)
    first = torch.sigmoid(logits)
    says_first = torch.rand(len(first), generator=generator) < first.float()
    answers = torch.where(says_first.unsqueeze(1), pool.pairs, pool.pairs.flip(1))
    ask, test = torch.randperm(len(first), generator=generator).tensor_split(2)
    return Interviewee(answers, ask, pool.pairs[test], first[test])


def describe(difference, count):
    """What the trial shows, in a sentence."""
    mean, low, high = [100 * value for value in difference]
    said = f"chosen minus random questions, after {count}: {mean:+.1f} [{low:+.1f}, {high:+.1f}] points"
    if low > 0:
        return f"{said}: choosing helps here"
    if high < 0:
        return f"{said}: choosing harms here; ask at random"
    return f"{said}: no difference that this trial could show"


# ------------------------------------------------------------------------------------------------
# What was asked before
# ------------------------------------------------------------------------------------------------


def asked_before(args, basis):
    """What the person has been asked: (Judgements of --known, StoredAnswers of the basis, numbers of the texts of
    all questions, answered or not, either reply first).

    InputError: nobody knows, answers of several people, broken rows.
    """
    rows = []
    pairs = []
    for where, row in rows_of(args.known) if args.known else ():
        if is_nothing(row.get("user_id")):
            row = row | {"user_id": args.user or SOMEBODY}
        if not is_unanswered(row):
            rows.append((where, row))
        elif args.user in ("", identifier(where, row, "user_id")):
            pairs.append(two_of(where, row))
    judgements = judgements_of(rows)
    count = len({each.user_id for each in judgements})
    require(args.user or count < 2, f"{args.known} has answers of {count} people; whose? --user NAME")
    judgements = [each for each in judgements if args.user in ("", each.user_id)]
    pairs += map(PAIR, judgements)
    whose = f" of {args.user}" if args.user else ""
    require(pairs or not args.known, f"{args.known} holds no answer{whose}")
    stored = StoredAnswers.in_basis(basis).of_users([args.user])
    if args.user and not judgements and stored.frame.empty:
        basis.positions([args.user])
        raise InputError(f"{args.basis} holds no answers of {args.user}; name their file with --known")
    return judgements, stored, set().union(*either_way(pairs), stored.frame["text"])


def is_unanswered(row):
    """Whether it is a question of this script without a choice."""
    nothing = [is_nothing(row.get(name)) for name in ("candidates", "chosen", "choice")]
    return nothing == [False, True, True]


def either_way(pairs):
    """{number of the texts of a pair, that of the same pair turned round} of each."""
    return [*map(set, zip(text_numbers(pairs), text_numbers([pair[::-1] for pair in pairs])))]


# ------------------------------------------------------------------------------------------------
# The pool
# ------------------------------------------------------------------------------------------------


def two_of(where, fields):
    """InputError: other than two candidates, or two that are one."""
    pair = candidates_of(where, fields)
    require(len(pair) == 2 == len({*map(as_read, pair)}), f"{where}: two different candidates are needed")
    return pair


def questions_in(args, asked):
    """(where, fields, conversations) of each pair that is not there before, turned round or not, nor was asked.

    asked: numbers of the texts of what was. Says how many are. Prompts in two spellings are one, as everywhere.
    InputError: broken rows, none is left.
    """
    added = ["told", "user_id"] if args.user else ["told"]
    rows = [*conversations_in(args.input, two_of, added)]
    different = {}
    for row, numbers in zip(rows, either_way([pair for _, _, pair in rows])):
        different.setdefault(min(numbers), (row, numbers))
    if len(different) < len(rows):
        print(f"left out: {len(rows) - len(different)} x the same question again")
    new = [row for row, numbers in different.values() if not asked & numbers]
    if len(new) < len(different):
        print(f"left out: {len(different) - len(new)} x a question that was asked before")
    require(len(new) > 1, f"{args.input} has {len(new)} different pairs to ask about; the trial needs two")
    return new


def main():
    args = settings(globals(), saved_basis)
    basis = open_basis(args.basis)
    prior = basis.prior
    one = f"{args.basis} has one reward for everybody: no question tells people apart"
    require(not is_one_for_all(prior), one)
    require(args.questions > 0 and args.trials > 1, "--questions: at least 1; --trials: at least 2")
    args.user = identifier("--user", {"user": args.user}, "user") or ""
    prefix, _ = splitext(args.output)
    results = [f"{prefix}.json", f"{prefix}.png"]
    if args.format:
        imported = f"{prefix}.{args.format}.json"
        require_format(imported, args.format)
        results.append(imported)
    require_rows(args.output, [args.basis, args.input, args.known], "told", results)
    require_results(prefix, args.output, picture=True)
    judgements, answers, asked = asked_before(args, basis)
    rows = questions_in(args, asked)
    shown = [question_of(where, pair) for where, _, pair in rows] if args.format else []
    encoder = encoder_of_basis(args.basis, basis, args)
    table, pairs = embedded(rows, encoder)
    if judgements:
        answers = answers.and_then(StoredAnswers.embed(to_fit(judgements), encoder))
    vectors, known_pairs = answers.vectors()  # (m, 2) of rows behind those of the pool
    pool = Pool(torch.cat([table.float(), vectors.float()]), torch.stack(pairs), basis.V, prior)
    numbers, told = most_telling(pool, Posterior.of(pool, len(table) + known_pairs), args.questions)
    if len(numbers) < args.questions:
        print(f"no more than {len(numbers)} questions of the pool tell anything new")
    count = min(args.questions, TRIAL_QUESTIONS, len(pairs) // 2)
    W = torch.cat([basis.W, basis.W_unseen])
    trial, difference = try_out(pool, W, count, args.trials, args.seed)
    with written_rows(args.output) as write:
        for number, gain in zip(numbers, told):
            added = {"told": gain} | ({"user_id": args.user} if args.user else {})
            write(rows[number][1] | added)
    save_results(prefix, trial, args, difference=difference)
    plot_questions(prefix)
    before, after = trial[0], trial[-1]
    print(
        f"planted people, on other pairs: {100 * before['random']:.1f} % before any question,"
        f" {100 * after['random']:.1f} after {count} random ones,"
        f" {100 * after['chosen']:.1f} after the chosen ones, {100 * after['best']:.1f} at best"
    )
    print(describe(difference, count))
    print(f"the questions are in {args.output}, the trial in {prefix}.json and .png")
    if args.format:
        needed = write_questions(imported, args.format, [shown[number] for number in numbers])
        print(f"for {args.format} in {imported}, to be imported with {needed}")


if __name__ == "__main__":
    start(main)
