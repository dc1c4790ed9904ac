"""Settings as flags: a script's own block, and those that several scripts share."""

import re
from itertools import chain

import pytest
from conftest import ROOT, assert_one_line_error, call_script

from lore import sweep_settings
from lore.settings import defaults_of, stated

OWN = '''"""Says its settings."""
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
    script.write_text(OWN.format(root=str(ROOT)))
    status, out, _ = call_script(script)
    whole = f"'script': '{tmp_path.name}/script.py'}}"  # so that results say what wrote them
    assert status == 0 and out.strip() == "{'K_list': [0, 1], 'rate': 0.5, 'on': False, 'name': 'x', " + whole
    _, out, _ = call_script(script, "--K_list", 3, 4, "--rate", "1e-3", "--on", "--name", "y")
    assert "{'K_list': [3, 4], 'rate': 0.001, 'on': True, 'name': 'y', " in out
    status, out, _ = call_script(script, "--help")
    assert (
        status == 0
        and "Says its settings." in out
        and "ranks # of the basis [[0, 1]]" in out
        and "HIDDEN" not in out
    )


def test_a_setting_edited_to_a_whole_number_takes_fractions_but_for_counts(tmp_path):
    script = tmp_path / "script.py"
    edited = OWN.replace("rate = 0.5", "alpha_list = [0, 1]  # pulls\nscales = [1, 2.5]  # numbers\nrate = 1")
    script.write_text(edited.format(root=str(ROOT)))
    flags = ["--alpha_list", 0.5, "--scales", 0.5, "--rate", 0.5]
    status, out, err = call_script(script, *flags)
    assert status == 0 and "'alpha_list': [0.5], 'scales': [0.5], 'rate': 0.5" in out, err
    assert_one_line_error(call_script(script, "--K_list", 2.5), "--K_list", "2.5")


SHARED = """# ---------------------- settings ---
model = "a"  # of the text
size = 1.5  # of it
# ----------------------
"""
SCRIPT = '''"""Says its settings."""
import sys
sys.path.insert(0, {root!r})
import shared
from lore.common import start
from lore.settings import settings
# ---------------------- settings ---
K = 3  # rank
model = shared.model  # of this script
# ----------------------
start(lambda: print(vars(settings(globals(), shared))))
'''


def test_a_shared_block_is_taken_in_and_what_the_script_states_goes_before_it(tmp_path):
    (tmp_path / "shared.py").write_text(SHARED)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    status, out, err = call_script(script)
    assert status == 0 and "{'K': 3, 'model': 'a', 'size': 1.5, " in out, err
    _, out, _ = call_script(script, "--size", 2, "--model", "b")
    assert "{'K': 3, 'model': 'b', 'size': 2.0, " in out
    _, out, _ = call_script(script, "--help")
    assert "of this script [a]" in out and "of it [1.5]" in out and "of the text" not in out
    assert_one_line_error(call_script(script, "--size", "x"), "--size", "'x'")
    script.write_text(script.read_text().replace("shared.model", '"mine"'))
    assert "'model': 'mine'" in call_script(script)[1]


CALL = re.compile(r"= settings\(globals\(\)(.*)\)")
SCRIPTS = [file for file in sorted(ROOT.glob("[A-Za-z]*/*.py")) if CALL.search(file.read_text())]
SCRIPTS = [file for file in SCRIPTS if file.parent.name != "tests"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_help_says_what_every_setting_means(script):
    blocks = [script]
    for name in re.findall(r"\w+", CALL.search(script.read_text())[1]):  # the modules it shares
        folders = (script.parent, ROOT / "lore", ROOT / "lore/text")
        blocks += [folder / f"{name}.py" for folder in folders if (folder / f"{name}.py").exists()]
    status, out, err = call_script(script, "--help")
    assert status == 0 and not err
    for name, meaning in chain.from_iterable(map(stated, blocks)):
        assert f"--{name.rstrip('_')}" in out or f"--no-{name}" in out, name
        assert meaning, f"{name} does not say on its line what it means"
    if script.stem in ("train_basis", "vary_fewshot"):
        assert "--planted_" in out  # both read what people.py plants


def test_defaults_are_those_of_the_block():
    assert vars(defaults_of(sweep_settings, seed=3, device="cpu")) == {
        "repeats": 1, "resplit": False, "mark_best": True, "baselines": False, "device": "cpu", "seed": 3,
    }  # fmt: skip
