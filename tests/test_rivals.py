"""benchmarks/rivals/: each rival against a loop, a closed form or an invariance; the study on a tiny population."""

import dataclasses
import json
import os
import re
import sys

import numpy as np
import pandas as pd
import pytest
import safetensors
import torch
import torch.nn.functional as F
from conftest import ROOT, random_users
from torch.distributions import Normal, kl_divergence

from lore.common import InputError
from lore.fit.comparisons import Comparisons
from lore.fit.groups import Groups

sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy
import compare_rivals as study
from rivals import Rival, data_sets, mrm, ours, overview, own_method, pal, pref, rbd, splits_on_disk, vpl


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def population():
    return accuracy.planted(10, 12, 6, 0, d=8, tests=10)


def pairs(counts=(3, 5, 4), d=6):
    data = Comparisons.from_list(random_users(counts, d))
    return data.differences(torch.zeros(())), data.user


@pytest.mark.parametrize("seed", range(2))
def test_rbd_is_a_loop_and_new_people_are_at_the_minimum(seed):
    torch.manual_seed(seed)
    X, user = pairs()
    V = torch.randn(6, rbd.K)
    w = torch.randn(rbd.K)
    delta = torch.randn(3, rbd.K)
    expected = [(X[j] @ V @ (w + delta[user[j]])).item() for j in range(len(X))]
    assert rbd.log_odds(X, user, V, w, delta).tolist() == pytest.approx(expected, abs=1e-4)
    delta = rbd.new_people(X, user, 3, V, w).double().requires_grad_()
    odds = ((X @ V).double() * (w.double() + delta[user])).sum(1)
    weight = 1 / torch.bincount(user).double()[user]
    ridge = rbd.PERSON * (delta @ V.double().T).square().sum()
    (-(F.logsigmoid(odds) * weight).sum() + ridge).backward()
    assert delta.grad.abs().max() < 1e-4


def test_rbd_starts_near_zero_with_log_odds_of_std_one():
    X, _ = pairs((40, 40))
    V, w, delta = rbd.start(6, 2, X, torch.Generator().manual_seed(0))
    assert (X @ (V @ w)).std().item() == pytest.approx(1, abs=1e-5) and delta.abs().max() < 0.01


def test_pref_keeps_what_is_known_and_finds_a_low_rank():
    truth = torch.sign(torch.randn(12, 2) @ torch.randn(2, 9))
    pair = torch.arange(12).repeat_interleave(9)
    user = torch.arange(9).repeat(12)
    judged = torch.rand(len(pair)) < 0.8
    for rows in (judged | True, judged):
        M = pref.completed(pair[rows], truth.flatten()[rows], user[rows], 12, 9)
        assert torch.equal(M[pair[rows], user[rows]], truth.flatten()[rows] / 2)  # put back as they were
    assert M.abs().max() <= 0.5


def test_pref_needs_pairs_that_several_people_judged(population):
    groups, head = population
    with pytest.raises(InputError, match="no overlap"):
        pref.fit(groups, head, 0)
    first, second = torch.tensor([0, 2, 1, 2]), torch.tensor([1, 3, 0, 3])
    of_both = (torch.randn(6, 4), torch.tensor([0, 0, 1, 1]), ("a", "b"))
    number, sign = pref.pairs_of(Comparisons(*of_both, first, second))
    assert number.tolist() == [0, 1, 0, 1] and sign.tolist() == [1, 1, -1, 1]
    assert torch.equal(pref.pairs_of(Comparisons(*of_both, second, first))[1], -sign)


def test_mrm_takes_the_first_step_of_adam():
    g = torch.tensor([0.3, -2.0])
    s = torch.zeros(2, requires_grad=True)
    adam = torch.optim.Adam([s], lr=0.01, eps=mrm.EPSILON)
    s.grad = g.clone()
    adam.step()
    assert torch.allclose(s.detach(), -mrm.step(g, 0.01))
    X, user = pairs()
    s = mrm.adapted(X @ torch.randn(6, 2), user, 3, torch.zeros(2))
    assert s.abs().max() <= mrm.RATE * 1.001  # so little can one step move anybody


def test_mrm_learns_through_its_inner_step(monkeypatch):
    for name, value in (("EPSILON", 1.0), ("RATE", 0.1), ("SUPPORT", 0.5)):  # a smooth, long step
        monkeypatch.setattr(mrm, name, value)
    X = 100 * pairs((8,))[0].double()
    V = torch.randn(6, 2).double()
    outer = lambda s: mrm.outer_loss(X, V, s, torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(outer, torch.randn(2, dtype=torch.float64, requires_grad=True))


def test_vpl_knows_no_order_of_pairs_and_its_divergence_is_kls():
    model = vpl.Vpl(5)
    known = torch.randn(2, 7, 10)
    mu, logvar = model.encode(known)
    again, _ = model.encode(known[:, torch.randperm(7)])
    assert torch.allclose(mu, again, atol=1e-5) and mu.abs().max() <= 1
    q, prior = Normal(mu, (logvar / 2).exp()), Normal(torch.zeros(()), torch.ones(()))
    expected = kl_divergence(q, prior).sum(1).mean()
    assert torch.allclose(vpl.divergence(mu, logvar), expected, rtol=1e-4)
    e = torch.randn(2, 2, 5)
    assert torch.allclose(model.log_odds(*e, mu), -model.log_odds(e[1], e[0], mu))


def test_pal_is_nearness_to_a_point_between_prototypes():
    model = pal.Pal(5, 3).double()
    e = torch.randn(2, 3, 5).double()
    odds = model.log_odds(*e, model.w)
    for person in range(3):
        ideal = model.f(model.w[person].softmax(0) @ model.Q)
        chosen, rejected = (-(model.f(x) - ideal).square().sum().item() for x in e[:, person])
        assert odds[person].item() == pytest.approx(chosen - rejected, abs=1e-9)
    assert torch.allclose(model.Q.norm(dim=1), torch.ones(pal.B).double())


@pytest.fixture
def quick(population, monkeypatch):
    """The study on one tiny population, whatever is fitted in few steps."""
    monkeypatch.setattr(ours, "STEPS", 50)
    monkeypatch.setattr(ours, "RANKS", [1, 2])
    monkeypatch.setattr(mrm, "EPOCHS", mrm.LOOK)
    monkeypatch.setattr(rbd, "STEPS", 5)
    monkeypatch.setattr(pal, "EPOCHS", 1)
    monkeypatch.setattr(pal, "NEW_STEPS", 2)
    monkeypatch.setattr(data_sets, "PLANTED", {"tiny": lambda seed: population})


def shown(number):
    """A block of Python in docs/rivals.md."""
    return re.findall("```python\n(.*?)```", (ROOT / "docs/rivals.md").read_text(), re.DOTALL)[number]


def compare(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare_rivals.py", "--seeds", "1", *map(str, arguments)])
    study.main()


def test_the_study_tells_of_all_and_goes_on_where_it_was(quick, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out/r.json"
    (tmp_path / "my_method.py").write_text(shown(0))
    monkeypatch.chdir(tmp_path)
    compare(monkeypatch, "--output", output, "--method", "my_method:fit")
    first = capsys.readouterr().out
    results = json.loads(output.read_text())
    rows = {row["method"]: row for row in results["rows"]}
    assert {*study.RIVALS, *study.MRM, ours.OURS, ours.STARRED, ours.HEAD, "each alone"} <= rows.keys()
    assert results["settings"]["seeds"] == 1 and "git_commit" in results
    best, *_, last = results["rows"]
    assert best["unseen"] == max(row["unseen"] for row in results["rows"] if "unseen" in row)
    assert last["method"] == "PReF" and "no overlap" in last["reason"] and last["reason"] in first
    assert rows[ours.COMMON]["over_common"] == [0, 0, 0]
    mine = rows["my_method:fit"]
    assert {name for name in rows["VPL"] if not name.startswith("seen")} == mine.keys()
    assert mine["unseen"] > 0.55 and mine["place"] < rows["PReF"]["place"]
    assert rows[ours.STARRED]["ranks"][0] in ours.RANKS
    assert last["place"] == len(rows) - 1 and rows[ours.HEAD]["place"] is None
    assert results["places"]["planted"] == results["places"]["all"] and "real" not in results["places"]
    tables = output.with_suffix(".md").read_text()
    assert len(tables.splitlines()) == len(rows) + 2 and tables.count("| - |") >= 1
    assert output.with_suffix(".png").stat().st_size > 10_000

    def refuse(*_):
        raise AssertionError("fitted again")

    monkeypatch.setattr(ours, "METHODS", dict.fromkeys(ours.METHODS, refuse))
    monkeypatch.setattr(mrm, "fits", refuse)
    monkeypatch.setattr(study, "RIVALS", dict.fromkeys(study.RIVALS, refuse))
    compare(monkeypatch, "--output", output)
    for row in json.loads(output.read_text())["rows"]:
        for name in ("over_common", "unseen_log_loss", "seconds", "reason"):
            assert row.get(name) == rows[row["method"]].get(name)
    part = next(output.with_suffix(".parts").iterdir())
    part.write_bytes(b"half")
    with pytest.raises(InputError, match="damaged"):
        compare(monkeypatch, "--output", output)


def test_a_method_sees_nothing_of_whom_the_test_pairs_prefer(population):
    groups, head = population
    unseen = groups.unseen
    shuffled = dataclasses.replace(unseen, chosen=unseen.rejected, rejected=unseen.chosen)
    train, few, _ = splits_on_disk.pairs_for_method(groups, head)
    for group in (shuffled, unseen.shuffled(3)):
        train_again, few_again, _ = splits_on_disk.pairs_for_method(groups._replace(unseen=group), head)
        before = (*train[:7], *few._replace(test=None)[:7], *few.test[:7])
        after = (*train_again[:7], *few_again[:7], *few_again.test[:7])
        for tensor, other in zip(before, after):
            assert tensor is other is None or torch.equal(tensor, other)
    assert few.test.left_preferred is None and few.test.test is None and train.test is None
    assert not {*train.person.tolist()} & {*few.person.tolist()}
    assert {*few.person.tolist()} == {*few.test.person.tolist()}
    assert 0.3 < train.left_preferred.float().mean() < 0.7


METHODS = """
import os

STUDY = {}


def of_head(train, few):
    assert os.getpid() != STUDY
    return (few.test.differences() @ few.head)[:, 0]


def broken(train, few):
    return few.nothing_such
"""


def test_the_head_as_a_method_is_as_right_as_its_row_and_an_error_shows_where(
    population, tmp_path, monkeypatch
):
    (tmp_path / "my_methods.py").write_text(METHODS.replace("{}", str(os.getpid())))
    monkeypatch.chdir(tmp_path)
    cell = own_method.entries("my_methods:of_head", *population, 0)["my_methods:of_head"].cell
    expected = ours.reference_head(*population, 0)[ours.HEAD].cell
    np.testing.assert_array_equal(cell.outcomes["unseen"].right, expected.outcomes["unseen"].right)
    np.testing.assert_array_equal(cell.accuracy["unseen"], expected.accuracy["unseen"])
    with pytest.raises(AttributeError, match="nothing_such") as error:
        own_method.entries("my_methods:broken", *population, 0)
    assert "return few.nothing_such" in str(error.value.__cause__)


def log_odds_of(answer):
    return own_method.as_log_odds("my:fit", answer, 3)


@pytest.mark.parametrize(
    ("use", "given", "words"),
    [
        (own_method.function_named, "nowhere:fit", "--method nowhere:fit.*No module named 'nowhere'"),
        (own_method.function_named, "numpy", "--method numpy.*module:function"),
        (own_method.function_named, "numpy:nothing_such", "--method numpy:nothing_such.*nothing_such"),
        (own_method.function_named, "numpy:pi", "--method numpy:pi.*a float, not a function"),
        (log_odds_of, None, "NoneType"),
        (log_odds_of, [1.0, 2.0], r"shape \(2,\): 3 log-odds"),
        (log_odds_of, [0.0, float("nan"), 1.0], "NaN"),
        (log_odds_of, np.array([0.0, 1e300, 1.0]), "infinity"),
        (log_odds_of, [True, False, True], "bool"),
        (log_odds_of, [0.2, 0.7, 0.9], "between 0 and 1"),
    ],
)
def test_a_method_that_is_not_there_and_what_are_no_log_odds_are_told_in_a_line(use, given, words):
    with pytest.raises(InputError, match=words):
        use(given)
    assert log_odds_of(np.array([-1, 2, 0])).tolist() == [-1, 2, 0]


def test_the_splits_are_read_in_three_lines(population, tmp_path, monkeypatch):
    groups, _ = population
    monkeypatch.setattr(data_sets, "PLANTED", {"low rank": lambda seed: population})
    compare(monkeypatch, "--export", tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "planted-low-rank.0.parquet",
        "planted-low-rank.0.safetensors",
    ]
    monkeypatch.chdir(tmp_path)
    names = {"pandas": pd, "safetensors": safetensors}
    exec(shown(1), names)
    pairs = names["pairs"]
    sign = torch.tensor(np.where(pairs["left_preferred"], 1.0, -1.0), dtype=torch.float32)
    read = (sign[:, None] * names["differences"]).numpy()
    expected = groups.train.differences(torch.zeros(())).numpy()
    for person in range(len(groups.train.user_ids)):
        of_file = read[pairs["person"].to_numpy() == person]
        of_person = expected[groups.train.user.numpy() == person]
        np.testing.assert_array_equal(np.sort(of_file, axis=0), np.sort(of_person, axis=0))


def test_equal_accuracies_share_a_place_and_kinds_have_places_of_their_own():
    rows = [{"method": name, "unseen": value} for name, value in (("a", 0.9), ("b", 0.8), ("c", 0.8))]
    places = overview.places_of([*rows, {"method": "d", "reason": "none"}])
    assert places == {"a": 1, "b": 2.5, "c": 2.5, "d": 4}
    reverse = {"a": 4, "b": 2.5, "c": 2.5, "d": 1}
    tables = {}
    for name, of_set in (("planted", places), ("real", reverse)):
        tables[name] = [{"method": method, "place": place} for method, place in of_set.items()]
    made = {"planted": data_sets.DataSet(True, None), "real": data_sets.DataSet(False, None)}
    by_kind = study.places_by_kind(tables, made)
    assert by_kind["planted"]["a"] == [1, 1, 1] and by_kind["real"]["a"] == [4, 4, 4]
    assert by_kind["all"]["a"][0] == 2.5


def test_the_best_epoch_is_that_with_most_test_pairs_right():
    odds = {"seen": torch.tensor([1.0, -1.0]), "unseen": torch.tensor([1.0, 1.0, 0.0, 1.0])}
    assert mrm.right(Rival(odds, 0.0, 0.0, 2)).item() == 0.5 + 0.75


def test_differences_alone_are_too_little_for_who_needs_both_replies():
    groups = Groups(*[Comparisons.from_list(random_users([4, 4], 6, seed)) for seed in range(4)])
    for fit in (vpl.fit, pal.fit, pref.fit):
        with pytest.raises(InputError, match=r"are known|not known"):
            fit(groups, None, 0)
