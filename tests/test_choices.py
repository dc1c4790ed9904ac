"""Choices among several replies: how much their pairs count, the softmax, and what else knows them."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, load_script
from populations import cell

from lore.common import InputError
from lore.fit.comparisons import Comparisons
from lore.fit.evaluation import ANOTHER, Cell, Outcomes
from lore.fit.few_shot import draw_shots, drawn_terms
from lore.fit.groups import Groups
from lore.fit.likelihood import LOGIT_SCALE, margins, negative_log_likelihood, top_choice
from lore.fit.mixtures import Prior, solve_mixtures
from lore.fit.product import project
from lore.fit.ridge import fit_ridge
from utils import LoRe, PersonalizeBatch, run

CHOICES = load_script(ROOT / "CommunityAlignment/choices.py")


def turns(people=8, each=12, replies=4, seed=0, d=12):
    """A frame of choices among `replies` by people of two kinds, and the table."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(people * each * replies, d)).astype(np.float32)
    tastes = rng.normal(size=(2, d))
    rows = []
    for turn in range(people * each):
        person = turn // each
        own = turn * replies + np.arange(replies)
        noise = rng.gumbel(size=replies)
        best = (table[own] @ tastes[person % 2] + noise).argmax()
        for other in own[own != own[best]]:
            rows.append((f"p{person}", turn, f"i{turn}", own[best], other))
    frame = pd.DataFrame(rows, columns=["user_id", "turn", "item", "chosen", "rejected"])
    return frame, torch.from_numpy(table)


def pairs_of(frame, table, **how):
    return Comparisons.from_frame(table, frame, choice="turn", shot="turn", prompt="item", **how)


def test_a_choice_is_one_of_a_softmax_over_its_replies():
    rewards = torch.randn(5, 4, dtype=torch.float64)
    logits = (rewards[:, :1] - rewards[:, 1:]).flatten()  # of the first reply over the others
    choice = torch.arange(5).repeat_interleave(3)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(0))
    found = top_choice(logits[order], choice[order])
    expected = rewards.log_softmax(1)[:, 0]
    assert torch.allclose(found, expected[choice[order]])
    far = top_choice(1e4 * logits, choice)
    assert far.isfinite().all()


def test_the_pairs_of_a_choice_share_one_vote_and_other_data_has_one_each():
    frame, table = turns()
    frame = frame.drop(frame.index[[0, 1]])  # the first choice has one pair left
    data = pairs_of(frame, table)
    assert data.votes[0] == 1 and torch.allclose(data.votes[1:], torch.tensor(1 / 3).double())
    assert data.votes.sum() == pytest.approx(frame["turn"].nunique())
    plain = Comparisons.from_frame(table, frame)
    assert (plain.votes == 1).all()
    some = data.choice % 2 == 0
    kept = data.subset(some)
    assert kept.choice.unique().tolist() == [*range(len(kept.choice.unique()))]
    assert kept.votes.tolist() == data.votes[some].tolist()


@pytest.mark.parametrize("softmax", [False, True])
def test_the_loss_is_the_mean_over_choices_of_each_person(softmax):
    frame, table = turns()
    data = pairs_of(frame.drop(frame.index[:2]), table, softmax=softmax)
    model = LoRe(None, 0.0, 8, 12, 3, 5, 0.5, generator=torch.Generator().manual_seed(0))
    loss, _ = model(data)
    logits = margins(data.differences(model.V) @ model.V, model.W.softmax(1), data.user) / LOGIT_SCALE
    of_choices = {}  # of each person
    for turn in data.choice.unique():
        of_pairs = logits[data.choice == turn]
        whole = F.pad(-of_pairs, (1, 0)).log_softmax(0)[0] if softmax else F.logsigmoid(of_pairs).mean()
        of_choices.setdefault(data.user[data.choice == turn][0].item(), []).append(-whole.item())
    assert loss.item() == pytest.approx(sum(map(np.mean, of_choices.values())), rel=1e-5)


def test_a_pair_twice_in_one_choice_tells_nothing_new():
    frame, table = turns(people=12, each=16, replies=2)
    twice = pd.concat([frame, frame]).sort_values("user_id", kind="stable")
    once, again = pairs_of(frame, table), pairs_of(twice, table)
    V = torch.randn(12, 3, generator=torch.Generator().manual_seed(1)) * 100
    for deviation_spread in (0.0, 30.0):
        prior = Prior(torch.full((3,), 1 / 3), 1.0, deviation_spread)
        first, second = (
            solve_mixtures(project(data, [V])[0], data.user, 12, prior, data, spread=True) for data in (once, again)
        )  # fmt: skip
        assert torch.allclose(first.W, second.W, atol=1e-4)
        assert torch.allclose(first.spread, second.spread, atol=1e-4)
        if deviation_spread:
            assert torch.allclose(first.deviations.vector(3), second.deviations.vector(3), atol=1e-2)
    first, second = (fit_ridge(data, [2])[2] for data in (once, again))
    assert first.V.shape == second.V.shape
    assert F.cosine_similarity(first.V @ first.W.T, second.V @ second.W.T, dim=0).min() > 0.99
    with pytest.raises(InputError, match="pairs only"):
        fit_ridge(pairs_of(frame, table, softmax=True), [2])


def test_a_choice_drawn_for_two_is_two():
    frame, table = turns(people=3, each=4)
    few = pairs_of(frame, table, softmax=True)
    draws = draw_shots(few, [1, 2], 3, 0)
    user, weight, choice = drawn_terms(few, draws, torch.zeros(()))
    assert len(choice.unique()) == 3 * 3 * (1 + 2)  # trials, people, shots
    sums = torch.zeros(draws.problems).index_add(0, draws.problem, weight)
    assert torch.allclose(sums, torch.ones_like(sums))
    Z = torch.randn(len(draws.row), 2)
    W = torch.full((draws.problems, 2), 0.5)
    assert negative_log_likelihood(Z, W, user, weight, choice).isfinite()
    model = PersonalizeBatch(3, 12, 2, 3, 0.1)
    assert model.fit(few, torch.randn(12, 2)).isfinite().all()


# ------------------------------------------------------------------------- What is said of them ---


def groups_of(frame, table):
    people = sorted(frame["user_id"].unique())
    half = len(people) // 2
    seen, unseen = (pairs_of(frame, table, user_ids=part) for part in (people[:half], people[half:]))
    return Groups(seen, seen, unseen, unseen)


def first_places(groups, V):
    """By one reward, those of a group."""
    margin = {name: project(group, [V])[0][:, 0] for name, group in groups._asdict().items()}
    return CHOICES.first_places(Cell(0, 0.0, 1).scored(margin, groups))


def test_the_first_place_is_right_where_all_pairs_are():
    frame, table = turns()
    groups = groups_of(frame, table)
    V = torch.randn(12, 1, generator=torch.Generator().manual_seed(2)) * 50
    first = first_places(groups, V)
    rewards = (table @ V)[:, 0] / LOGIT_SCALE

    def of_choice(pairs):
        replies = rewards[[pairs["chosen"].iloc[0], *pairs["rejected"]]]
        return float(replies.argmax() == 0), -replies.log_softmax(0)[0].item()

    expected = frame.groupby(["user_id", "turn"])[["chosen", "rejected"]].apply(of_choice)
    for name, users in (("seen", ["p0", "p1", "p2", "p3"]), ("unseen", ["p4", "p5", "p6", "p7"])):
        right, loss = np.mean([[*expected[user]] for user in users], axis=1).T
        assert first.accuracy[name] == pytest.approx(right)
        outcomes = first.outcomes[name]
        by_user = np.bincount(outcomes.user, outcomes.log_loss) / np.bincount(outcomes.user)
        assert by_user == pytest.approx(loss, abs=1e-4)
    assert CHOICES.chance(groups.unseen) == 0.25


def test_the_plurality_of_others_leaves_the_person_out():
    rows = []  # items a and b of four people; rows 0, 1 and 2, 3 are their replies
    for person, (a, b) in enumerate([(0, 2), (0, 2), (0, 3), (1, 3)]):
        rows.append((f"p{person}", 2 * person, "a", a, 1 - a))
        rows.append((f"p{person}", 2 * person + 1, "b", b, 5 - b))
    rows += [("p0", 8, "c", 4, 5), ("p2", 9, "d", 6, 7)]  # nobody else was asked
    frame = pd.DataFrame(rows, columns=["user_id", "turn", "item", "chosen", "rejected"])
    groups = groups_of(frame, torch.randn(8, 3))
    first = first_places(groups, torch.ones(3, 1))
    found, kept = CHOICES.plurality(first, groups, frame)
    assert kept["seen"].tolist() == [True, True, False, True, True]
    # p0: a: others 0, 0, 1 -> right; b: others 2, 3, 3 -> wrong; p1 alike
    assert found.outcomes["seen"].right[kept["seen"]].tolist() == [1, 0, 1, 0]
    # p2: a: others 0, 0, 1 -> right; b: others 2, 2, 3 -> wrong; p3: a: wrong, b: wrong
    assert found.outcomes["unseen"].right[kept["unseen"]].tolist() == [1, 0, 0, 0]
    # a second vote of one who is asked again, and another item with a reply in common, change nothing
    more = [("p0", 20, "a", 1, 0), ("p3", 21, "a+", 0, 1), ("p3", 21, "a+", 0, 6)]
    asked = pd.concat([frame, pd.DataFrame(more, columns=frame.columns)])
    again, _ = CHOICES.plurality(first, groups, asked)
    for name in ("seen", "unseen"):
        assert np.array_equal(*(of.outcomes[name].right[kept[name]] for of in (again, found)))
    shared = CHOICES.choice_rows(CHOICES.of_shared_items([first], groups, frame))
    assert {row["K"] for row in shared} == {CHOICES.PLURALITY, 1}
    alone = frame[frame["item"].isin(["c", "d"])]
    lonely = groups_of(alone, torch.randn(8, 3))
    assert CHOICES.of_shared_items([first_places(lonely, torch.ones(3, 1))], lonely, alone) == []


def test_how_often_people_agree_with_themselves():
    rows = [("p", 0, "a", 1), ("p", 1, "a", 1), ("p", 2, "a", 2), ("q", 3, "a", 1), ("q", 4, "b", 1)]
    frame = pd.DataFrame(rows, columns=["user_id", "turn", "item", "chosen"])
    assert CHOICES.consistency(frame) == {"share": 0.5, "choices": 2, "people": 1}
    assert CHOICES.consistency(frame.iloc[2:]) == {"share": None, "choices": 0, "people": 0}


def test_another_person_speaks_the_same_language():
    language = {"a": "en", "b": "hi", "c": "en", "d": "hi", "e": "fr"}
    assert CHOICES.person_before(tuple("abcde"), language).tolist() == [2, 3, 0, 1, 3]
    frame, table = turns()
    groups = groups_of(frame, table)
    result = run([1, 2], [0.0], None, *groups, 4, 4, "cpu", num_iterations=5)
    spoken = dict.fromkeys(frame["user_id"], "en")
    (found,) = CHOICES.another_of_language(result.cells, groups, spoken)
    assert found.variant == ANOTHER and found.K == 2
    assert torch.equal(found.fit.W, result.cells[1].fit.W.roll(1, 0))


def test_nothing_is_said_of_few_people():
    of_people = cell(np.linspace(0, 1, 50))
    users = of_people.users["unseen"]
    frame = pd.DataFrame({"user_id": users, "country": ["x"] * 31 + ["y"] * 18 + [""], "turn": range(50)})
    user = np.arange(50).repeat(4)
    right = np.arange(200) % 4 < 4 * np.linspace(0, 1, 50)[user]
    outcomes = {"unseen": Outcomes(user, np.arange(200), right * 1.0, np.ones(200), 0.0)}
    scored = of_people._replace(outcomes=outcomes, W_unseen=torch.eye(2)[torch.arange(50) % 2])
    by_trait = CHOICES.by_trait(scored, frame, ["country"])
    (row,) = by_trait["rows"]
    assert row["kind"] == "country x" and row["people"] == 31
    assert row["unseen"] == pytest.approx(right[: 31 * 4].mean())
    assert row["mixture"] == pytest.approx([16 / 31, 15 / 31])
    assert by_trait["too_few"] == [["country y", 18]]
    said = pd.DataFrame({"user_id": [*"aaabc"], "turn": [0, 1, 2, 3, 4], "x": ["p", "q", "q", "", "p"]})
    assert CHOICES.most_said(said, "x") == {"a": "q", "c": "p"}
    assert CHOICES.narrowed(scored, {"unseen": user < 2}).users["unseen"] == users[:2]
