"""Training by several processes, and from tables larger than the memory: the same numbers.

As a script this file is the process that trains: `fits FOLDER`, or `limited FOLDER`, which first limits its own memory.
"""

import resource
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, call_script, random_users, run_script
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lore import processes
from lore.common import start
from lore.fit import likelihood, ridge, rows
from lore.fit.comparisons import Comparisons
from lore.report import statistics
from lore.splits import Split, load_split, save_split
from utils import LoRe, run, run_regularized

ROWS, WIDTH, MEGABYTE = 100_000, 512, 2**20  # of the table that does not fit


def comparisons(seed, counts, d=24):
    data = Comparisons.from_list(random_users(counts, d, seed))
    return replace(data, prompt=torch.arange(len(data)) % 40)


def fit_everything():
    """Every way to fit, from users whose pairs do not fill the blocks evenly -> {name: numbers}."""
    torch.set_num_threads(1)  # as torchrun sets it
    groups = [comparisons(i, counts) for i, counts in enumerate(([21, 30, 13, 25], [9] * 4, [5, 7], [9] * 2))]
    common = (torch.ones(24, 1), *groups, 4, 2, torch.device("cpu"))
    found = {}
    for name, result in {
        "LoRe": run([1, 3], [0.0, 0.1], *common, num_iterations=30),
        "LoRe_regularized": run_regularized([1, 3], [0.0, 1.0], *common, num_iterations=30),
        "ridge": run([1, 3], [0.0], *common, solver="ridge"),
    }.items():
        found[f"{name} accuracies"] = torch.from_numpy(np.stack(result))
        for cell in result.cells:
            found |= {f"{name} {part}{cell[1:3]}": getattr(cell.fit, part).clone() for part in "VW"}
    return found


def fit_twice(folder):
    for name in ("alike", "unlike"):
        save_file(fit_everything(), f"{folder}/{name}{processes.rank()}.safetensors")
        unlike_processes()


def fit_limited(folder):
    """Two steps of a fit within less memory than half of the table, which is as large as its differences."""
    LoRe(None, 0.0, 2, 3, 1, 1, 0.5).fit(random_users([4, 4], 3))  # torch imports much at the first step
    train = big_table(folder)
    allowed = 90 * MEGABYTE
    assert 2 * allowed < Path(f"{folder}/big.safetensors").stat().st_size
    in_use = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (in_use + allowed,) * 2)
    memory = rows.memory
    rows.memory = lambda device: float("inf")
    with pytest.raises(RuntimeError, match="allocate memory"):  # the limit is real
        big_model().fit(train)
    rows.memory = memory
    W, V = big_model().fit(train)
    save_file({"V": V.contiguous(), "W": W}, f"{folder}/limited.safetensors")


def big_table(folder):
    split = load_split(f"{folder}/big", "")
    return Comparisons.from_frame(split.table, split.frame)


def big_model():
    return LoRe(None, 0.0, 10, WIDTH, 2, 2, 0.5, generator=torch.Generator().manual_seed(0))


def unlike_processes():
    """Each process rounds in its own way, as GPUs and unlike machines do."""
    original, index_add = likelihood.margins, torch.Tensor.index_add_

    def noisy(Z, W, user):
        return original(Z * (1 + 1e-7 * processes.rank()), W, user)

    likelihood.margins = ridge.margins = noisy
    torch.Tensor.index_add_ = lambda self, *args: index_add(self, *args).mul_(1 + 1e-12 * processes.rank())


if __name__ == "__main__":
    task = {"fits": fit_twice, "limited": fit_limited}[sys.argv[1]]
    start(lambda: task(sys.argv[2]))


def ran(*arguments):
    """What a process of its own prints that ends well."""
    status, out, err = run_script(*arguments)
    assert status == 0, err
    return out


def torchrun(count, *arguments):
    # --standalone: a free port, so that two may run at a time
    return ran("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", *arguments)


@pytest.fixture(scope="module")
def expected():
    threads = torch.get_num_threads()
    yield fit_everything()
    torch.set_num_threads(threads)


def test_several_processes_find_what_one_finds_and_stay_together(expected, tmp_path):
    torchrun(2, __file__, "fits", tmp_path)
    alike, _, first, second = (
        load_file(tmp_path / f"{name}{i}.safetensors") for name in ("alike", "unlike") for i in range(2)
    )
    for name in expected:
        assert torch.allclose(alike[name], expected[name], atol=1e-5, rtol=1e-5, equal_nan=True), name
        if name.startswith("ridge W") or "accuracies" in name:  # by each process, once V is known
            assert torch.allclose(first[name], second[name], atol=1e-5), name
        else:
            assert torch.equal(first[name], second[name]), name


def test_a_training_script_under_torchrun_writes_and_speaks_once(tmp_path):
    script = ROOT / "RedditTLDR/train_basis.py"
    few = ["--planted_workers", 8, "--planted_pairs", 21, "--planted_features", 12, "--min_comparisons", 5]
    flags = ["--synthetic", *few, "--K_list", 0, 1, 2, "--num_iterations", 20]
    alone = call_script(script, *flags, "--results", tmp_path / "one", draws=statistics.RESAMPLES)
    out = torchrun(2, script, *flags, "--results", tmp_path / "two")
    assert (0, out.replace("/two", "/one"), "") == alone
    one, two = ({file.name: file for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one.keys() == two.keys() and len(one) == 6  # JSON, picture, V and W of three ranks and of the best
    for name in (name for name in one if name.endswith(".safetensors")):
        V, other = (load_file(files[name])["V"] for files in (one, two))
        assert torch.allclose(V, other, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------------


def test_every_fit_is_the_same_when_rows_are_not_held(expected, monkeypatch):
    monkeypatch.setattr(rows, "memory", lambda device: 0)
    read = fit_everything()
    # the published recipe amplifies rounding, so short fits are compared; the ridge solver stops
    # where a step gains a hundred-thousandth of its loss: V is known to about a thousandth there
    for name in expected:
        size = expected[name].nan_to_num().abs().max().item()
        close = {"atol": 2e-2, "rtol": 1e-3} if "ridge" not in name else {"atol": 1e-3 * size}
        assert torch.allclose(read[name], expected[name], equal_nan=True, **close), name


def test_a_table_larger_than_the_memory_is_trained_on(tmp_path):
    generator = torch.Generator().manual_seed(0)
    size = ROWS // 10
    blocks = (
        (range(i, i + size), torch.randn(size, WIDTH, generator=generator)) for i in range(0, ROWS, size)
    )
    chosen = np.random.default_rng(0).integers(0, ROWS, ROWS)
    frame = pd.DataFrame({"user_id": [f"u{i % 10}" for i in range(ROWS)], "chosen": chosen})
    frame["rejected"] = (frame["chosen"] + 1) % ROWS
    save_split(tmp_path / "big", Split(torch.empty(ROWS, WIDTH, device="meta"), frame, None), blocks)
    out = ran(__file__, "limited", tmp_path)
    assert f"{ROWS} pairs take 0.2 GB" in out and "read anew in every pass" in out
    limited = load_file(tmp_path / "limited.safetensors")
    W, V = big_model().fit(big_table(tmp_path))
    assert torch.allclose(limited["V"], V, atol=1e-5) and torch.allclose(limited["W"], W, atol=1e-5)
