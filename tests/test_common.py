"""Whole files, devices, progress and output."""

import importlib
import json
import os
import shlex
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, assert_one_line_error, call_script

import lore
from lore import common
from lore.common import InputError


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "file"
    with common.written_whole(target) as file:
        file.write_text("first")
    with pytest.raises(RuntimeError), common.written_whole(target) as file:
        file.write_text("half")
        raise RuntimeError
    assert target.read_text() == "first" and list(target.parent.iterdir()) == [target]


def test_what_cannot_be_written_is_known_before_and_a_link_stays_a_link(tmp_path):
    """The rule of every output, whichever script writes it."""
    old = tmp_path / "old"
    old.write_text("old")
    old.chmod(0o600)
    (tmp_path / "link").symlink_to(old)
    with common.written_whole(tmp_path / "link") as file:
        file.write_text("new")
    assert (tmp_path / "link").is_symlink() and old.read_text() == "new"
    assert old.stat().st_mode & 0o777 == 0o600
    (tmp_path / "ahead").symlink_to(tmp_path / "folder/file")  # of a file that is not there yet
    with common.written_whole(tmp_path / "ahead") as file:
        file.write_text("new")
    assert (tmp_path / "folder/file").read_text() == "new" and (tmp_path / "ahead").is_symlink()
    old.chmod(0o400)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    names = (
        "/dev/null",
        tmp_path,
        old,
        old / "file",
        tmp_path / "circle",
        f"{tmp_path}/{'x' * 250}",
    )
    for path in (*names, "/proc/no", "/proc/no/file"):
        with pytest.raises(InputError):
            common.require_apart([path], [])
    for written, read in (
        ([old], [tmp_path / "link"]),
        ([tmp_path / "a", tmp_path / "b/../a"], []),
    ):
        with pytest.raises(InputError, match="would be written over"):
            common.require_apart(written, read)
    common.require_apart([tmp_path / "far/away/file"], [])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "ahead",
        "circle",
        "folder",
        "link",
        "old",
    ]


def test_results_that_cannot_be_written_are_told_before_the_fits(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "train_basis_synthetic.json").mkdir()
    for results in (tmp_path, tmp_path / "file", tmp_path / "file/results"):
        done = call_script(ROOT / "OwnData/train_basis.py", "--synthetic", "--results", results)
        assert_one_line_error(done, str(results))
        assert not done[1]  # nothing was split or fitted


def test_a_terminated_run_leaves_nothing_half_written(tmp_path):
    script = "import sys, time; from lore.common import start, written_whole\n"
    script += "def main():\n    with written_whole(sys.argv[1]) as file:\n        file.write_text('half')\n"
    script += "        print('begun', flush=True)\n        time.sleep(60)\nstart(main)"
    command = [sys.executable, "-c", script, str(tmp_path / "file")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"begun\n"
    process.terminate()
    assert process.wait(30) == 143 and not [*tmp_path.iterdir()]


def test_a_missing_device_is_refused():
    with pytest.raises(InputError, match="device = cuda:99"):
        common.pick_device("cuda:99")
    with pytest.raises(InputError, match="use auto, cpu, cuda"):
        common.pick_device("abacus")
    assert common.pick_device("cpu") == torch.device("cpu")


def test_progress_in_a_log_file_is_a_line_now_and_then(capsys, monkeypatch):
    for _ in common.progress(range(50), "short"):
        pass
    assert capsys.readouterr().err == ""  # done before a bar would appear
    monkeypatch.setattr(common, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(common, "LOG_SECONDS", 0.1)
    for _ in common.progress(range(250), "joint fit"):
        time.sleep(0.002)
    written = capsys.readouterr().err
    lines = written.splitlines()
    assert "\r" not in written and 2 <= len(lines) <= 30  # not one a step
    assert all(line.startswith("joint fit: ") for line in lines)


def run_main(code, shell="", **setting):
    """A script whose main is a line of code, in a process of its own."""
    code = f"from lore.common import InputError, start; start(lambda: {code})"
    command = f"{sys.executable} -c {shlex.quote(code)} {shell}"
    return subprocess.run(
        command, shell=True, cwd=ROOT, capture_output=True, timeout=120, env=os.environ | setting
    )


def test_a_reader_that_has_gone_leaves_no_traceback():
    done = run_main("print('x' * 1_000_000)", "| head -c 1")
    assert (done.stdout, done.stderr) == (b"x", b"")


def test_a_full_disk_is_one_line_and_closed_streams_are_nothing(tmp_path):
    done = run_main("print('x')", ">/dev/full")
    assert done.returncode == 2 and done.stderr.startswith(b"error: [Errno 28] No space left")
    assert len(done.stderr.splitlines()) == 1
    made = f"print('x', open({str(tmp_path / 'made')!r}, 'w'))"
    assert run_main(made, ">&- 2>&-").returncode == 0 and (tmp_path / "made").exists()


def test_neither_a_terminal_of_ascii_nor_the_backend_of_a_notebook_ends_a_run(tmp_path):
    setting = {"PYTHONIOENCODING": "ascii", "MPLBACKEND": "nonsense"}
    flags = ["--synthetic", "--K_list", "1", "2", "--num_iterations", "5", "--repeats", "2"]
    command = [sys.executable, "RedditTLDR/train_basis.py", *flags, "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, env=os.environ | setting)
    assert done.returncode == 0 and done.stderr == b""
    assert b" ? std over seeds" in done.stdout
    (saved,) = tmp_path.glob("*.json")
    assert len(json.loads(saved.read_text())["rows"]) >= 4
    assert saved.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


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
