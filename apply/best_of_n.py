"""Of several replies to a prompt, the best for each person of a saved basis, and for all together.

    python apply/best_of_n.py --basis BASIS --input ROWS --output CHOSEN --everybody
    python apply/best_of_n.py --basis BASIS --input ROWS --output CHOSEN --users ann bob --vote

Reads:  --basis, a .safetensors file of a train_basis.py or of adapt.py
        --input, JSON lines (plain or gzip), CSV or parquet: prompt, or messages; candidates, a list
Writes: --output, the same rows as JSON lines (gzip where the name says so), replies by their number in
        `candidates`, from 0: `population_best`; `best`, {id: number}; `gain`, {id: log-odds by which a
        person prefers their own best to the population's}; `tied`, {id: [numbers]} of replies that
        differ in words and are worth the same; `vote` with --vote: `borda`, most points, and
        `majority`, what a majority of the people prefers to each other reply, or null
Cost:   one pass of the encoder over the candidates, in constant memory; people cost nothing beside it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import saved_basis
from lore.common import require, require_apart, start
from lore.report.text_tables import print_aligned
from lore.settings import settings
from lore.text.input_rows import candidates_of
from saved_basis import (
    chosen_users,
    encoder_of_basis,
    extended,
    open_basis,
    scored_rows,
    written_rows,
)

# ------------------------------------------------------------------------------- settings ---
basis = ""  # a basis of train_basis.py or adapt.py
input = ""  # rows with a prompt and candidates
output = ""  # where the rows go with what was chosen
users = []  # ids of the people to choose for
everybody = False  # for all people of the basis
vote = False  # also what these people would choose together
# -------------------------------------------------------------------------------------------

FOUND = ("population_best", "best", "gain", "tied", "vote")  # fields that are written
SAME = 1e-6  # log-odds: two replies nearer than this are worth the same
SHOWN = 20  # people in the printed table


def best_of(candidates, rewards):
    """Best candidate for each column of rewards (candidates, P): (P,), and who has ties.

    Ties: {column: [candidates that are worth the same in other words]}.
    """
    best = rewards.argmax(0)
    close = rewards >= rewards.max(0) - SAME
    tied = {}
    for column in np.flatnonzero(close.sum(0) > 1).tolist():
        words = candidates[best[column]]
        others = [i for i in np.flatnonzero(close[:, column]).tolist() if candidates[i] != words]
        if others:
            tied[column] = others
    return best, tied


def vote_of(candidates, rewards):
    """What people (columns of rewards, (candidates, P)) choose together, of replies that differ.

    borda: most points, one for each person and each reply that it beats, half of one for a tie;
    majority: the reply that more people prefer to each other one than the other way round (Condorcet).
    """
    first = [i for i, reply in enumerate(candidates) if reply not in candidates[:i]]
    rewards = rewards[first]
    lead = rewards[:, None] - rewards[None]  # (candidates, others, P)
    wins = (lead > SAME).sum(2) + (abs(lead) <= SAME).sum(2) / 2  # (candidates, others)
    beats = wins > wins.T
    np.fill_diagonal(beats, True)
    winner = np.flatnonzero(beats.all(1))
    return {
        "borda": first[wins.sum(1).argmax()],
        "majority": first[winner[0]] if len(winner) else None,
    }


class Summary:
    """How often, and by how much, people's choices differ from the population's."""

    def __init__(self, users):
        self.rows = 0
        self.population_ties = 0
        self.users = users
        self.gains = np.zeros(len(users))
        self.differ = np.zeros(len(users), dtype=int)
        self.ties = np.zeros(len(users), dtype=int)

    def print(self):
        print(f"{self.rows} prompts; population: {self.population_ties} with ties")
        if not self.users:
            return
        lines = [["", "another reply than the population's", "gain there, log-odds", "ties"]]
        gains = self.gains / np.maximum(self.differ, 1)
        for place, user in enumerate(self.users[:SHOWN]):
            share = f"{self.differ[place]} ({self.differ[place] / self.rows:.0%})"
            gain = f"{gains[place]:.3f}" if self.differ[place] else "-"
            lines.append([user, share, gain, str(self.ties[place])])
        print_aligned(lines)
        if len(self.users) > SHOWN:
            print(f"and {len(self.users) - SHOWN} more people in the file")
        share = self.differ.mean() / self.rows
        mean = self.gains.sum() / max(self.differ.sum(), 1)
        print(
            f"over all {len(self.users)}: another reply in {share:.1%} of the choices, worth"
            f" {mean:.3f} log-odds there"
        )


def choose(row, users, summary, vote):
    """What is chosen of one Row."""
    candidates = candidates_of(row.place, row.fields)
    common, tied = best_of(candidates, row.population[:, None].numpy())
    ties = {"population": tied[0]} if tied else {}
    summary.rows += 1
    summary.population_ties += len(tied)
    found = {"population_best": int(common[0])}
    if users:
        rewards = row.rewards.numpy()  # (candidates, P)
        best, tied = best_of(candidates, rewards)
        gain = rewards.max(0) - rewards[common[0]]
        summary.differ += gain > SAME
        summary.gains += gain
        summary.ties[[*tied]] += 1
        found["best"] = dict(zip(users, best.tolist()))
        found["gain"] = dict(zip(users, gain.tolist()))
        ties |= {users[column]: others for column, others in tied.items()}
    if vote:
        found["vote"] = vote_of(candidates, rewards)
    return found | {"tied": ties}


def main():
    args = settings(globals(), saved_basis)
    basis = open_basis(args.basis)
    users = chosen_users(basis, args.users, args.everybody)
    require(users or not args.vote, "--vote: whose? name them with --users, or take --everybody")
    require(args.output, "where to? name a file with --output")
    require_apart([args.output], [args.basis, args.input])
    encoder = encoder_of_basis(args.basis, basis, args)
    summary = Summary(users)
    with written_rows(args.output) as write:
        for row in scored_rows(args.input, candidates_of, encoder, basis, users, FOUND):
            write(extended(row, choose(row, users, summary, args.vote)))
    summary.print()
    print(f"what was chosen is in {args.output}")


if __name__ == "__main__":
    start(main)
