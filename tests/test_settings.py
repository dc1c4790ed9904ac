"""Settings as flags: a script's own block, and those that several scripts share."""

import re
from itertools import chain

import pytest
from conftest import ROOT, assert_one_line_error, call_script, printed

from lore.settings import stated

SHARED = """# ---------------------- settings ---
name = "a"  # of the text
size = 1.5  # of it
# ----------------------
"""
SCRIPT = '''"""Says its settings."""
import sys
sys.path.insert(0, {root!r})
import shared
from lore.common import start
from lore.settings import settings
# ------------------------------------------ settings ---
K_list = [0, 1]  # ranks # of the basis
rate = 0.5  # a number
alpha_list = [0, 1]  # pulls
scales = [1, 2.5]  # numbers
on = False  # a switch
name = shared.name  # of this script
# -------------------------------------------------------
HIDDEN = 3  # not a setting
start(lambda: print(vars(settings(globals(), shared))))
'''


def test_every_setting_is_a_flag_and_what_the_script_states_goes_before_what_it_shares(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT)))
    (tmp_path / "shared.py").write_text(SHARED)
    stated = "{'K_list': [0, 1], 'rate': 0.5, 'alpha_list': [0, 1], 'scales': [1, 2.5], 'on': False, "
    stated += f"'name': 'a', 'size': 1.5, 'script': '{script.parent.name}/script.py'}}"  # it wrote a result
    assert printed(script).strip() == stated
    out = printed(script, "--K_list", 3, 4, "--rate", "1e-3", "--on", "--name", "y", "--size", 2)
    assert "'K_list': [3, 4], 'rate': 0.001," in out and "'on': True, 'name': 'y', 'size': 2.0" in out
    shown = printed(script, "--help")
    for words in ("Says its settings.", "ranks # of the basis [[0, 1]]", "of this script [a]", "of it [1.5]"):
        assert words in shown
    assert "HIDDEN" not in shown and "of the text" not in shown
    assert_one_line_error(call_script(script, "--size", "x"), "--size", "'x'")
    script.write_text(script.read_text().replace("shared.name", '"mine"'))
    assert "'name': 'mine'" in printed(script)

    # a setting edited to a whole number takes fractions, but for counts
    script.write_text(script.read_text().replace("rate = 0.5", "rate = 1"))
    out = printed(script, "--alpha_list", 0.5, "--scales", 0.5, "--rate", 0.5)
    assert "'rate': 0.5, 'alpha_list': [0.5], 'scales': [0.5]" in out
    assert_one_line_error(call_script(script, "--K_list", 2.5), "--K_list", "2.5")


CALL = re.compile(r"= settings\(globals\(\)(.*)\)")
FILES = [file for file in sorted(ROOT.glob("[A-Za-z]*/*.py")) if file.parent.name != "tests"]
SCRIPTS = [file for file in FILES if CALL.search(file.read_text())]


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
