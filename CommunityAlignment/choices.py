"""Choices among several replies: how often the preferred one comes first, and what else knows it."""

import numpy as np

from lore.fit.evaluation import ANOTHER, LORE, TESTED, Outcomes, score_cells
from lore.report.statistics import by_user, summarise
from lore.report.text_tables import accuracy_table, print_aligned, print_table

LEAST_PEOPLE = 30  # of one kind, below which nothing is said of it
PLURALITY = "plurality of others"
CALIBRATION = "calibration_error"  # of pairs only


class Choices:
    """The tested choices of Groups, made by Comparisons that know their `choice`.

    user, item (choices,), pair (n,): of each tested group who made each choice and what about, and
    which choice each pair is of.
    """

    def __init__(self, groups):
        self.groups = groups
        self.user, self.item, self.pair, self.first = {}, {}, {}, {}
        for name in TESTED:
            group = getattr(groups, name)
            self.pair[name] = group.choice.cpu().numpy()
            self.first[name] = np.unique(self.pair[name], return_index=True)[1]
            self.user[name] = group.user.cpu().numpy()[self.first[name]]
            self.item[name] = group.item.numpy()[self.first[name]]

    def first_places(self, cell):
        """A Cell of the same fit by choices: right where the preferred reply beats all others (top 1);
        the log-loss is that of a softmax over them."""
        outcomes = {}
        for name in TESTED:
            of_pairs = cell.outcomes[name]
            right = np.ones(len(self.user[name]))
            np.minimum.at(right, self.pair[name], of_pairs.right)
            with np.errstate(divide="ignore"):  # a pair that is certain
                odds = of_pairs.log_loss + np.log1p(-np.exp(-of_pairs.log_loss))  # -logit
            log_loss = np.zeros(len(right))
            np.logaddexp.at(log_loss, self.pair[name], odds)  # log(1 + sum_j exp(-logit_j))
            outcomes[name] = Outcomes(self.user[name], self.item[name], right, log_loss, np.nan)
        return of_outcomes(cell, outcomes, cell.users)

    def chance(self):
        """How often a reply drawn at random is the preferred one, mean over unseen people."""
        return float(
            by_user(self.user["unseen"], 1 / (np.bincount(self.pair["unseen"]) + 1)).mean()
        )

    def of_shared_items(self, cells, frame):
        """Cells of the choices that others made as well: the plurality, and those of first_places.

        [] where nobody was asked what another was.
        """
        found, kept = self.plurality(cells[0], frame)
        if not all(mask.any() for mask in kept.values()):
            return []
        return [narrowed(found, kept), *[narrowed(cell, kept) for cell in cells]]

    def replies(self, name):
        """Table rows of each tested choice: the preferred one, then the others in order. [tuple]"""
        group = getattr(self.groups, name)
        order = np.argsort(self.pair[name], kind="stable")
        rejected = np.split(
            group.rejected.cpu().numpy()[order], np.bincount(self.pair[name]).cumsum()[:-1]
        )
        chosen = group.chosen.cpu().numpy()[self.first[name]]
        return [
            (one, *sorted(others))
            for one, others in zip(chosen.tolist(), map(np.ndarray.tolist, rejected))
        ]

    @staticmethod
    def items_of(frame):
        """{replies of a choice: its item}."""
        found = {}
        for _, turn in frame.groupby("turn"):
            replies = (turn["chosen"].iloc[0], *sorted(turn["rejected"]))
            found[replies] = turn["item"].iloc[0]
        return found

    def plurality(self, cell, frame):
        """(Cell, masks): right where more *other* people who were asked the same preferred that reply than
        any other; a share of 1 where several lead. masks: the choices that others made as well.

        frame: everybody's pairs: user_id, item, turn, chosen. cell: first_places of some fit.
        """
        turns = frame.drop_duplicates("turn")
        first = turns.drop_duplicates(["item", "user_id"])  # who is asked again has no second vote
        own = dict(zip(zip(first["item"], first["user_id"]), first["chosen"]))
        counts = {}
        for (item, _), reply in own.items():
            of_item = counts.setdefault(item, {})
            of_item[reply] = of_item.get(reply, 0) + 1
        item_of = self.items_of(frame)
        outcomes, kept = {}, {}
        for name in TESTED:
            group = getattr(self.groups, name)
            right = np.full(len(self.user[name]), np.nan)
            for number, replies in enumerate(self.replies(name)):
                reply, who = replies[0], group.user_ids[self.user[name][number]]
                item = item_of[replies]
                others = dict(counts[item])
                others[own[item, who]] -= 1
                most = max(others.values())
                if most > 0:
                    leaders = [one for one, count in others.items() if count == most]
                    right[number] = (reply in leaders) / len(leaders)
            kept[name] = np.isfinite(right)
            outcomes[name] = cell.outcomes[name]._replace(right=right)
        return cell._replace(K=PLURALITY, variant=LORE, best=None, outcomes=outcomes), kept


def of_outcomes(cell, outcomes, users):
    """The Cell with other outcomes of the tested groups, and the accuracies that follow."""
    accuracy = {name: by_user(of.user, of.right) for name, of in outcomes.items()}
    return cell._replace(outcomes=outcomes, accuracy=accuracy, users=users)


def narrowed(cell, kept):
    """The Cell of some outcomes alone, by the masks of `kept`, and of the users who have any."""
    outcomes, users = {}, {}
    for name, mask in kept.items():
        found = cell.outcomes[name]
        who, user = np.unique(found.user[mask], return_inverse=True)
        choice = None if found.choice is None else found.choice[mask]
        if choice is not None:
            choice = np.unique(choice, return_inverse=True)[1]
        outcomes[name] = Outcomes(
            user, found.item[mask], found.right[mask], found.log_loss[mask], np.nan, choice
        )
        users[name] = tuple(np.array(cell.users[name], dtype=object)[who])
    return of_outcomes(cell, outcomes, users)


def choice_rows(cells, over="seeds"):
    """summarise, without what it says of single pairs: calibration, and shuffled labels, whose opposite
    is no choice's; the plurality gives no probabilities."""
    rows = []
    for row in summarise(cells, over):
        without = (CALIBRATION, "over_shuffled", *["log_loss"] * (row["K"] == PLURALITY))
        rows.append({name: value for name, value in row.items() if not name.endswith(without)})
    return rows


# ------------------------------------------------------------------------------------------------
# Other people
# ------------------------------------------------------------------------------------------------


def another_of_language(cells, groups, language):
    """Cells of the same bases in which everybody has the mixture of the person before who speaks the
    same language, and nothing of their own; language: {user id: language}."""
    fitted = []
    for cell in cells:
        if cell.variant == LORE and cell.fit is not None and cell.fit.W.shape[1] > 1:
            W = cell.fit.W[before(groups.train.user_ids, language)]
            W_unseen = cell.W_unseen[before(groups.unseen.user_ids, language)]
            fit = cell.fit._replace(W=W, deviations=None)
            another = {"variant": ANOTHER, "best": None, "deviations_unseen": None}
            fitted.append(cell._replace(fit=fit, W_unseen=W_unseen, **another))
    return score_cells(fitted, groups) if fitted else []


def before(user_ids, language):
    """Place of the person before each one among those of the same language; of the first, the last.

    Who alone speaks a language has the person before them, whatever that one speaks.
    """
    spoken = np.array([language[user] for user in user_ids])
    result = np.arange(len(user_ids))
    for name in np.unique(spoken):
        places = np.flatnonzero(spoken == name)
        result[places] = np.roll(places, 1) if len(places) > 1 else places - 1
    return result % len(user_ids)


def consistency(frame):
    """How often a person who was asked the same again preferred the same reply as the time before, of how
    many such choices by how many people: dict; the share is None where there are none."""
    turns = frame.drop_duplicates("turn").sort_values("turn")
    before = turns.groupby(["user_id", "item"])["chosen"].shift()
    again = before.notna()
    same = (turns["chosen"] == before)[again]
    share = float(same.mean()) if len(same) else None
    return {"share": share, "choices": len(same), "people": turns[again]["user_id"].nunique()}


def by_trait(cell, frame, traits, least=LEAST_PEOPLE):
    """{rows: of each value of a trait that `least` unseen people or more have, accuracy per pair with its
    interval, and their mean mixture; too_few: [trait and value, people] of the others}, and of which fit.

    cell: of one fit; frame: everybody's pairs, with the columns of `traits`, "" = not said; what a
    person says most often counts.
    """
    rows, few = [], []
    for trait in traits:
        said = most_said(frame, trait)
        value = np.array([said.get(user, "") for user in cell.users["unseen"]])
        for one in sorted({*value} - {""}):
            has_it = value == one
            people = int(has_it.sum())
            if people < least:
                few.append([f"{trait} {one}", people])
                continue
            kept = {"unseen": has_it[cell.outcomes["unseen"].user]}
            row = {"kind": f"{trait} {one}", "people": people} | choice_rows(
                [narrowed(cell, kept)]
            )[0]
            rows.append(row | {"mixture": cell.W_unseen[np.flatnonzero(has_it)].mean(0).tolist()})
    fit = {"K": cell.K, "alpha": cell.alpha, "seed": cell.seed}
    return {"rows": rows, "too_few": few, "fit": fit}


def most_said(frame, trait):
    """{user id: what they said most often of themselves}, of those who said something."""
    turns = frame.drop_duplicates("turn")
    told = turns[turns[trait] != ""]
    return told.groupby("user_id")[trait].agg(lambda values: values.mode()[0]).to_dict()


# ------------------------------------------------------------------------------------------------
# What is printed
# ------------------------------------------------------------------------------------------------


def print_top_choices(report, chance):
    """report: by_choice, of_shared_items (rows of cells of Choices), consistency."""
    print("\nchoices: the preferred reply before all others (top 1)")
    print_table(accuracy_table(report["by_choice"], ["K", "alpha"], TESTED))
    print(f"chance: {100 * chance:.1f} % (unseen)")
    if report["of_shared_items"]:
        print("\nthe same on choices that other people made as well:")
        print_table(accuracy_table(report["of_shared_items"], ["K", "alpha"], TESTED))
    again = report["consistency"]
    met = (
        f"{again['choices']} choices by {again['people']} people who had been asked the same before"
    )
    same = f": the same reply in {100 * again['share']:.1f} %" if again["choices"] else ""
    print(f"\n{met}{same}")


def print_traits(report):
    fit = "unseen people, K = {K}, alpha = {alpha:g}, seed {seed}".format(**report["fit"])
    lines = [[fit, "people", "accuracy per pair", "mean mixture"]]
    for row in report["rows"]:
        interval = [100 * value for value in row["unseen_interval"]]
        accuracy = "{:.1f} [{:.1f}, {:.1f}]".format(100 * row["unseen"], *interval)
        mixture = " ".join(f"{share:.2f}" for share in row["mixture"])
        lines.append([row["kind"], str(row["people"]), accuracy, mixture])
    print()
    print_aligned(lines)
    few = len(report["too_few"])
    print(f"nothing is said of {few} kinds of people of whom there are fewer than {LEAST_PEOPLE}")
