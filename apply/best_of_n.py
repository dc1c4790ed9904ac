"""Of several replies to a prompt, the best for each person of a saved basis, and for all together.

    python apply/best_of_n.py --basis BASIS --input ROWS --output CHOSEN --everybody
    python apply/best_of_n.py --basis BASIS --input ROWS --output CHOSEN --users ann bob --vote

Reads:  --basis, a .safetensors file of a train_basis.py or of adapt.py
        --input, JSON lines (plain or gzip), CSV or parquet: prompt, or messages; candidates, a list
Writes: --output, the same rows as JSON lines (gzip where the name says so), replies by their number in
        `candidates`, from 0: `population_best`; `best`, {id: number}; `gain`, {id: log-odds by which a
        person prefers their own best to the population's, of the mean probability where the basis
        holds the person's answers and doubts}; `tied`, {id: [numbers]}, of replies that
        differ in words and are worth the same to a person, `population_tied`, [numbers], to the
        population; `vote` with --vote: `borda`, most points, and
        `majority`, what a majority of the people prefers to each other reply, or null
Cost:   one pass of the encoder over the candidates, in constant memory; people cost nothing beside it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from doubts import Doubts
from outputs import require_rows

import saved_basis
from lore.common import require, start
from lore.report.text_tables import print_aligned
from lore.settings import settings
from lore.text.input_rows import candidates_of
from lore.text.json_text import written_rows
from lore.text.spellings import as_read
from saved_basis import chosen_users, encoder_of_basis, open_basis, print_worth, scored_rows

# ------------------------------------------------------------------------------- settings ---
basis = ""  # a basis of train_basis.py or adapt.py
input = ""  # rows with a prompt and candidates
output = ""  # where the rows go with what was chosen
users = []  # ids of the people to choose for
everybody = False  # for all people of the basis
vote = False  # also what these people would choose together
# -------------------------------------------------------------------------------------------

ADDED = ("population_best", "population_tied", "best", "gain", "tied", "vote")  # fields that are written
SAME = 1e-6  # log-odds: two replies nearer than this are worth the same
SHOWN = 20  # people in the printed table


def best_of(replies, rewards):
    """Best reply for each column of rewards (replies, P): (P,), and who has ties.

    Ties: {column: [replies that are worth the same in other words]}.
    """
    best = rewards.argmax(0)
    close = rewards >= rewards.max(0) - SAME
    tied = {}
    for column in np.flatnonzero(close.sum(0) > 1).tolist():
        words = replies[best[column]]
        equals = [i for i in np.flatnonzero(close[:, column]).tolist() if replies[i] != words]
        if equals:
            tied[column] = equals
    return best, tied


def vote_of(replies, rewards):
    """What people (columns of rewards, (replies, P)) choose together, of replies that differ.

    borda: most points, one for each person and each reply that it beats, half of one for a tie;
    majority: the reply that more people prefer to each other one than the other way round (Condorcet).
    """
    first = [i for i, reply in enumerate(replies) if reply not in replies[:i]]
    rewards = rewards[first]
    wins = []
    for reward in rewards:
        lead = reward - rewards  # (people,) - (rivals, people) -> (rivals, people)
        wins.append((lead > SAME).sum(1) + (abs(lead) <= SAME).sum(1) / 2)
    wins = np.array(wins)
    beats = wins > wins.T
    np.fill_diagonal(beats, True)
    winner = np.flatnonzero(beats.all(1))
    return {"borda": first[wins.sum(1).argmax()], "majority": first[winner[0]] if len(winner) else None}


def choose(row, users, doubts, vote):
    """The fields that are added to one Row."""
    replies = [as_read(talk) for talk in candidates_of(row.where, row.fields)]
    common, tied = best_of(replies, row.population[:, None].numpy())
    added = {"population_best": int(common[0]), "population_tied": tied.get(0, []), "tied": {}}
    if users:
        rewards = row.rewards.numpy()  # (replies, P)
        best, tied = best_of(replies, rewards)
        added["best"] = dict(zip(users, best.tolist()))
        gains = torch.from_numpy(rewards.max(0) - rewards[common[0]])  # (P,)
        for column, user in enumerate(users) if doubts.known else ():
            pair = row.vectors[best[column], None], row.vectors[common]
            gains[column] = doubts.tempered(user, *pair, gains[column, None])
        added["gain"] = dict(zip(users, gains.tolist()))
        added["tied"] = {users[column]: equals for column, equals in tied.items()}
    if vote:
        added["vote"] = vote_of(replies, rewards)
    return added


def counts_of(chosen, users):
    """Of each person whether they take another reply than the population's, what they gain, whether some tie. (3, P)"""
    gains = np.array([chosen["gain"][user] for user in users])
    tied = [user in chosen["tied"] for user in users]
    return np.stack([gains > SAME, gains, tied])


def print_summary(users, rows, population_ties, counts):
    """How often, and by how much, people's choices differ from the population's; counts: sums of counts_of."""
    print(f"{rows} prompts; population: {population_ties} with ties")
    if not users:
        return
    lines = [["", "another reply than the population's", "gain there, log-odds", "ties"]]
    for user, (differ, gain, tied) in zip(users[:SHOWN], counts.T):
        mean = f"{gain / differ:.3f}" if differ else "-"
        lines.append([user, f"{differ:.0f} ({differ / rows:.0%})", mean, f"{tied:.0f}"])
    print_aligned(lines)
    if len(users) > SHOWN:
        print(f"and {len(users) - SHOWN} more people in the file")
    differ, gain, _ = counts.sum(1)
    share = differ / len(users) / rows
    over_all = f"over all {len(users)}: another reply in {share:.1%} of the choices"
    print(f"{over_all}, worth {gain / max(differ, 1):.3f} log-odds there")


def main():
    args = settings(globals(), saved_basis)
    basis = open_basis(args.basis)
    users = chosen_users(basis, args.users, args.everybody)
    require(users or not args.vote, "--vote: whose? name them with --users, or take --everybody")
    require_rows(args.output, [args.basis, args.input], "population_best")
    encoder = encoder_of_basis(args.basis, basis, args)
    doubts = Doubts(basis, users)
    rows = 0
    population_ties = 0
    counts = np.zeros((3, len(users)))
    with written_rows(args.output) as write:
        for row in scored_rows(args.input, candidates_of, encoder, basis, users, ADDED):
            chosen = choose(row, users, doubts, args.vote)
            write(row.fields | chosen)
            rows += 1
            population_ties += bool(chosen["population_tied"])
            counts += counts_of(chosen, users)
    print_summary(users, rows, population_ties, counts)
    print_worth(basis)
    print(f"what was chosen is in {args.output}")


if __name__ == "__main__":
    start(main)
