"""What a run leaves behind."""

import json
import re
from argparse import Namespace

import numpy as np
import pytest
import torch
from matplotlib import rc_context
from populations import shots, sweep

from lore.report import pictures, results, text_tables
from page import compared, mixtures, picture, shown_table
from utils import run

PNG = b"\x89PNG\r\n\x1a\n"


def test_run_report_holds_every_row_and_where_it_came_from_and_is_drawn(tmp_path):
    cells = sweep(run, [0, 1, 2], [0.0, 0.5], baselines=True).cells
    args = Namespace(seed=0, data=tmp_path, resplit=False)
    summary = results.report_run(tmp_path / "report", cells, args)
    saved = json.loads((tmp_path / "report.json").read_text())
    rows = results.run_rows(cells)
    assert saved["rows"] == rows and sum(row["variant"] == "" for row in rows) == 6
    # fits, mixtures, labels, shared + own, alone
    assert saved["summary"] == summary and len(summary) == 6 + 2 * 2 + 4 + 1 + 1
    for row in rows:
        (of_row,) = [s for s in summary if all(s[k] == row[k] for k in ("alpha", "K", "variant"))]
        for name, people in row["of_each_user"].items():
            count = len(people["user"])
            assert row[name] == pytest.approx(sum(people["accuracy"]) / count)
            assert of_row[f"{name}_log_loss"] == pytest.approx(sum(people["log_loss"]) / count)
    assert saved["settings"] == {"seed": 0, "data": str(tmp_path), "resplit": False}
    # a package's version may lack the name of its build
    assert torch.__version__.startswith(saved["environment"]["torch"]) and "git_commit" in saved
    assert (tmp_path / "report.png").read_bytes().startswith(PNG)


def test_few_shot_report_is_printed_and_drawn(tmp_path, capsys):
    rows = results.few_shot_rows(shots(K_list=(0, 2)))
    assert [(row["K"], row["shots"]) for row in rows] == [(0, 2), (0, 5), (2, 2), (2, 5)]
    for table in text_tables.few_shot_tables(rows):
        text_tables.print_table(table)
    assert "± std over trials [95 % interval over users" in capsys.readouterr().out
    results.save_results(tmp_path / "curve", rows, Namespace())
    pictures.draw(pictures.shots_figure, tmp_path / "curve")
    drawn = (tmp_path / "curve.png").read_bytes()
    assert drawn.startswith(PNG)
    with rc_context({"font.size": 30, "axes.facecolor": "red"}):  # as a matplotlibrc may say
        pictures.draw(pictures.shots_figure, tmp_path / "curve")
    assert (tmp_path / "curve.png").read_bytes() == drawn


def test_results_are_saved_before_anything_is_printed(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("the terminal is gone")

    for name in ("print_ridge_choices", "print_table"):
        monkeypatch.setattr(results, name, fail)
    with pytest.raises(OSError, match="terminal"):
        cells = sweep(run, [1, 2], [0.0]).cells
        results.report_run(tmp_path / "table", cells, Namespace(resplit=False))
    with pytest.raises(OSError, match="terminal"):
        results.report_few_shot(tmp_path / "curve", shots(), Namespace())
    for name, rows in (("table", 2), ("curve", 2)):
        assert len(json.loads((tmp_path / f"{name}.json").read_text())["rows"]) == rows


def test_a_crowd_is_a_few_lines_and_the_rest_on_demand():
    W = torch.distributions.Dirichlet(torch.ones(3)).sample((1500,)).numpy()
    html = mixtures([f"person {number}" for number in range(1500)], W)
    shown, _, asked_for = html.partition("<details>")
    assert shown.count("text-anchor") <= 9 and asked_for.count("text-anchor") == 1500
    for k in range(3):
        assert f"{np.percentile(W[:, k], 50):.2f}" in shown
        assert f">person {W[:, k].argmax()}<" in shown
    assert mixtures(["ann", "bob"], W[:2]).count("text-anchor") == 2


def test_a_prompt_stands_once_and_long_texts_are_cut_without_loss():
    said = " ".join(f"word{number}" for number in range(200))
    html = compared("<b>Why?</b>", [("likes most", said, "high"), ("likes least", "no", "low")])
    assert html.count("&lt;b&gt;Why?&lt;/b&gt;") == 1 and "<b>" not in html
    texts = re.sub(r"<summary>more</summary>", " ", html).replace(" ..", "")
    assert " ".join(re.sub(r"<[^>]*>", " ", texts).split()).count(said) == 1
    places = [html.index(words) for words in ("likes most", "word0", "more</summary>", "word199")]
    assert places == sorted(places)


def test_pictures_and_tables_are_read_in_the_dark_and_on_a_phone():
    html = picture(pictures.svg_of(pictures.new_figure("x", "y")[0]))
    assert "#000000" not in html and "#ffffff" not in html and "currentColor" in html
    html = shown_table(text_tables.Table(["K", "a < b"], [["1", "2"]]))
    assert '<td data-label="a &lt; b">2</td>' in html
