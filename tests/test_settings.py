"""Settings as flags: a script's own block, and those that several scripts share."""

from conftest import ROOT, assert_one_line_error, call_script

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
    assert (
        status == 0 and out.strip() == "{'K_list': [0, 1], 'rate': 0.5, 'on': False, 'name': 'x'}"
    )
    _, out, _ = call_script(script, "--K_list", 3, 4, "--rate", "1e-3", "--on", "--name", "y")
    assert out.strip() == "{'K_list': [3, 4], 'rate': 0.001, 'on': True, 'name': 'y'}"
    status, out, _ = call_script(script, "--help")
    assert (
        status == 0
        and "Says its settings." in out
        and "ranks # of the basis [[0, 1]]" in out
        and "HIDDEN" not in out
    )


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
    assert status == 0 and out.strip() == "{'K': 3, 'model': 'a', 'size': 1.5}", err
    _, out, _ = call_script(script, "--size", 2, "--model", "b")
    assert out.strip() == "{'K': 3, 'model': 'b', 'size': 2.0}"
    _, out, _ = call_script(script, "--help")
    assert "of this script [a]" in out and "of it [1.5]" in out and "of the text" not in out
    assert_one_line_error(call_script(script, "--size", "x"), "--size", "'x'")
    script.write_text(script.read_text().replace("shared.model", '"mine"'))
    assert "'model': 'mine'" in call_script(script)[1]


def test_the_settings_of_an_encoder_are_flags_of_every_script_that_has_one():
    names = ("model", "pooling", "head", "device", "dtype", "attention", "batch_tokens")
    for script in (
        "RedditTLDR/prepare.py",
        "PRISM/generate-prism-embeddings.py",
        "PRISM/eval_rb2.py",
        "PersonalLLM/prepare.py",
    ):
        status, out, err = call_script(ROOT / script, "--help")
        assert status == 0 and not err
        for name in (*names, "no-share", "max_length", "limit"):
            assert f"--{name}" in out, (script, name)


def test_planted_settings_are_flags_of_training_alone():
    for folder, name in (("RedditTLDR", "workers"), ("PRISM", "users"), ("PersonalLLM", "tests")):
        assert f"--planted_{name}" in call_script(ROOT / folder / "train_basis.py", "--help")[1]
        for script in ("vary_fewshot.py", "prepare.py"):
            assert "--planted" not in call_script(ROOT / folder / script, "--help")[1]
