"""Settings as flags."""

from conftest import ROOT, run_script

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
