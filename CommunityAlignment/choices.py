"""Choices among several replies: how often the preferred one comes first, and what else knows it."""

from collections import Counter

import numpy as np

from lore.fit.evaluation import ANOTHER, LORE, TESTED, Outcomes, score_cells
from lore.report.statistics import by_user, summarise
from lore.report.text_tables import accuracy_table, accuracy_text, print_aligned, print_table

LEAST_PEOPLE = 30  # of one kind, below which nothing is said of it
PLURALITY = "plurality of others"
CALIBRATION = "calibration_error"  # of pairs only


def first_places(cell):
    """A Cell of the same fit by choices: right where the preferred reply beats all others (top 1);
    the log-loss is that of a softmax over them. cell: scored on Comparisons that know their `choice`"""
    outcomes = {}
    for name in TESTED:
        of_pairs = cell.outcomes[name]
        pair = of_pairs.choice  # (n,) which choice each pair is of
        first = np.unique(pair, return_index=True)[1]  # place of each choice's first pair
        right = np.ones(len(first))
        np.minimum.at(right, pair, of_pairs.right)
        with np.errstate(divide="ignore"):  # a pair that is certain
            odds = of_pairs.log_loss + np.log1p(-np.exp(-of_pairs.log_loss))  # -logit
        log_loss = np.zeros(len(first))
        np.logaddexp.at(log_loss, pair, odds)  # log(1 + sum_j exp(-logit_j))
        outcomes[name] = Outcomes(of_pairs.user[first], of_pairs.item[first], right, log_loss, np.nan)
    return of_outcomes(cell, outcomes, cell.users)


def chance(group):
    """How often a reply drawn at random is the preferred one, mean over the people of some Comparisons."""
    choice = group.choice.cpu().numpy()
    first = np.unique(choice, return_index=True)[1]
    return float(by_user(group.user.cpu().numpy()[first], 1 / (np.bincount(choice) + 1)).mean())


def of_shared_items(cells, groups, frame):
    """Cells of the choices that others made as well: the plurality, and those of first_places.

    [] where nobody was asked what another was.
    """
    of_others, masks = plurality(cells[0], groups, frame)
    if not all(mask.any() for mask in masks.values()):
        return []
    return [narrowed(cell, masks) for cell in (of_others, *cells)]


def plurality(cell, groups, frame):
    """(Cell, masks): right where more *other* people who were asked the same preferred that reply than
    any other; a share of 1 where several lead. masks: the choices that others made as well.

    frame: everybody's pairs: user_id, item, turn, chosen. cell: first_places of some fit.
    """
    votes = frame.drop_duplicates("turn").drop_duplicates(["item", "user_id"])  # no second vote
    counts = votes.groupby("item")["chosen"].agg(Counter)
    vote_of = dict(zip(zip(votes["item"], votes["user_id"]), votes["chosen"]))
    pairs = zip(frame["user_id"], frame["chosen"], frame["rejected"])
    item_of = dict(zip(pairs, frame["item"]))  # the last one, of a pair that a person had in two
    outcomes = {}
    masks = {}
    for name in TESTED:
        group = getattr(groups, name)
        chosen, rejected, user = group.chosen.tolist(), group.rejected.tolist(), group.user.tolist()
        first = np.unique(group.choice.cpu().numpy(), return_index=True)[1]
        right = np.full(len(first), np.nan)
        for number, pair in enumerate(first):
            voter = group.user_ids[user[pair]]
            item = item_of[voter, chosen[pair], rejected[pair]]
            of_others = counts[item] - Counter([vote_of[item, voter]])
            most = max(of_others.values(), default=0)
            leaders = [reply for reply, count in of_others.items() if count == most]
            if leaders:
                right[number] = (chosen[pair] in leaders) / len(leaders)
        masks[name] = np.isfinite(right)
        outcomes[name] = cell.outcomes[name]._replace(right=right)
    return cell._replace(K=PLURALITY, variant=LORE, best=None, outcomes=outcomes), masks


def of_outcomes(cell, outcomes, users):
    """The Cell with other outcomes of the tested groups, and the accuracies that follow."""
    accuracy = {name: by_user(of.user, of.right) for name, of in outcomes.items()}
    return cell._replace(outcomes=outcomes, accuracy=accuracy, users=users)


def narrowed(cell, masks):
    """The Cell of the outcomes of some masks alone, and of the users who have any."""
    outcomes = {}
    users = {}
    for name, mask in masks.items():
        of_group = cell.outcomes[name]
        number, user = np.unique(of_group.user[mask], return_inverse=True)
        choice = of_group.choice
        if choice is not None:
            choice = np.unique(choice[mask], return_inverse=True)[1]
        arrays = (of_group.item[mask], of_group.right[mask], of_group.log_loss[mask])
        outcomes[name] = Outcomes(user, *arrays, np.nan, choice)
        users[name] = tuple(np.array(cell.users[name], dtype=object)[number])
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


def another_of_language(cells, groups, language_of):
    """Cells of the same bases in which everybody has the mixture of the person before who speaks the
    same language, and nothing of their own; language_of: {user id: language}."""
    fitted = []
    for cell in cells:
        if cell.variant == LORE and cell.fit is not None and cell.fit.W.shape[1] > 1:
            W = cell.fit.W[person_before(groups.train.user_ids, language_of)]
            W_unseen = cell.W_unseen[person_before(groups.unseen.user_ids, language_of)]
            fit = cell.fit._replace(W=W, deviations=None)
            another = {"variant": ANOTHER, "best": None, "deviations_unseen": None}
            fitted.append(cell._replace(fit=fit, W_unseen=W_unseen, **another))
    return score_cells(fitted, groups) if fitted else []


def person_before(user_ids, language_of):
    """Place of the person before each one among those of the same language; of the first, the last.

    Who alone speaks a language has the person before them, whatever that one speaks.
    """
    spoken = np.array([language_of[user] for user in user_ids])
    previous = np.arange(len(user_ids))
    for language in np.unique(spoken):
        speakers = np.flatnonzero(spoken == language)
        previous[speakers] = np.roll(speakers, 1) if len(speakers) > 1 else speakers - 1
    return previous % len(user_ids)


def consistency(frame):
    """How often a person who was asked the same again preferred the same reply as the time before, of how
    many such choices by how many people: dict; the share is None where there are none."""
    turns = frame.drop_duplicates("turn").sort_values("turn")
    before = turns.groupby(["user_id", "item"])["chosen"].shift()
    again = before.notna()
    same = (turns["chosen"] == before)[again]
    share = float(same.mean()) if len(same) else None
    return {"share": share, "choices": len(same), "people": turns[again]["user_id"].nunique()}


def by_trait(cell, frame, traits):
    """{rows: of each value of a trait that LEAST_PEOPLE unseen people or more have, accuracy per pair with its
    interval, and their mean mixture; too_few: [trait and value, people] of the others}, and of which fit.

    cell: of one fit; frame: everybody's pairs, with the columns of `traits`, "" = not said; what a
    person says most often counts.
    """
    rows = []
    few = []
    for trait in traits:
        said = most_said(frame, trait)
        value = np.array([said.get(user, "") for user in cell.users["unseen"]])
        for answer in sorted({*value} - {""}):
            said_it = value == answer
            people = int(said_it.sum())
            if people < LEAST_PEOPLE:
                few.append([f"{trait} {answer}", people])
                continue
            of_kind = narrowed(cell, {"unseen": said_it[cell.outcomes["unseen"].user]})
            (row,) = choice_rows([of_kind])
            mixture = cell.W_unseen[np.flatnonzero(said_it)].mean(0).tolist()
            rows.append({"kind": f"{trait} {answer}", "people": people, **row, "mixture": mixture})
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
    asked = f"{again['choices']} choices by {again['people']} people"
    same = f": the same reply in {100 * again['share']:.1f} %" if again["choices"] else ""
    print(f"\n{asked} who had been asked the same before{same}")


def print_traits(report):
    fit = "unseen people of one fit: seed {seed}, K = {K}, alpha = {alpha:g}".format(**report["fit"])
    lines = [[fit, "people", "accuracy per pair", "mean mixture"]]
    for row in report["rows"]:
        mixture = " ".join(f"{share:.2f}" for share in row["mixture"])
        lines.append([row["kind"], str(row["people"]), accuracy_text(row, "unseen").strip(), mixture])
    print()
    print_aligned(lines)
    few = len(report["too_few"])
    print(f"nothing is said of {few} kinds of people of whom there are fewer than {LEAST_PEOPLE}")
