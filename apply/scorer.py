"""What trainers ask for: conversations of many people to their rewards, and what becomes of those that have none."""

from queries import NoReply

from lore.common import InputError, require
from lore.text.conversations import distinct
from lore.text.throughput import Tally
from lore.text.tokens import ReplyTooLong
from lore.upstream_values import finite_number

UNKNOWN = ("refuse", "population")  # what becomes of a user whom the basis does not know
SILENT = (NoReply, ReplyTooLong)  # a policy's fault that a run may go on with, at a reward of its own


class Scorer:
    """Conversations to rewards."""

    def __init__(self, basis, encoder):
        self.basis = basis
        self.encoder = encoder
        self.known = frozenset(basis.everybody)

    def place_unknown(self, talks, users, unknown):
        """How many users the basis does not know; in their place comes None, the population.

        Where they are refused, an InputError stands among the talks as well.
        """
        count = 0
        for number, user in enumerate(users):
            if user is None or user in self.known:
                continue
            count += 1
            users[number] = None
            if unknown == "refuse":
                talks[number] = InputError(f"the basis has no user {user}, but {len(self.known)} others")
        return count

    def rewards(self, talks, users):
        """Log-odds of each conversation for its user, None = the population: a list of floats."""
        return self.of_vectors(self.vectors(talks), users).tolist()

    def vectors(self, talks):
        """(talks, d)"""
        unique, rows = distinct(talks)
        with Tally(0) as tally:
            return self.encoder.embed_counted(unique, tally)[rows]

    def of_vectors(self, table, users):
        """The same of their vectors: (talks,)"""
        rewards = self.basis.population(table)
        personal = [row for row, user in enumerate(users) if user is not None]
        named = [users[row] for row in personal]
        rewards[personal] = self.basis.log_odds_by_row(table[personal], named)
        return rewards

    def results(self, talks, users):
        """The same, with an InputError in place of what cannot be scored; those among the talks stay."""
        results = [*talks]
        sound = [number for number, talk in enumerate(talks) if not isinstance(talk, InputError)]
        waiting = [sound] if sound else []
        while waiting:
            part = waiting.pop()
            try:
                rewards = self.rewards([*map(talks.__getitem__, part)], [*map(users.__getitem__, part)])
            except InputError as error:
                rewards = [error]
                if len(part) > 1:  # in halves, so that it costs its neighbours nothing but time
                    waiting += [part[::2], part[1::2]]
                    continue
            for number, reward in zip(part, rewards):
                results[number] = reward
        return results


def require_unknown(unknown):
    """InputError: the setting is none of UNKNOWN."""
    require(unknown in UNKNOWN, f"unknown = {unknown}: use {' or '.join(UNKNOWN)}")


def number_of(unscored):
    """The setting as a number; None where it says nothing. InputError: it is neither."""
    number = finite_number(unscored)
    usable = number is not None or unscored in (None, "")
    require(usable, f"unscored = {unscored}: neither a number nor nothing")
    return number


def reward_of(result, unscored):
    """A reward as trainers take it: a number, `unscored` for an empty or too long reply, else None."""
    if isinstance(result, SILENT):
        return unscored
    return None if isinstance(result, InputError) else result
