"""Who preferred what, in memory."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import random_users
from populations import a_split

from lore.common import InputError
from lore.fit import groups
from lore.fit.comparisons import Comparisons


def test_from_frame_sorts_by_user_and_keeps_the_pairs_together():
    table, frame, *_ = a_split()
    data = Comparisons.from_frame(table, frame)
    assert data.user_ids == ("a", "b") and data.user.tolist() == [0, 1, 1]
    assert data.chosen.tolist() == [2, 0, 4] and data.rejected.tolist() == [3, 1, 5]
    assert Comparisons.from_frame(table, frame, ["b"]).chosen.tolist() == [0, 4]


def test_a_user_without_pairs_is_named():
    table, frame, *_ = a_split()
    with pytest.raises(InputError, match="user c has no pairs"):
        Comparisons.from_frame(table, frame, ["a", "c"])
    with pytest.raises(InputError, match="user 1 has no pairs"):
        Comparisons.from_list([torch.randn(2, 3), torch.randn(0, 3)])


def test_nan_and_unequal_widths_in_a_list_are_named():
    users = random_users([2, 2], 3)
    users[1][0, 2] = float("nan")
    with pytest.raises(InputError, match="user 1: features hold NaN"):
        Comparisons.from_list(users)
    with pytest.raises(InputError, match="user 1: features of shape"):
        Comparisons.from_list([torch.randn(2, 3), torch.randn(2, 4)])
    with pytest.raises(InputError, match="sorted by user"):
        Comparisons(torch.randn(2, 3), torch.tensor([1, 0]), ("a", "b"))
    with pytest.raises(InputError, match="no users"):
        Comparisons.from_list([])


def test_shots_are_numbered_user_by_user():
    data = Comparisons.from_list([torch.randn(3, 4), torch.randn(2, 4)])
    assert replace(data, shot=torch.tensor([1, 0, 1, 2, 2])).shot is not None
    for wrong in ([0, 0, 0, 0, 1], [0, 0, 2, 3, 3], [1, 1, 1, 0, 0], [0, 1, 2, 0, 1]):
        with pytest.raises(InputError, match="shots are numbered"):
            replace(data, shot=torch.tensor(wrong))


def test_shuffled_positions_are_orders_within_users():
    user = torch.tensor([0, 0, 0, 1, 2, 2])
    orders = groups.shuffled_positions(user, 200, torch.Generator().manual_seed(0)).tolist()
    for order in orders:
        assert sorted(order[:3]) == [0, 1, 2] and order[3] == 0 and sorted(order[4:]) == [0, 1]
    assert len({*map(tuple, orders)}) == 12  # 3! * 1 * 2! orders, all seen in 200 draws


def test_an_item_has_one_number_in_all_comparisons():
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    x[2, 0] = 0.0
    x[3] = 0.0
    mirrored = -x  # -0.0 among them
    first = Comparisons.from_list([x, mirrored.flip(0)])
    assert torch.equal(first.item[:4], first.item[4:].flip(0)) and len(first.item.unique()) == 4
    assert torch.equal(Comparisons.from_list([x.double()]).item, first.item[:4])
    nearly = x.clone()
    nearly[1, 5] = torch.nextafter(x[1, 5], torch.tensor(9.0))
    assert (Comparisons.from_list([nearly]).item == first.item[:4]).tolist() == [1, 0, 1, 1]

    table = torch.randn(5, 6)
    user = torch.zeros(3, dtype=torch.long)
    here = Comparisons(table, user, ("a",), torch.tensor([0, 2, 4]), torch.tensor([1, 3, 0]))
    order = torch.tensor([3, 1, 4, 0, 2])  # the same rows elsewhere, the two replies changed over
    row = order.argsort()
    there = Comparisons(table[order], user, ("a",), row[here.rejected], row[here.chosen])
    assert torch.equal(here.item, there.item) and len(here.item.unique()) == 3

    frame = pd.DataFrame({"user_id": "a", "chosen": 0, "rejected": 1, "prompt": ["p", "q", "p"]})
    named = Comparisons.from_frame(table, frame, prompt="prompt")
    later = Comparisons.from_frame(table, frame[1:], prompt="prompt")
    assert torch.equal(named.item[1:], later.item)
    first_prompt, second_prompt, again = named.prompts().tolist()
    assert first_prompt == again != second_prompt
    kept = named.subset(torch.tensor([True, False, True]))
    assert torch.equal(kept.item, named.item[::2]) and len(kept) == 2


def test_items_of_many_pairs_do_not_collide():
    x = torch.randn(20_000, 3).to(torch.bfloat16).float()  # few bits each
    different = torch.where((x[:, :1] < 0), -x, x).unique(dim=0)
    assert len(Comparisons.from_list([x]).item.unique()) == len(different)
