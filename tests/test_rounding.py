"""Bit for bit: a fit of a sweep against the same fit alone, and a command against itself.

Where the matrix library promises equal bits, they are tested; elsewhere the numbers are compared to
rounding, and the end of the run says what holds on this machine.
"""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, bits_are_promised, random_users
from populations import shots, sweep
from test_product import C, fits, value_and_gradients

import lore
from lore.fit.product import joint_likelihoods, rounded_alike
from lore.fit.rows import Rows
from lore.report import results
from utils import run, run_regularized


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("d", [64, 257])
def test_a_fit_is_rounded_as_if_it_were_alone_on_any_number_of_threads(d, threads, assert_rounded_alike):
    pairs = []
    for n in (400, 2064, 2096, 4115):
        torch.manual_seed(0)
        X = torch.randn(n, d)
        user = torch.randint(0, C, (n,))
        Vs, Ls = fits(d, torch.float32)

        def likelihoods(Vs, Ws, X=X, user=user, n=n):
            return joint_likelihoods(Rows(X), Vs, Ws, user, torch.ones(n))

        together = value_and_gradients(likelihoods, Vs, Ls)
        for count in (1, 2, 3):
            threads(count)
            for i, (V, L) in enumerate(zip(Vs, Ls)):
                alone = value_and_gradients(likelihoods, [V], [L])
                for part, scale in enumerate((1, 2**i, 2**i)):  # by which the sum counts this fit
                    pairs.append((together[len(Vs) * part + i], scale * alone[part]))
    assert_rounded_alike(f"loss and gradients, d = {d}", pairs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["adam", "regularised", "ridge"])
def test_a_rank_has_the_row_that_it_has_alone(name, assert_rounded_alike):
    """The published fit amplifies rounding: a last bit at the start is points at the end."""
    function = run_regularized if name == "regularised" else run
    solver = "ridge" if name == "ridge" else "adam"
    groups = []
    for seed, count in enumerate((150, 50, 50, 50)):
        groups.append(random_users([count] * 4, 260, seed=seed))
    head = torch.randn(260, 1, generator=torch.Generator().manual_seed(0))
    options = {"num_iterations": 30, "few_shot_iterations": 10, "solver": solver}

    def fitted(K_list):
        result = function(K_list, [0.0], head, *groups, 4, 4, "cpu", **options)
        return {cell.K: cell.fit for cell in result.cells}

    together = fitted([0, 1, 2, 5])
    pairs = []
    for K in (1, 5):
        alone = fitted([K])[K]
        pairs += [(together[K].V, alone.V), (together[K].W, alone.W)]
    # the steps make much of a last bit, and the ridge solver stops early: coarse where not promised
    assert_rounded_alike(f"K alone and in a sweep, {name}", pairs, rtol=0.1, atol=1.0)


def test_the_trial_says_what_holds(monkeypatch):
    """`rounded_alike` must find a product that depends on what stands beside it."""
    if bits_are_promised():
        assert rounded_alike(3000, 300, [1, 2, 5, 6], "cpu")
    bmm = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: bmm(a, b) * (1 + 1e-6 * a.shape[1]))
    assert not rounded_alike(3000, 300, [1, 2, 5, 6], "cpu")


def test_a_sweep_says_where_its_ranks_are_not_rounded_alike(monkeypatch, capsys):
    groups = [random_users([8] * 3, 6, seed=seed) for seed in range(4)]
    options = {"num_iterations": 2, "few_shot_iterations": 2}
    cells = run([1, 2], [0.0], None, *groups, 3, 3, "cpu", **options).cells
    for alike in (True, False):
        monkeypatch.setattr(results, "rounded_alike", lambda *_, alike=alike: alike)
        results.print_rounding(cells)
        assert ("a rank alone (--K_list K) gives another row" in capsys.readouterr().out) != alike


@pytest.mark.parametrize(
    "intel, before, after",
    [(True, None, "AUTO,STRICT"), (True, "COMPATIBLE", "COMPATIBLE"), (False, None, None)],
)
def test_equal_bits_are_asked_for_where_there_are_such(intel, before, after, monkeypatch):
    """Of MKL on Intel's processors, unless the user has set something else."""
    monkeypatch.delenv("MKL_CBWR", raising=False)
    if before:
        monkeypatch.setenv("MKL_CBWR", before)
    monkeypatch.setattr(lore, "is_intel", lambda: intel)
    lore.ask_for_equal_bits()
    assert os.environ.get("MKL_CBWR") == after


def test_same_seed_same_bytes_in_another_process():
    """The very same calls on the same machine, with another order of sets of strings."""
    code = (
        "import sys; sys.path[:0] = ['.', 'tests']; import test_rounding;"
        "print(test_rounding.some_results().hex())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == some_results().hex()


def some_results():
    results = (*sweep(run, [0, 1, 3], [0.0]), *shots())
    return b"".join(array.tobytes() for array in results)
