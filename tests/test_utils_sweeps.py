"""run, run_regularized and run_few_shot_vary_shots: sweeps equal single fits, seeds, spreads, what is refused."""

import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, random_users

from lore import comparisons, evaluation, likelihood, report
from lore.basis import basis_path, load_basis
from lore.common import InputError
from lore.comparisons import Comparisons
from utils import (
    LoRe,
    LoRe_regularized,
    PersonalizeBatch,
    run,
    run_few_shot_vary_shots,
    run_regularized,
)

D, N, N_UNSEEN = 6, 5, 4
HEAD = torch.randn(D, 1, generator=torch.Generator().manual_seed(9))
GROUPS = (
    random_users([20, 12, 30, 9, 17], D, seed=1),
    random_users([40] * N, D, seed=2),
    random_users([8, 9, 12, 20], D, seed=3),
    random_users([40] * N_UNSEEN, D, seed=4),
)
QUICK = {"num_iterations": 60, "few_shot_iterations": 40}


def sweep(function, K_list, alpha_list, V=HEAD, groups=GROUPS, **options):
    return function(K_list, alpha_list, V, *groups, N, N_UNSEEN, "cpu", **{**QUICK, **options})


def accuracy(V, W, users):
    """Eq. 15, user by user."""
    return [((x @ V @ w) > 0).float().mean().item() for x, w in zip(users, W)]


def test_a_run_is_fit_personalise_and_score():
    result = sweep(run, [3], [0.0])
    generator = torch.Generator().manual_seed(0)
    W, V = LoRe(HEAD, 0.0, N, D, 3, 60, 0.5, generator=generator).fit(GROUPS[0])
    W_unseen = PersonalizeBatch(N_UNSEEN, D, 3, 40, 0.1, generator=generator).fit(GROUPS[2], V)
    expected = [accuracy(V, w, users) for w, users in zip((W, W, W_unseen, W_unseen), GROUPS)]
    assert np.allclose(np.concatenate(result[:4]), [np.mean(a) for a in expected], atol=1e-6)
    assert np.allclose(
        np.concatenate(result[4:]), [np.std(a) for a in expected], atol=1e-6
    )  # no factor of 0.25


def test_rank_zero_is_the_head_for_everybody_and_a_tie_is_wrong():
    result = sweep(run, [0], [0.0])
    ones = torch.ones(N, 1)
    assert result.seen[0] == pytest.approx(np.mean(accuracy(HEAD, ones, GROUPS[1])))
    assert sweep(run, [0], [0.0], V=torch.zeros(D, 1)).unseen[0] == 0  # strictly positive, Eq. 15


def test_rank_one_is_the_same_reward_for_everybody():
    result = sweep(run, [1], [0.0])
    _, V = LoRe(HEAD, 0.0, N, D, 1, 60, 0.5, generator=torch.Generator().manual_seed(0)).fit(
        GROUPS[0]
    )
    assert result.unseen[0] == pytest.approx(
        np.mean(accuracy(V, torch.ones(N_UNSEEN, 1), GROUPS[3]))
    )


@pytest.mark.parametrize("function", [run, run_regularized])
def test_a_sweep_gives_every_row_that_it_would_have_given_alone(function):
    K_list, alpha_list, seeds = [0, 1, 2, 4], [0.0, 0.5], [0, 7]
    together = np.stack(
        sweep(function, K_list, alpha_list, seeds=seeds)
    )  # (8, seeds, alphas * ranks)
    assert together.shape == (8, 2, 8)
    for s, seed in enumerate(seeds):
        for a, alpha in enumerate(alpha_list):
            for k, K in enumerate(K_list):
                alone = np.concatenate(sweep(function, [K], [alpha], seed=seed))
                assert np.allclose(together[:, s, a * len(K_list) + k], alone, atol=1e-6), (
                    seed,
                    alpha,
                    K,
                )


def columns_are_rounded_alike():
    """Whether this machine's matrix products round 8 columns the same whatever stands beside them."""
    X, Vt = torch.randn(16, 187, 64), torch.randn(24, 64)
    all_columns, own = (
        torch.bmm(rows.expand(16, -1, -1), X.transpose(1, 2)) for rows in (Vt, Vt[:8])
    )
    return torch.equal(all_columns[:, :8], own)


@pytest.mark.parametrize("function, steps", [(run, 1000), (run_regularized, 300)])
def test_a_real_fit_is_bit_for_bit_what_it_is_alone(function, steps):
    """The published fit amplifies rounding: a last bit at the start is a point of accuracy after 1,000 steps."""
    if not columns_are_rounded_alike():
        pytest.skip(
            "this machine's matrix products depend on the number of columns: sweeps equal single fits to rounding"
        )
    X, Vs = torch.randn(3000, 64), [torch.randn(64, K) for K in (1, 3, 5, 12)]
    assert all(
        torch.equal(Z, likelihood.TallProduct.apply(X, V)[0])
        for V, Z in zip(Vs, likelihood.TallProduct.apply(X, *Vs))
    )
    groups = [
        random_users([count] * 8, 64, seed=seed) for seed, count in enumerate((150, 50, 50, 50))
    ]
    options = {"num_iterations": steps, "few_shot_iterations": 100}
    head = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))

    def table(K_list, alpha_list):
        return np.stack(
            function(K_list, alpha_list, head, *groups, 8, 8, "cpu", **options)
        ).reshape(8, len(alpha_list), -1)

    together = table([0, 1, 2, 5, 6], [0.0, 0.1])
    for k, K in enumerate([0, 1, 2, 5, 6]):
        assert np.array_equal(table([K], [0.1])[:, 0, 0], together[:, 1, k]), K


def test_published_settings_are_the_defaults(monkeypatch):
    seen = []
    monkeypatch.setattr(LoRe, "fit_together", lambda models, data: seen.append(models[0]))
    monkeypatch.setattr(
        LoRe_regularized, "fit_together", lambda models, data: seen.append(models[0])
    )
    personalize = PersonalizeBatch.fit_together
    monkeypatch.setattr(
        PersonalizeBatch, "fit_together", lambda m, *a: (seen.append(m[0]), personalize(m, *a))[1]
    )
    arguments = ([2], [0.0], HEAD, *GROUPS, N, N_UNSEEN, "cpu")
    run(*arguments)
    run_regularized(*arguments)
    run_few_shot_vary_shots(
        2, [0.0], [2], [2], GROUPS[0], GROUPS[2], GROUPS[3], HEAD, N, N_UNSEEN, "cpu"
    )
    found = [(type(m).__name__, m.num_iterations, m.learning_rate) for m in seen]
    joint, few = found[::2], found[1::2]
    assert joint == [("LoRe", 1000, 0.5), ("LoRe_regularized", 20000, 0.5), ("LoRe", 500, 0.5)]
    assert few == [
        ("PersonalizeBatch", 500, 0.1),
        ("PersonalizeBatch", 500, 0.5),
        ("PersonalizeBatch", 500, 0.1),
    ]


def test_seeds_differ_and_a_seed_repeats():
    first, again = (sweep(run, [2, 3], [0.0], seeds=[0, 1]) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first.train[0], first.train[1])


def test_the_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(5)
    first = sweep(run, [2], [0.0])
    after = torch.rand(1)
    torch.manual_seed(6)
    assert all(np.array_equal(a, b) for a, b in zip(first, sweep(run, [2], [0.0])))
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


def test_the_published_calling_convention_still_works():
    train, seen, few, unseen, *stds = run(
        [0, 2],
        [0, 1],
        HEAD,
        *GROUPS,
        N,
        N_UNSEEN,
        torch.device("cpu"),
        num_iterations=5,
        few_shot_iterations=5,
    )
    assert all(a.shape == (4,) for a in (train, seen, few, unseen, *stds)) and len(stds) == 4


def test_without_a_head_rank_zero_is_left_out_and_said(capsys):
    result = sweep(run, [0, 2], [0.0], V=None)
    assert np.isnan(result.unseen[0]) and not np.isnan(result.unseen[1])
    assert (
        capsys.readouterr().out
        == "K = 0 is left out: these embeddings come without a reference head\n"
    )
    assert [row["K"] for row in report.run_rows(result.cells)] == [2]
    few = shots(K_list=[0, 2], V=None)
    assert [row["K"] for row in report.few_shot_rows(few)] == [2, 2]


def test_bases_are_saved_with_their_users(tmp_path):
    sweep(run, [0, 2], [0.0], seeds=[3], save=tmp_path / "fit")
    assert [p.name for p in tmp_path.iterdir()] == ["fit_K2_alpha0_seed3.safetensors"]
    basis = load_basis(basis_path(tmp_path / "fit", 2, 0.0, 3), D)
    generator = torch.Generator().manual_seed(3)
    W, V = LoRe(HEAD, 0.0, N, D, 2, 60, 0.5, generator=generator).fit(GROUPS[0])
    W_unseen = PersonalizeBatch(N_UNSEEN, D, 2, 40, 0.1, generator=generator).fit(GROUPS[2], V)
    assert (
        torch.equal(basis.V, V)
        and torch.equal(basis.W, W)
        and torch.equal(basis.W_unseen, W_unseen)
    )
    assert basis.user_ids == tuple("01234") and basis.unseen_ids == tuple("0123"[:N_UNSEEN])


def test_what_a_sweep_refuses():
    with pytest.raises(InputError, match="the fit of K = 2, alpha = 0 diverged"):
        sweep(run, [2], [0.0], learning_rate=3e37)
    for K in (-1, D + 1):
        with pytest.raises(InputError, match=f"K = {K}: a rank lies between 0 and"):
            sweep(run, [K], [0.0])
    with pytest.raises(InputError, match="head has width 5, the embeddings have 6"):
        sweep(run, [1], [0.0], V=HEAD[:5])
    with pytest.raises(InputError, match="alpha = 1: never negative"):
        sweep(run, [1], [1.0], V=None)
    with pytest.raises(InputError, match="nothing to fit"):
        sweep(run, [0], [0.0], V=None)
    with pytest.raises(InputError, match="a value twice"):
        sweep(run, [2, 2], [0.0])
    data = comparisons.pack(GROUPS[1])
    renamed = Comparisons(data.table, data.user, tuple("43210"))
    with pytest.raises(InputError, match="the same 5 in training and test"):
        sweep(run, [1], [0.0], groups=(GROUPS[0], renamed, *GROUPS[2:]))
    with pytest.raises(InputError, match="solver = 'newton'"):
        sweep(run, [1], [0.0], solver="newton")
    with pytest.raises(InputError, match="seen: 4 users; expected the same 5"):
        sweep(run, [1], [0.0], groups=(GROUPS[0], GROUPS[1][:4], *GROUPS[2:]))
    with pytest.raises(InputError, match="unseen: embeddings of width 3, train: 6"):
        sweep(run, [1], [0.0], groups=(*GROUPS[:3], random_users([2] * N_UNSEEN, 3)))


# ------------------------------------------------------------------------------------------------------------------


def shots(
    trials=3, alpha_list=(0.0,), K_list=(2,), num_shots=(2, 5), V=HEAD, groups=GROUPS, **options
):
    train, _, few, unseen = groups
    arguments = (trials, alpha_list, K_list, num_shots, train, few, unseen, V, N, N_UNSEEN, "cpu")
    return run_few_shot_vary_shots(*arguments, **QUICK, **options)


def test_few_shot_problems_of_a_batch_are_those_solved_one_by_one():
    trials, num_shots = 3, [2, 5]
    result = shots(trials, num_shots=num_shots)
    generator = torch.Generator().manual_seed(0)
    _, V = LoRe(HEAD, 0.0, N, D, 2, 60, 0.5, generator=generator).fit(GROUPS[0])
    starts = torch.randn(trials * N_UNSEEN, 2, generator=generator).view(trials, N_UNSEEN, 2)
    data = comparisons.pack(GROUPS[2])
    places = comparisons.shuffled_places(data.user, trials, torch.Generator().manual_seed(0))
    few, unseen = np.zeros((trials, 2)), np.zeros((trials, 2))
    for t in range(trials):
        place = places[t].split([len(x) for x in GROUPS[2]])
        for s, count in enumerate(num_shots):
            drawn = [x[p < count] for x, p in zip(GROUPS[2], place)]
            assert all(len(x) == count for x in drawn)
            model = PersonalizeBatch(N_UNSEEN, D, 2, 40, 0.1)
            model.w.data = starts[t].clone()
            W = model.fit(drawn, V)
            few[t, s], unseen[t, s] = (
                np.mean(accuracy(V, W, drawn)),
                np.mean(accuracy(V, W, GROUPS[3])),
            )
    for array, expected in zip(result, (few.mean(0), few.std(0), unseen.mean(0), unseen.std(0))):
        assert np.allclose(array[0, 0], expected, atol=1e-6)


def test_pairs_of_one_dialogue_are_drawn_together():
    dialogues = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3])  # of each user's 8 pairs
    newcomers = [x[:8] for x in GROUPS[2]]
    data = comparisons.pack(newcomers)
    shot = torch.cat([dialogues + 4 * i for i in range(N_UNSEEN)])
    grouped = [*GROUPS[:2], replace(data, shot=shot), GROUPS[3]]
    trials, num_shots = 3, [1, 3, evaluation.ALL_SHOTS]
    result = shots(trials, num_shots=num_shots, groups=grouped, model_class=LoRe_regularized)
    generator = torch.Generator().manual_seed(0)
    _, V = LoRe_regularized(HEAD, 0.0, N, D, 2, 60, 0.5, generator=generator).fit(GROUPS[0])
    starts = torch.randn(trials * N_UNSEEN, 2, generator=generator).view(trials, N_UNSEEN, 2)
    owner = torch.arange(N_UNSEEN).repeat_interleave(4)
    places = comparisons.shuffled_places(owner, trials, torch.Generator().manual_seed(0)).view(
        trials, N_UNSEEN, 4
    )
    few, unseen = np.zeros((trials, 3)), np.zeros((trials, 3))
    for t, s in itertools.product(range(trials), range(3)):
        chosen = places[t] < (num_shots[s] or 4)  # (users, dialogues)
        drawn = [x[picked[dialogues]] for x, picked in zip(newcomers, chosen)]
        model = PersonalizeBatch(N_UNSEEN, D, 2, 40, 0.1)
        model.w.data = starts[t].clone()
        W = model.fit(drawn, V)
        few[t, s], unseen[t, s] = np.mean(accuracy(V, W, drawn)), np.mean(accuracy(V, W, GROUPS[3]))
    for array, expected in zip(result, (few.mean(0), few.std(0), unseen.mean(0), unseen.std(0))):
        assert np.allclose(array[0, 0], expected, atol=1e-6)
    rows = report.few_shot_rows(result)
    assert [row["shots"] for row in rows] == [1, 3, "all"]
    with pytest.raises(InputError, match="shots = 5: user 0 has 4 to draw from"):
        shots(num_shots=[5], groups=grouped)


def test_every_alpha_rank_and_number_of_shots_is_returned_and_independent_of_the_others():
    result = shots(alpha_list=(0.0, 0.5), K_list=(0, 1, 3), num_shots=(1, 4, 8))
    assert all(array.shape == (2, 3, 3) for array in result)
    assert np.allclose(
        shots(alpha_list=(0.5,), K_list=(3,), num_shots=(4,)).unseen[0, 0, 0],
        result.unseen[1, 2, 1],
    )
    assert np.ptp(result.unseen[:, :2], axis=2).max() == 0  # K <= 1: nothing to learn about a user


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


def test_more_shots_than_pairs_is_refused():
    with pytest.raises(InputError, match=r"shots = 9: user 0 has 8 to draw from; use 1\.\.8"):
        shots(num_shots=(2, 9))
    with pytest.raises(InputError, match="shots = -1: user 0"):
        shots(num_shots=(-1, 2))
    with pytest.raises(InputError, match="trials and num_shots"):
        shots(trials=0)


# ------------------------------------------------------------------------------------------------------------------


def test_same_seed_same_bytes_in_another_process():
    code = (
        "import sys; sys.path[:0] = ['.', 'tests']; import test_utils_sweeps as t;"
        "print(b''.join(a.tobytes() for a in (*t.sweep(t.run, [0, 1, 3], [0.0]), *t.shots())).hex())"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] and outputs[0] == outputs[1]
