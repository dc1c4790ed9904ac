"""Tables, JSON, pictures, basis files, settings and errors of the scripts."""

import json
from argparse import Namespace

import pytest
import torch
from conftest import ROOT, run_script
from test_utils_sweeps import HEAD, shots, sweep

from lore import common, pictures, printing, report, statistics, tables
from lore.basis import Basis, basis_health, load_basis, save_basis
from lore.common import InputError
from utils import run

PNG = b"\x89PNG\r\n\x1a\n"


def test_table_of_one_seed_shows_the_interval_over_users(capsys):
    result = sweep(run, [0, 1, 2], [0.0])
    best = result.cells[0]._replace(K="best", alpha=None)
    summary = statistics.summarise([*result.cells, best])
    printing.print_run_table(summary)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "K" and "alpha" not in lines[0]
    assert [line[:15].strip() for line in lines[1:5]] == [
        "0 reference",
        "1 Bradley-Terry",
        "2",
        "best possible",
    ]
    assert len({len(line) for line in lines[:5]}) == 1  # aligned
    low, high = summary[0]["unseen_interval"]
    assert f"{100 * result.unseen[0]:.1f} [{100 * low:4.1f}, {100 * high:4.1f}]" in lines[1]
    assert "over users [95 % interval over users]" in lines[-1] and "±" not in "".join(lines)
    assert (
        lines[2].rstrip().endswith("]") and lines[3].count("[") == 3
    )  # Bradley-Terry has no difference to itself


def test_table_of_several_seeds_shows_the_spread_over_seeds(capsys):
    result = sweep(run, [1, 2], [0.0, 0.5], seeds=[0, 1, 2])
    printing.print_run_table(statistics.summarise(result.cells))
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 6 and "alpha" in lines[0] and "± std over seeds [95 % interval" in lines[-1]
    )
    unseen = result.unseen[:, 1]  # alpha 0, K 2
    assert f"{100 * unseen.mean():.1f} ±{100 * unseen.std():4.1f} [" in lines[2]


def test_run_report_holds_every_row_and_where_it_came_from_and_is_drawn(tmp_path, capsys):
    for seeds in ([0], [0, 1]):
        cells = sweep(run, [0, 1, 2], [0.0, 0.5], seeds=seeds, baselines=True).cells
        summary = report.report(
            tmp_path / "report", cells, Namespace(seed=0, data=tmp_path, resplit=False)
        )
        saved = json.loads((tmp_path / "report.json").read_text())
        rows = report.run_rows(cells)
        assert saved["rows"] == rows and sum(row["model"] == "" for row in rows) == 6 * len(seeds)
        assert (
            saved["summary"] == summary and len(summary) == 6 + 2 * 2 + 4 + 1
        )  # fits, mixtures, labels, alone
        assert saved["settings"] == {"seed": 0, "data": str(tmp_path), "resplit": False}
        assert saved["environment"]["torch"] == torch.__version__ and "git_commit" in saved
        assert (tmp_path / "report.png").read_bytes().startswith(PNG)


def test_few_shot_report_is_printed_and_drawn(tmp_path, capsys):
    rows = report.few_shot_rows(shots(K_list=(0, 2)))
    assert [(row["K"], row["shots"]) for row in rows] == [(0, 2), (0, 5), (2, 2), (2, 5)]
    printing.print_few_shot_table(rows)
    assert (
        "± std over trials [95 % interval over users]" in capsys.readouterr().out.splitlines()[-1]
    )
    report.save_results(tmp_path / "curve", rows, Namespace())
    pictures.plot_accuracy_vs_shots(tmp_path / "curve")
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)


def test_a_basis_comes_back_and_another_width_is_refused(tmp_path):
    path = tmp_path / "basis.safetensors"
    V, W, W_unseen = (
        torch.randn(2, 6).T,
        torch.rand(3, 2),
        torch.rand(1, 2),
    )  # column-major, as the fits keep it
    basis = Basis(V, W, ("x", "y", "z"), W_unseen, ("new",), "a model")
    save_basis(path, basis, alpha=0.0)
    for saved, loaded in zip(basis, load_basis(path, 6)):
        assert torch.equal(saved, loaded) if isinstance(saved, torch.Tensor) else saved == loaded
    with pytest.raises(InputError, match="basis of width 6, but the embeddings have 5"):
        load_basis(path, 5)
    with pytest.raises(InputError, match="is missing"):
        load_basis(tmp_path / "none", 6)
    path.write_text("not a basis")
    with pytest.raises(InputError, match="is not a basis"):
        load_basis(path, 6)


def test_health_of_bases_that_one_can_judge_by_eye(capsys):
    eye = torch.eye(4)
    types = basis_health(
        eye[:, :2], torch.tensor([[1.0, 0.0], [0.0, 1.0]]), eye[:, :1]
    )  # two people, two rewards
    assert types["columns"] == 2 and types["alike"] == 0 and types["to_head"] == [0, 1]
    assert types["used"] == pytest.approx(2) and types["used_by_one"] == pytest.approx(1)
    mixed = basis_health(eye[:, :2], torch.full((5, 2), 0.5), None)
    assert (
        mixed["used"] == pytest.approx(2)
        and mixed["used_by_one"] == pytest.approx(2)
        and mixed["to_head"] is None
    )
    column = eye[:, :1]
    collapsed = basis_health(
        torch.cat([column, -3 * column, column], 1), eye[:1, :3].expand(5, 3), column
    )
    assert collapsed["alike"] == pytest.approx(1) and collapsed["to_head"] == [-1, 1]
    assert collapsed["used"] == pytest.approx(1)
    one = basis_health(column, torch.ones(5, 1), column)
    rows = [
        {"K": K, "alpha": 0.0, "seed": 0, **health}
        for K, health in ((2, types), (1, one), (3, mixed))
    ]
    printing.print_health([{"K": 0, "alpha": 0.0, "seed": 0}, *rows])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "K",
        "columns",
        "alike",
        "cosine",
        "to",
        "head",
        "used",
        "used",
        "by",
        "one",
    ]
    assert lines[1].split() == ["2", "2", "0.00", "0.00", "..", "1.00", "2.0", "1.0"]
    assert lines[2].split() == ["1", "Bradley-Terry", "1", "-", "1.00", "..", "1.00", "1.0", "1.0"]
    assert lines[3].split() == ["3", "2", "0.00", "-", "2.0", "2.0"] and len(lines) == 6


def test_a_missing_device_is_refused():
    with pytest.raises(InputError, match="device = cuda:99"):
        common.pick_device("cuda:99")
    with pytest.raises(InputError, match="use auto, cpu, cuda"):
        common.pick_device("abacus")
    assert common.pick_device("cpu") == torch.device("cpu")


SCRIPT = '''"""Says its settings."""
import sys
sys.path.insert(0, {root!r})
from lore.common import start
from lore.settings import settings
# ------------------------------------------ settings ---
K_list = [0, 1]  # ranks # of the basis
rate = 0.5  # a number
on = False  # a switch
name = "x"
# -------------------------------------------------------
HIDDEN = 3  # not a setting
start(lambda: print(vars(settings(globals()))))
'''


def test_every_setting_is_a_flag(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    status, out, _ = run_script(script)
    assert (
        status == 0 and out.strip() == "{'K_list': [0, 1], 'rate': 0.5, 'on': False, 'name': 'x'}"
    )
    _, out, _ = run_script(script, "--K_list", 3, 4, "--rate", "1e-3", "--on", "--name", "y")
    assert out.strip() == "{'K_list': [3, 4], 'rate': 0.001, 'on': True, 'name': 'y'}"
    status, out, _ = run_script(script, "--help")
    assert (
        status == 0
        and "Says its settings." in out
        and "ranks # of the basis [[0, 1]]" in out
        and "HIDDEN" not in out
    )


def test_head_is_a_column_whatever_its_shape():
    for shape in ((6,), (1, 6), (6, 1)):
        assert torch.equal(tables.reference_head(HEAD.reshape(shape), 6), HEAD)
