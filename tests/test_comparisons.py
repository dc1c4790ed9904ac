"""Who preferred what, in memory."""

from dataclasses import replace

import pytest
import torch
from conftest import random_users
from populations import a_split

from lore import comparisons
from lore.common import InputError
from lore.comparisons import Comparisons


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


def test_shuffled_places_are_orders_within_users():
    user = torch.tensor([0, 0, 0, 1, 2, 2])
    places = comparisons.shuffled_places(user, 200, torch.Generator().manual_seed(0))
    for place in places:
        assert (
            sorted(place[:3].tolist()) == [0, 1, 2]
            and place[3] == 0
            and sorted(place[4:].tolist()) == [0, 1]
        )
    assert (
        len({tuple(p.tolist()) for p in places}) == 12
    )  # 3! * 1 * 2! orders, all seen in 200 draws
