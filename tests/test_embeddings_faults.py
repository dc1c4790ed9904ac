"""What can happen to a long embedding run: killed, out of disk, damaged, started twice, half dead."""

import os
import resource
import shutil
import signal
import socket
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lore.common import InputError, start
from lore.splits import load_split
from lore.text import embeddings, packing
from lore.text.conversations import exchange
from lore.text.embeddings import Run, embed_split, lock_folder, read_part
from lore.text.encoder import Encoder

ANIMALS = ("cat", "dog", "friend", "mat")
PART_BYTES = 250  # of text in a part
PARTS = 8  # that the text below then has


def a_frame(animals=ANIMALS):
    rows = []
    for number, animal in enumerate(animals * 3):
        prompt = f"question {number}: " + f"where is the {animal}? " * (1 + number % 5)
        row = {"user_id": f"u{number % 2}", "prompt": str(number)}
        for side, word in (("chosen", "yes"), ("rejected", "no")):
            row[side] = exchange(prompt, f"{word}, the {animal} sat on it")
        rows.append(row)
    return pd.DataFrame(rows)


def embed(model, path, frame=None, **options):
    torch.set_num_threads(1)  # as torchrun sets it: sums are then added in one order
    encoder = Encoder(str(model), "last", torch.device("cpu"), **options)
    embed_split(path, a_frame() if frame is None else frame, encoder)


def at_third_part(what):
    """A save_file that does `what` in place of the third part."""
    saved = []
    save_file = embeddings.save_file

    def save(tensors, file, metadata):
        if len(saved) == 2:
            what(lambda: save_file(tensors, file, metadata), file)
        saved.append(file)
        save_file(tensors, file, metadata)

    return save


def interrupt(*_):
    raise KeyboardInterrupt


def be_killed(_, file):
    Path(file).write_bytes(b"half a part")
    os.kill(os.getpid(), signal.SIGKILL)


def in_processes(count, model, path, killed=None):
    """Exit statuses of processes, forked from this one, that make one run; the `killed` one at its third part."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    sys.stdout.flush()
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.environ |= address | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            if rank == killed:
                embeddings.save_file = at_third_part(be_killed)
            try:
                start(lambda: embed(model, path))
            finally:
                os._exit(0)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


@pytest.fixture(autouse=True, scope="module")
def small_parts():
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "PART_BYTES", PART_BYTES)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(reward_model, tmp_path_factory):
    """The bytes of a run to which nothing happens."""
    path = tmp_path_factory.mktemp("undisturbed") / "train"
    embed(reward_model, path)
    return bytes_of(path)


def bytes_of(path):
    return Path(f"{path}.safetensors").read_bytes(), Path(f"{path}.parquet").read_bytes()


def parts(path):
    return sorted(Path(f"{path}.parts").glob("0*.safetensors"))


def assert_done(path, undisturbed):
    """What is there is byte for byte what one undisturbed process of one thread makes, and nothing else."""
    assert bytes_of(path) == undisturbed
    assert {file.name for file in path.parent.iterdir()} == {"train.parquet", "train.safetensors"}


def interrupted(model, path, what=interrupt, ending=KeyboardInterrupt, words=None, **options):
    """Two parts are finished, then Ctrl-C or something else: what there is of it."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ending, match=words):
        patch.setattr(embeddings, "save_file", at_third_part(what))
        embed(model, path, **options)
    return parts(path)


def test_a_run_killed_within_a_part_goes_on(reward_model, tmp_path, undisturbed, monkeypatch, capsys):
    path = tmp_path / "train"
    assert in_processes(1, reward_model, path, killed=0) == [-signal.SIGKILL]
    assert len(parts(path)) == 2 and not path.with_suffix(".safetensors").exists()
    assert len(list(Path(f"{path}.parts").glob("*.tmp"))) == 1  # the half
    times = [file.stat().st_mtime_ns for file in parts(path)]
    seen, merge = [], Run.merge

    def look_and_merge(run):
        seen.extend(file.stat().st_mtime_ns for file in parts(path))
        merge(run)

    monkeypatch.setattr(Run, "merge", look_and_merge)
    embed(reward_model, path)
    assert f"2 of {PARTS} parts are there already" in capsys.readouterr().out
    assert len(seen) == PARTS and seen[:2] == times  # kept, not made again
    assert_done(path, undisturbed)


@pytest.mark.parametrize("ended_in", ["merge", "cleaning"])
def test_an_end_at_the_end_loses_nothing(reward_model, tmp_path, undisturbed, ended_in, monkeypatch, capsys):
    path = tmp_path / "train"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*((Run, "merge") if ended_in == "merge" else (embeddings, "delete_parts")), interrupt)
        embed(reward_model, path)
    assert len(parts(path)) == PARTS
    if ended_in == "merge":
        (tmp_path / "train.safetensors.1.tmp").touch()  # as a kill leaves it
    monkeypatch.setattr(Encoder, "forward", lambda *_: pytest.fail("computed again"))
    embed(reward_model, path)
    assert_done(path, undisturbed)
    embed(reward_model, path)
    assert capsys.readouterr().out.strip().endswith("done already")


def test_a_full_disk_ends_it_with_one_line_and_it_goes_on(reward_model, tmp_path, undisturbed):
    """A limit to the size of a file stands for it."""
    path = tmp_path / "train"

    def fill(save, _):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
        try:
            save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    words = r"train.parts/00002.safetensors cannot be written: .*File too large"
    assert len(interrupted(reward_model, path, fill, InputError, words)) == 2
    assert not list(Path(f"{path}.parts").glob("*.tmp"))
    embed(reward_model, path)
    assert_done(path, undisturbed)


def test_damaged_parts_are_made_again(reward_model, tmp_path, undisturbed, capsys):
    path = tmp_path / "train"
    first, second = interrupted(reward_model, path)
    with safe_open(second, framework="pt") as opened:
        header = opened.metadata()
    content, tensors = second.read_bytes(), load_file(second)
    assert read_part(second, header["key"]) is not None
    save_file(tensors | {"head": tensors["head"] + 1}, second, header)
    assert read_part(second, header["key"]) is None  # the head is vouched for as well
    second.write_bytes(content[:-40] + bytes(40))  # as long as it was, zeros at its end
    assert read_part(second, header["key"]) is None
    first.write_bytes(content[: len(content) // 2])  # cut off
    elsewhere = interrupted(reward_model, tmp_path / "other", frame=a_frame((*ANIMALS[:3], "bus")))[1]
    second.write_bytes(elsewhere.read_bytes())  # whole, of the same rows, but of other text
    shutil.rmtree(elsewhere.parent)
    embed(reward_model, path)
    out = capsys.readouterr().out
    for file in (first, second):
        assert f"{file} is damaged, or of other text: computed again" in out
    assert_done(path, undisturbed)


def test_a_second_process_and_too_little_disk_are_told_before_the_start(
    reward_model, tmp_path, undisturbed, monkeypatch
):
    path = tmp_path / "train"
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "forward", lambda *_: pytest.fail("begun"))
        words = rf"train.parts is being written by process {os.getpid()} on .*; wait, or"
        with lock_folder(Path(f"{path}.parts")), pytest.raises(InputError, match=words):
            embed(reward_model, path)
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 4000))
        with pytest.raises(InputError, match=r"train.parts: needs 0.01 MB of disk, 0.00 MB are free"):
            embed(reward_model, path)
    embed(reward_model, path)
    assert_done(path, undisturbed)


def test_two_processes_make_what_one_makes_and_one_may_die(reward_model, tmp_path, undisturbed, capfd):
    path = tmp_path / "train"
    assert in_processes(2, reward_model, path, killed=1) == [2, -signal.SIGKILL]
    assert "process 0 of 2: another one has ended" in capfd.readouterr().err
    assert 2 <= len(parts(path)) < PARTS  # what was finished is kept
    missing = 24 - sum(len(load_file(part)["vectors"]) for part in parts(path))
    assert in_processes(2, reward_model, path) == [0, 0]
    out = capfd.readouterr().out
    assert out.count("parts are there already") == 1 and out.count("texts/s") == 1  # the first process speaks
    assert f"\n{missing} texts, " in out  # of both together: none is computed twice
    assert_done(path, undisturbed)


def test_a_run_that_was_begun_in_another_way_is_refused(reward_model, tmp_path):
    path, model = tmp_path / "data/train", tmp_path / "model"
    shutil.copytree(reward_model, model)
    finished = interrupted(model, path)
    for options, words in (
        ({"dtype": "bfloat16"}, "dtype = 'torch.float32', this run has 'torch.bfloat16'"),
        ({"max_length": 100}, "max_length = 0, this run has 100"),
        ({"share": False}, "share = True, this run has False"),
        ({"frame": a_frame(ANIMALS[:3])}, "fingerprint of the text = "),
        ({"frame": a_frame((*ANIMALS[:3], "bird"))}, "fingerprint of the text = "),
    ):
        with pytest.raises(InputError, match=words):
            embed(model, path, **options)
    for file in (model / "chat_template.jinja", model / "model.safetensors"):  # as large as they were
        before = file.read_bytes()
        file.write_bytes(before[:-20] + before[-40:-20])
        with pytest.raises(InputError, match=r"train.parts was made with version = "):
            embed(model, path)
        file.write_bytes(before)
    assert parts(path) == finished
    embed(model, path, batch_tokens=100)  # less memory is no other run
    assert len(load_split(path, "").table) == 24
