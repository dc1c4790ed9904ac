"""Whole files, devices, progress and output."""

import importlib
import os
import signal
import sys
import time
from functools import partial

import pytest
import torch
from conftest import ROOT, assert_one_line_error, call_script

import lore
from lore import common
from lore.common import InputError
from lore.report import pictures


def test_a_file_is_written_whole_or_not_at_all_and_a_link_stays_a_link(tmp_path):
    """The rule of every output, whichever script writes it."""
    old = tmp_path / "old"
    old.write_text("old")
    old.chmod(0o600)
    (tmp_path / "link").symlink_to(old)
    (tmp_path / "ahead").symlink_to(tmp_path / "folder/file")  # of a file that is not there yet
    for link in (tmp_path / "link", tmp_path / "ahead"):
        with common.written_whole(link) as file:
            file.write_text("new")
        with pytest.raises(RuntimeError), common.written_whole(link) as file:
            file.write_text("half")
            raise RuntimeError
        assert link.is_symlink() and link.read_text() == "new"
    assert old.stat().st_mode & 0o777 == 0o600
    old.chmod(0o400)
    circle, too_long = tmp_path / "circle", f"{tmp_path}/{'x' * 250}"
    circle.symlink_to(circle)
    for path in ("/dev/null", tmp_path, old, old / "file", circle, too_long, "/proc/no", "/proc/no/file"):
        with pytest.raises(InputError):
            common.require_apart([path], [])
    for written, read in (([old], [tmp_path / "link"]), ([tmp_path / "a", tmp_path / "b/../a"], [])):
        with pytest.raises(InputError, match="would be written over"):
            common.require_apart(written, read)
    common.require_apart([tmp_path / "far/away/file"], [])
    there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert there == {"ahead", "circle", "folder", "folder/file", "link", "old"}


def test_results_that_cannot_be_written_are_told_before_the_fits(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "train_basis_synthetic.json").mkdir()
    for results in (tmp_path, tmp_path / "file", tmp_path / "file/results"):
        done = call_script(ROOT / "OwnData/train_basis.py", "--synthetic", "--results", results)
        assert_one_line_error(done, str(results))
        assert not done[1]  # nothing was split or fitted


def test_a_missing_device_is_refused():
    for name, words in (("cuda:99", "device = cuda:99"), ("abacus", "use auto, cpu, cuda")):
        with pytest.raises(InputError, match=words):
            common.pick_device(name)
    assert common.pick_device("cpu") == torch.device("cpu")


def test_progress_in_a_log_file_is_a_line_now_and_then(capsys, monkeypatch):
    assert [*common.progress(range(50), "short")] == [*range(50)]
    assert capsys.readouterr().err == ""  # done before a bar would appear
    monkeypatch.setattr(common, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(common, "LOG_SECONDS", 0.1)
    for _ in common.progress(range(250), "joint fit"):
        time.sleep(0.002)
    written = capsys.readouterr().err
    lines = written.splitlines()
    assert "\r" not in written and 2 <= len(lines) <= 30  # not one a step
    assert all(line.startswith("joint fit: ") for line in lines)


FULL = "error: [Errno 28] No space left on device"


def started(main, out=None, err=None):
    """Exit status of a script's main in a process forked from this one; out, err: its streams, out() opens one."""
    child = os.fork()
    if child == 0:
        sys.stdout, sys.stderr = out and out(), err
        try:
            common.start(main)
        except SystemExit as ending:
            os._exit(ending.code)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_no_end_leaves_a_traceback_or_half_a_file(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)  # it has read enough
    output, file = tmp_path / "out", tmp_path / "file"
    endings = {
        "a terminated run": (partial(open, output, "w"), 143, ["interrupted"]),
        "a reader that has gone": (partial(os.fdopen, writer, "w"), 141, []),
        "a full disk": (partial(open, "/dev/full", "w"), 2, [FULL]),
        "closed streams": (None, 0, []),
        "a terminal of ASCII": (partial(open, output, "w", encoding="ascii"), 0, []),
    }

    def main():
        with common.written_whole(file) as half:
            half.write_text("half")
            if status == 143:
                os.kill(os.getpid(), signal.SIGTERM)
        print("±")

    for ending, (out, status, told) in endings.items():
        file.unlink(missing_ok=True)
        with open(tmp_path / "err", "w") as err:
            assert started(main, out, err if out else None) == status, ending
        assert (tmp_path / "err").read_text().splitlines() == told, ending
        assert {*tmp_path.iterdir()} == {output, tmp_path / "err", *[file] * (status != 143)}, ending
    assert output.read_text() == "?\n"


def test_the_backend_of_a_notebook_ends_no_run(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    pictures.empty_figure((1, 1))
    assert os.environ["MPLBACKEND"] == "Agg"


def test_an_error_is_one_short_line(capsys):
    def main():
        raise InputError("file.jsonl, line 2: " + "long\n" * 1000 + "end")

    with pytest.raises(SystemExit) as ending:
        common.start(main)
    told = capsys.readouterr().err
    assert ending.value.code == 2 and told.count("\n") == 1 and len(told) < common.LONGEST_ERROR + 20
    assert told.startswith("error: file.jsonl, line 2: long") and told.endswith(" end\n")


def test_importing_the_package_calls_each_elementwise_function_with_one_number(monkeypatch):
    """One number is computed by one thread, so that no other call can be the first."""
    called = []
    for name in ("cos", "sin", "sqrt", "exp", "tanh"):
        monkeypatch.setattr(torch, name, lambda x, name=name: called.append((name, x.numel())))
    importlib.reload(lore)
    assert set(called) == {("cos", 1), ("sin", 1), ("sqrt", 1), ("exp", 1), ("tanh", 1)}
