"""The ridge solver: what it chooses, on planted people."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import random_users
from populations import HEAD, planted, shots, sweep

from lore.common import InputError
from lore.fit import mixtures, ridge, ridge_model
from lore.fit.basis import load_basis
from lore.fit.comparisons import Comparisons
from lore.fit.evaluation import ALL_SHOTS, SHARED_OWN
from lore.fit.held_out import FOLDS, Folds, surest
from lore.fit.likelihood import LOGIT_SCALE, negative_log_likelihood
from lore.fit.mixtures import EVERYBODY
from lore.fit.product import project
from lore.fit.ridge import Candidate, Search, Trial, fit_ridge
from lore.fit.ridge_model import Form, Spreads
from lore.fit.simplex import CERTIFIED
from lore.report.ridge_tables import print_ridge_choices, rank_choices
from utils import run, run_few_shot_vary_shots, run_regularized


@pytest.fixture(scope="module")
def population():
    return planted()


@pytest.fixture(scope="module")
def result(population):
    return run_ridge(*population, [0, 1, 3])


def run_ridge(groups, head, K_list):
    return run(K_list, [0.0], head, *groups, 40, 20, "cpu", solver="ridge")


def test_different_people_are_told_apart_and_alike_people_are_not(result):
    assert result.unseen[2] > result.unseen[1] + 0.05 > result.unseen[0]
    fit = result.cells[2].fit
    assert fit.V.shape == (16, 3) and fit.prior.strength < EVERYBODY
    assert fit.choice["personal_spread"] in ridge.PERSONAL_SPREADS + ridge.WEAKER_SPREADS
    alike = run_ridge(*planted(num_directions=1), [1, 3])
    assert alike.unseen[0] == alike.unseen[1] > 0.85  # the very same fit
    fit = alike.cells[1].fit
    assert fit.V.shape == (16, 1) and fit.choice["personal_spread"] is None
    print_ridge_choices(alike.cells[1:])  # as where K_list names that rank alone


def test_embeddings_of_another_scale_change_nothing(result):
    # a power of two rounds no number; by a hundred a last bit turns, and with it a pair or two
    scaled = run_ridge(*planted(scale=128.0), [0, 1, 3])
    assert np.array_equal(np.stack(result), np.stack(scaled))


def test_a_rank_is_what_it_is_alone_and_a_seed_repeats(population, result):
    groups, head = population
    first = result.cells[2].fit
    alone = fit_ridge(groups.train, [3], head)
    assert {*alone} == {1, 3} and alone[3].choice == first.choice
    assert torch.equal(alone[3].V, first.V)  # the very same calls
    together = fit_ridge(groups.train, [2, 3], head)
    for K in (1, 3):
        most = alone[K].V.abs().max().item()
        assert torch.allclose(together[K].V, alone[K].V, atol=1e-3 * most)
        assert together[K].prior.strength == alone[K].prior.strength
    other_seed = fit_ridge(groups.train, [3], head, seed=2)[3]
    assert not torch.equal(other_seed.V, first.V)


def test_neither_test_pairs_nor_the_global_random_state_are_looked_at(population, result):
    groups, head = population
    torch.manual_seed(6)
    after = torch.rand(1)
    torch.manual_seed(6)
    blind = groups._replace(
        seen=groups.seen.shuffled(0),
        few_shot_train=groups.few_shot_train.shuffled(1),
        unseen=groups.unseen.shuffled(2),
    )
    first, second = result.cells[2].fit, run_ridge(blind, head, [0, 1, 3]).cells[2].fit
    assert torch.equal(first.V, second.V) and torch.equal(first.W, second.W)  # the same calls
    assert first.choice == second.choice and torch.equal(after, torch.rand(1))


def test_every_prompt_is_held_out_whole_and_once():
    table, generator = torch.randn(40, 6), torch.Generator().manual_seed(0)
    chosen = torch.randint(0, 40, (60,), generator=generator)
    prompt = torch.randint(0, 9, (60,), generator=generator)
    user = torch.arange(6).repeat_interleave(10)
    ids = tuple("abcdef")
    named = Comparisons(table, user, ids, chosen, (chosen + 1) % 40, prompt=100 * prompt)
    unnamed = Comparisons(table, user, ids, chosen, (chosen + 1) % 40)
    rows = table[chosen] - table[(chosen + 1) % 40]
    flips = torch.where(torch.rand(60, 1, generator=generator) < 0.5, -1.0, 1.0)
    in_list = Comparisons.from_list([*(flips * rows).split(10)])  # a pair from either side
    for data, key in ((named, prompt), (unnamed, chosen), (in_list, chosen)):
        folds = Folds(data, 3, "cpu")
        for value in key.unique():
            assert folds.number[key == value].unique().numel() == 1
        assert folds.number.unique().numel() == FOLDS
        for fold, (fitted, few) in enumerate(zip(folds.fitted, folds.few)):
            assert torch.equal(fitted, folds.number != fold) and not (few & ~fitted).any()
        held_out = folds.held_out([key + 100 * i for i in range(FOLDS)])
        assert torch.equal(held_out, key + 100 * folds.number)
    flipped = Comparisons(table, user, ids, (chosen + 1) % 40, chosen)
    assert torch.equal(flipped.prompts(), unnamed.prompts())


def test_people_are_asked_for_whole_choices_and_no_more_pairs_than_others():
    """Fifty choices of three pairs each, by two people; few are counted in choices, as new people's are."""
    n = 300
    choice = torch.arange(n) // 3
    user = torch.arange(2).repeat_interleave(n // 2)
    data = Comparisons(torch.randn(n, 4), user, ("a", "b"), prompt=choice, choice=choice)
    folds = Folds(data, 0, "cpu")
    assert choice[folds.asked].bincount(minlength=100).unique().tolist() == [0, 3]
    assert user[folds.asked].bincount().tolist() == [99, 99]
    assert all(user[few].bincount().tolist() == [30, 30] for few in folds.few)


def test_gain_is_a_weighted_mean_and_its_error_that_of_a_clustered_one():
    counts = torch.tensor([8, 8, 4, 12])
    users = [torch.randn(m, 6) for m in counts]
    for weigh in ("pairs", "people"):
        search = Search(Comparisons.from_list(users), None, 0, "cpu", weigh)
        log_p = torch.randn(32).double()
        rows = torch.arange(32) % 5 > 0
        share = torch.ones(32).double()
        if weigh == "people":
            share = (1 / counts).repeat_interleave(counts)
        share = share.double() * rows / (share * rows).sum()
        there = torch.where(rows, log_p, torch.tensor(1e6).double())
        gain, error = search.gain(there, torch.zeros(32).double(), rows)
        assert gain == pytest.approx((share * log_p).sum().item())
        off = share * (log_p - gain)
        by_user = torch.stack([off[search.problem.user == i].sum() for i in range(4)]).norm()
        assert error == pytest.approx(max(off.norm(), by_user).item())


def test_of_several_fits_the_one_of_least_loss_on_all_pairs_is_kept(population):
    groups, head = population
    search = Search(groups.train, head, 0, "cpu", "pairs")
    problem = search.problem
    torch.manual_seed(0)
    form, spreads = Form(2, True), Spreads(search.shared.spreads.s, 5.0)
    (good,) = search.path_start([form], 5.0, [0])[form]
    bad = [good + 3 * torch.randn_like(good) for _ in range(2)]
    assert search.lowest([bad[0], good, bad[1]], form, spreads) is good
    losses = []
    for theta in (bad[0], good):
        V, W = problem.solution(theta, form, spreads)
        (Z,) = project(groups.train, [V])
        weights = problem.weights(search.problem.everything)
        nll = negative_log_likelihood(Z, W, problem.user, weights[0])
        losses.append(problem.loss(theta, 2, nll, W, *weights).item())
    assert losses[0] > losses[1]


def test_the_surest_is_the_largest_of_the_clear_ones():
    assert surest([(0.3, 0.3), (0.2, 0.1), (0.1, 0.01), (-1.0, 0.1)]) == 1
    assert surest([(0.3, 0.3), (-0.2, 0.1)]) is None


def test_a_rank_says_which_smaller_one_held_out_pairs_clearly_prefer():
    search = Search.__new__(Search)
    search.folds = SimpleNamespace(asked=None)
    search.gain = lambda log_p, reference, rows: (log_p - reference, 0.1)
    form = Form(2, True)
    log_ps = {2: -0.5, 3: -0.3, 4: None, 5: -0.6, 6: -0.31}  # 4 is not needed
    candidates = {}
    for K, log_p in log_ps.items():
        candidates[K] = Candidate({}, log_p=log_p, form=form if log_p else None)
    for K in candidates:
        search.note_smaller(K, candidates)
    smaller = {K: candidate.choice.get("smaller_rank") for K, candidate in candidates.items()}
    assert [smaller.pop(5)["K"], *smaller.values()] == [3, None, None, None, None]
    choice = candidates[5].choice | {"personal_spread": None, "deviation_spread": 0.0}
    assert rank_choices({5: choice}).notes == [
        "K = 5 is clearly worse on held-out pairs than K = 3: +0.3000 ±0.1000"
    ]


@pytest.mark.parametrize(("best", "tried"), [(0.3, [5, 2, 0.8, 0.3]), (12, [5, 2, 12, 30]), (4, [5, 2, 12])])
def test_the_better_start_goes_on_to_other_ridges_while_the_last_is_the_best(best, tried):
    search = Search.__new__(Search)
    search.problem = SimpleNamespace(heads=(True, False))
    search.path_start = lambda forms, p, folds: {form: [None] for form in forms}
    search.moved = lambda theta, form, p, next_p: theta

    def trials(thetas, p, passes):
        return [Trial(form, p, (-abs(math.log(p / best)) - form.head, 0.1), None) for form in thetas]

    search.tried = trials
    *without, with_head = search.trials([3])[3]
    assert with_head.form == Form(3, True) and with_head.p == 5
    assert {trial.form for trial in without} == {Form(3, False)} and [trial.p for trial in without] == tried


def people_who_deviate(d=24, people=60, deviation=1.5, pairs=40, tests=100):
    """Rewards that a common one and a deviation of each person make, without any low rank."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(d, generator=generator)
    few, test = [], []
    for _ in range(2 * people):
        r = common + deviation * torch.randn(d, generator=generator)
        x = torch.randn(pairs + tests, d, generator=generator) / d**0.5
        better = torch.rand(len(x), generator=generator) < torch.sigmoid(3 * x @ r)
        x = torch.where(better.unsqueeze(1), x, -x)
        few.append(x[:pairs])
        test.append(x[pairs:])
    return few[:people], test[:people], few[people:], test[people:]


def test_deviations_are_found_where_they_are_and_nowhere_else(tmp_path):
    groups = people_who_deviate()
    options = {"solver": "ridge", "baselines": True, "save": tmp_path / "b"}
    result = run([1, 3], [0.0], None, *groups, 60, 60, "cpu", **options)
    fit = result.cells[1].fit
    assert fit.choice["deviation_spread"] > 0 and fit.prior.deviation_spread > 0
    assert result.unseen[1] > result.unseen[0] + 0.05  # new people deviate as well
    assert result.seen[1] > result.seen[0] + 0.05
    shared_own = next(cell for cell in result.cells if cell.variant == SHARED_OWN)
    assert abs(shared_own.accuracy["unseen"].mean() - result.unseen[1]) < 0.02
    assert result.cells[0].fit.deviations is None  # K = 1 stays Bradley-Terry
    basis = load_basis(tmp_path / "b_K3_alpha0_seed0.safetensors", 24)
    expected = fit.V @ fit.W[3] + fit.deviations.vector(3)
    assert torch.allclose(basis.rewards(["3"])[:, 0], expected, atol=1e-4)
    assert basis.E.shape == (60, 24) and basis.E_unseen.shape == (60, 24)
    train, _, few, unseen = groups
    curve = run_few_shot_vary_shots(
        2, [0.0], [3], [5, ALL_SHOTS], train, few, unseen, None, 60, 60, "cpu", solver="ridge"
    )
    assert curve.unseen[0, 0, 1] == pytest.approx(result.unseen[1], abs=1e-6)
    assert curve.few_shot_train[0, 0, 1] == pytest.approx(result.few_shot_train[1], abs=1e-6)
    assert curve.unseen[0, 0, 0] < curve.unseen[0, 0, 1]
    alike = people_who_deviate(deviation=0.0)
    assert fit_ridge(alike[0], [3])[3].deviations is None


def test_a_seen_person_posing_as_new_with_all_pairs_has_the_mixture_of_the_fit(population, result):
    fit = result.cells[2].fit
    seen = fit.prior._replace(strength=ridge_model.SEEN_STRENGTH)
    as_new = fit._replace(prior=seen).new_people(population[0].train)
    assert as_new.gap.max() <= CERTIFIED and torch.allclose(as_new.W.float(), fit.W, atol=5e-3)


def test_ridge_is_the_same_behind_every_way_to_run_it_and_an_alpha_is_not_used(capsys):
    plain = sweep(run, [0, 1, 2], [0.0], solver="ridge")
    assert capsys.readouterr().out == ""
    for function in (run, run_regularized):
        result = sweep(function, [0, 1, 2], [1e4], solver="ridge")
        said = "alpha_list = [10000.0] is not used: the ridge solver chooses its own pull\n"
        assert capsys.readouterr().out == said
        assert np.array_equal(np.stack(result), np.stack(plain))  # the very same calls
        assert {cell.alpha for cell in result.cells} == {0.0}
    curve = shots(K_list=[1, 2], num_shots=[2, 8], solver="ridge")
    assert curve.unseen.shape == (1, 2, 2)
    assert curve.unseen[0, 0, 0] == pytest.approx(plain.unseen[1])


def test_what_the_ridge_solver_cannot_do_is_said():
    with pytest.raises(InputError, match="2 different prompts to train on; to choose a ridge"):
        fit_ridge([torch.randn(1, 4), torch.randn(1, 4)], [2])
    with pytest.raises(InputError, match="1 different prompts"):
        fit_ridge([torch.ones(5, 4), -torch.ones(3, 4)], [2])  # one pair, seen from both sides
    with pytest.raises(InputError, match="K = 5"):
        fit_ridge([torch.randn(9, 4)], [5])


def test_pairs_that_the_head_separates_leave_the_rewards_finite():
    users = [x * torch.sign(x @ HEAD) for x in random_users([50] * 20, 6)]
    for fit in fit_ridge(users, [1, 2], HEAD).values():
        (Z,) = project(Comparisons.from_list(users), [fit.V])
        assert Z.abs().max() < mixtures.LARGEST_LOG_ODDS * LOGIT_SCALE
        assert fit.new_people(users).gap.max() <= CERTIFIED


@pytest.mark.parametrize("K", [2, 30])
def test_odd_data_is_survived(K):
    """One user, pairs that are nearly none, more rewards than users, width or pairs suggest."""
    for users in (
        [1e-30 * torch.randn(6, 32)] * 3,
        [torch.randn(6, 32)],
        [torch.ones(5, 32) + torch.arange(5).unsqueeze(1)] * 4,
        random_users([1, 1, 1, 5], 32),
    ):
        fits = fit_ridge(users, [1, K])
        for fit in fits.values():
            sums = fit.W.sum(1)
            assert fit.V.isfinite().all() and torch.allclose(sums, torch.ones(len(users)), atol=1e-5)
            assert fit.new_people(users[:1]).gap.max() <= CERTIFIED
    assert math.isinf(fits[1].prior.strength)


def test_other_folds_are_asked_only_of_ranks_that_the_first_speaks_for():
    search = Search.__new__(Search)
    gains = {2: (-0.3, 0.1), 3: (0.04, 0.1), 5: (0.06, 0.1)}  # less than half a standard error, and more
    search.trials = lambda ranks: {K: [Trial(Form(K, False), 5.0, gains[K], None)] for K in ranks}
    asked = []

    def confirmed(promising):
        asked.extend(promising)
        return dict.fromkeys(promising)

    search.confirmed = confirmed
    search.candidate = lambda trial, thetas, choice: Candidate(choice)
    assert [*search.candidates([2, 3, 5])] == [2, 3, 5] and asked == [5]
