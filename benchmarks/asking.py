"""Chosen questions against random ones: accuracy on a person's other pairs once they have answered a few.

    python benchmarks/asking.py                      planted people only where there is no text or encoder; a minute
    python benchmarks/asking.py --shared FOLDER      also FOLDER/data/arguments, read as accuracy.py reads it
    python benchmarks/asking.py --shared FOLDER --decoder MODEL      also FOLDER/data/mtbench, read by a reward model

The ridge solver learns from one half of the people, and of the pairs (questions of MT-Bench); the others are asked
about pairs of that half that they have judged, one after the other, and foretold on all they have judged of the other
half. Random questions are the mean of --draws orders. Brackets: 95 % over people, --seeds splits or populations each.
"""

from pathlib import Path

import torch
from accuracy import default_encoder, embedded, planted
from measure import flags, load_module

from lore.common import start
from lore.fit.likelihood import LOGIT_SCALE
from lore.fit.mixtures import EVERYBODY, Prior
from lore.fit.ridge import fit_ridge
from lore.report.text_tables import difference_text, print_aligned

interviews = load_module("apply/interviews.py")
questions = load_module("apply/questions.py")

ASKED = (0, 3, 5, 10)  # questions, after which people are foretold
K = 5
ALL = 10**9  # pairs of a person: as many as there are
SURE = 1.96
REAL = {"arguments, split by pair": 20, "MT-Bench, split by question": 20}  # pairs on each side, at least
OWN_PEOPLE = 60
OWN_PAIRS = 60  # of each of them, on each side
OWN_DIRECTIONS = 5  # of the texts, in which tastes of one's own differ
OWN_SIZE = 1.5  # their std, beside that of the shared reward of a typical pair


def interviewees(groups, fit, generator):
    """Pool of what the unseen people were asked, and an Interviewee for each of them."""
    few = groups.few_shot_train
    test = groups.unseen
    table = few.table
    behind = 0  # row of the table of the test pairs
    if test.table is not few.table:
        behind = len(table)
        table = torch.cat([table, test.table])
    judged = torch.stack([few.chosen, few.rejected], 1)  # (m, 2)
    pairs, number = judged.sort(1).values.unique(dim=0, return_inverse=True)
    tested = behind + torch.stack([test.chosen, test.rejected], 1)
    people = []
    for person in range(len(few.user_ids)):
        theirs = few.user == person
        answers = pairs.clone()
        answers[number[theirs]] = judged[theirs]
        order = number[theirs].unique()
        order = order[torch.randperm(len(order), generator=generator)]
        rest = tested[test.user == person]
        people.append(interviews.Interviewee(answers, order, rest, torch.ones(len(rest))))
    return questions.Pool(table, pairs, fit.V, fit.prior), people


def own_tastes(split, generator):
    """Planted people over real texts: (Pool, Interviewees) who share a reward and differ in some directions.

    They answer with noise; their prior is told, and is isotropic where they are not.
    """
    table = split.table.float()
    pairs = torch.tensor(split.frame[["chosen", "rejected"]].to_numpy()).sort(1).values.unique(dim=0)
    X = table[pairs[:, 0]] - table[pairs[:, 1]]
    unit = LOGIT_SCALE / X.square().sum(1).mean().sqrt()
    V = unit * torch.randn(X.shape[1], 1, generator=generator)
    directions = torch.linalg.svd(X, full_matrices=False)[2][:OWN_DIRECTIONS]
    prior = Prior(torch.ones(1), EVERYBODY, OWN_SIZE * unit.item())
    half = torch.randperm(len(pairs), generator=generator).tensor_split(2)
    pool = questions.Pool(table, pairs[half[0]], V, prior)
    people = []
    for _ in range(OWN_PEOPLE):
        e = torch.randn(OWN_DIRECTIONS, generator=generator) @ directions  # (5,) @ (5, d)
        own = OWN_SIZE * (X @ e) / (X @ e).std()
        logits = X @ V[:, 0] / LOGIT_SCALE + own
        says_first = torch.rand(len(X), generator=generator) < torch.sigmoid(logits)
        answers = torch.where(says_first.unsqueeze(1), pairs, pairs.flip(1))
        drawn = [torch.randperm(len(rows), generator=generator)[:OWN_PAIRS] for rows in half]
        test = answers[half[1][drawn[1]]]
        people.append(interviews.Interviewee(answers[half[0]], drawn[0], test, torch.ones(len(test))))
    return pool, people


def measured(populations, draws, generator):
    """(people, ways, ASKED) share of right predictions, the random questions' mean over draws."""
    parts = []
    for pool, people in populations:
        chosen = interviews.agreement_after_each(pool, people, ASKED[-1], questions.CHOSEN)
        at_random = torch.zeros_like(chosen)
        for _ in range(draws):
            again = []
            for person in people:
                order = torch.randperm(len(person.order), generator=generator)
                again.append(person._replace(order=person.order[order]))
            at_random += interviews.agreement_after_each(pool, again, ASKED[-1], questions.RANDOM) / draws
        parts.append(torch.stack([chosen, at_random], 1)[:, :, [*ASKED]])
    return torch.cat(parts).numpy()


def print_shares(name, shares):
    """A line for each number of questions. shares: as `measured` returns them"""
    lines = [[name, "people", "answers", "before", "random", "chosen", "chosen - random"]]
    for position, asked in enumerate(ASKED[1:], 1):
        chosen, at_random = shares[:, :, position].T
        gained = chosen - at_random
        mean = gained.mean()
        half = SURE * gained.std(ddof=1) / len(gained) ** 0.5
        percents = [f"{100 * of.mean():.1f}" for of in (shares[:, 0, 0], at_random, chosen)]
        gain = difference_text([mean, mean - half, mean + half])
        lines.append(["", str(len(gained)), str(asked), *percents, gain])
    print_aligned(lines)


def main():
    parser = flags(__doc__, seeds=3, draws=5)
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--encoder", default=default_encoder())
    parser.add_argument("--decoder")
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    seeds = range(args.seeds)

    def fitted(groups, V_ref):
        fit = fit_ridge(groups.train, [K], V_ref)[K]
        print(f"rank {fit.V.shape[1]}, {fit.prior}", flush=True)
        return interviewees(groups, fit, generator)

    def asked(name, populations):
        print_shares(name, measured(populations, args.draws, generator))

    asked("low rank, planted", (fitted(*planted(100, 50, 60, seed)) for seed in seeds))
    if not args.shared:
        return
    tables = embedded(args.shared, args.encoder, args.decoder)
    split = tables["arguments, split by pair"].split
    asked("tastes of one's own over arguments, planted", [own_tastes(split, generator) for _ in seeds])
    for name, least in REAL.items():
        if name in tables:
            real = tables[name]._replace(least=least, few=ALL)
            asked(name, (fitted(*real.groups(seed)) for seed in seeds))


if __name__ == "__main__":
    start(main)
