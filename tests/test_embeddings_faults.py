"""What can happen to a long embedding run, really done to it: killed, out of disk, damaged, started twice, half dead.

As a script (`MODEL PATH FAULT [RANK]`) this file is the run that something happens to.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from lore import processes, splits
from lore.common import InputError, start
from lore.splits import load_split
from lore.text import embeddings, packing
from lore.text.conversations import exchange
from lore.text.embeddings import Run, embed_split, read_part
from lore.text.encoder import Encoder

ANIMALS = ("cat", "dog", "friend", "mat")
PART_BYTES, PARTS = 250, 8  # bytes of text in a part, and how many parts the text below then has
DIED = -signal.SIGKILL


def a_frame(animals=ANIMALS):
    rows = []
    for number, animal in enumerate(animals * 3):
        prompt = f"question {number}: " + f"where is the {animal}? " * (1 + number % 5)
        chosen, rejected = (
            exchange(prompt, f"{word}, the {animal} sat on it") for word in ("yes", "no")
        )
        rows.append(
            {
                "user_id": f"u{number % 2}",
                "prompt": str(number),
                "chosen": chosen,
                "rejected": rejected,
            }
        )
    return pd.DataFrame(rows)


def embed(model, path, frame=None, **options):
    torch.set_num_threads(1)  # as torchrun sets it: sums are then added in one order
    embed_split(
        path,
        a_frame() if frame is None else frame,
        Encoder(str(model), "last", torch.device("cpu"), **options),
    )


def fault(kind, path, victim):
    """Arrange that it happens to the process `victim`."""
    saved, save_file = [], embeddings.save_file

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def save(tensors, file, metadata):
        if processes.rank() == victim and len(saved) == 2 and kind == "killed":
            Path(file).write_bytes(b"half a part")
            die()
        if processes.rank() == victim and len(saved) == 2 and kind == "full":
            fill_disk(Path(path).parent / "filler")
        if len(saved) == 2 and kind == "quota":
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        if kind == "slow":
            time.sleep(0.25)
        saved.append(file)
        save_file(tensors, file, metadata)

    embeddings.save_file = save
    if kind == "killed in merge":

        def dying(blocks):
            yield next(blocks)
            die()

        write_blocks = splits.write_blocks
        splits.write_blocks = lambda file, tensors, blocks, header: write_blocks(
            file, tensors, dying(blocks), header
        )
    if kind == "killed in cleaning":
        shutil.rmtree = die


def fill_disk(path):
    with open(path, "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(b"x" * 4096)
        except OSError as error:
            print("filled:", error)


if __name__ == "__main__":
    packing.PART_BYTES = PART_BYTES
    fault(sys.argv[3], sys.argv[2], int(sys.argv[4]) if len(sys.argv) > 4 else 0)
    start(lambda: embed(*sys.argv[1:3]))


# ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(packing, "PART_BYTES", PART_BYTES)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(reward_model, tmp_path_factory):
    """The bytes of a run to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "PART_BYTES", PART_BYTES)
        embed(reward_model, folder / "train")
    return bytes_of(folder / "train")


def bytes_of(path):
    return Path(f"{path}.safetensors").read_bytes(), Path(f"{path}.parquet").read_bytes()


def run_here(model, path, kind, *victim, processes=0):
    """This file as a script: (exit status, stdout, stderr)."""
    command = [
        sys.executable,
        *(["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes else []),
    ]
    command += [__file__, str(model), str(path), kind, *map(str, victim)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def parts(path):
    return sorted(Path(f"{path}.parts").glob("0*.safetensors"))


def assert_done(path, undisturbed):
    assert bytes_of(path) == undisturbed
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "train.parquet",
        "train.safetensors",
    ]


def test_a_run_killed_in_the_middle_of_a_part_goes_on(
    reward_model, tmp_path, undisturbed, monkeypatch, capsys
):
    path = tmp_path / "train"
    assert run_here(reward_model, path, "killed")[0] == DIED
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


@pytest.mark.parametrize("kind", ["killed in merge", "killed in cleaning"])
def test_a_run_killed_at_its_end_loses_nothing(
    reward_model, tmp_path, undisturbed, kind, monkeypatch, capsys
):
    path = tmp_path / "train"
    assert run_here(reward_model, path, kind)[0] == DIED
    assert len(parts(path)) == PARTS
    assert len(list(tmp_path.glob("train.safetensors.*.tmp"))) == (kind == "killed in merge")
    monkeypatch.setattr(Encoder, "forward", lambda *_: pytest.fail("computed again"))
    embed(reward_model, path)
    assert_done(path, undisturbed)
    embed(reward_model, path)
    assert capsys.readouterr().out.strip().endswith("done already")


def test_a_full_disk_ends_it_with_one_line_and_it_goes_on(reward_model, tmp_path, undisturbed):
    """A disk of 200 kB; where none may be mounted, a limit to the size of a file."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", tmp_path], capture_output=True
    )
    kind, reason = (
        ("quota", "File too large") if mounted.returncode else ("full", "No space left on device")
    )
    try:
        path = tmp_path / "train"
        status, _, err = run_here(reward_model, path, kind)
        last = err.strip().splitlines()[-1]
        assert (
            status == 2
            and "error: " in last
            and "cannot be written" in last
            and "Traceback" not in err
        )
        assert reason in last and "train.parts/00002.safetensors" in last
        assert len(parts(path)) == 2 and not list(Path(f"{path}.parts").glob("*.tmp"))
        (tmp_path / "filler").unlink(missing_ok=True)
        embed(reward_model, path)
        assert_done(path, undisturbed)
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", tmp_path], check=True)


def interrupted(model, path, **options):
    """Two parts are finished, then Ctrl-C."""
    saved, save_part = [], embeddings.save_part

    def save(*args):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(save_part(*args))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings, "save_part", save)
        with pytest.raises(KeyboardInterrupt):
            embed(model, path, **options)
    return parts(path)


def header_text(file):
    with open(file, "rb") as opened:
        return opened.read(int.from_bytes(opened.read(8), "little"))


def header_of(file):
    return json.loads(header_text(file))["__metadata__"]


def test_damaged_parts_are_made_again(reward_model, tmp_path, undisturbed, capsys):
    path = tmp_path / "train"
    first, second = interrupted(reward_model, path)
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])  # cut off
    content = second.read_bytes()
    second.write_bytes(content[:-40] + bytes(40))  # as long as it was, zeros at its end
    assert read_part(second, header_of(second)["key"]) is None
    third = interrupted(reward_model, tmp_path / "other")[0]
    text, content, key = header_text(third), third.read_bytes(), header_of(third)["key"]
    assert read_part(third, key) is not None
    begin = 8 + len(text) + json.loads(text)["head"]["data_offsets"][0]
    third.write_bytes(content[:begin] + bytes(8) + content[begin + 8 :])
    assert read_part(third, key) is None  # the head is vouched for as well
    shutil.rmtree(third.parent)
    elsewhere = interrupted(reward_model, tmp_path / "other", frame=a_frame((*ANIMALS[:3], "bus")))[
        1
    ]
    second.write_bytes(elsewhere.read_bytes())  # whole, of the same rows, but of other text
    shutil.rmtree(elsewhere.parent)
    embed(reward_model, path)
    out = capsys.readouterr().out
    for file in (first, second):
        assert f"{file} is damaged, or of other text: computed again" in out
    assert_done(path, undisturbed)


def test_a_second_process_on_the_same_output_is_refused(reward_model, tmp_path, undisturbed):
    path = tmp_path / "train"
    slow = subprocess.Popen(
        [sys.executable, __file__, reward_model, path, "slow"], stderr=subprocess.DEVNULL
    )
    while not parts(path):
        assert slow.poll() is None
        time.sleep(0.05)
    with pytest.raises(
        InputError, match=rf"train.parts is being written by process {slow.pid} on .*; wait, or"
    ):
        embed(reward_model, path)
    assert slow.wait(60) == 0
    assert_done(path, undisturbed)


def test_two_processes_make_what_one_makes_and_one_may_die(reward_model, tmp_path, undisturbed):
    path = tmp_path / "train"
    status, _, err = run_here(reward_model, path, "killed", 1, processes=2)
    assert status == 1 and "Signal 9 (SIGKILL)" in err
    assert 2 <= len(parts(path)) < PARTS  # what was finished is kept
    missing = 24 - sum(len(load_file(part)["vectors"]) for part in parts(path))
    status, out, err = run_here(reward_model, path, "nothing", processes=2)
    assert status == 0, err
    assert (
        out.count("parts are there already") == 1 and out.count("texts/s") == 1
    )  # the first process speaks
    assert f"\n{missing} texts, " in out  # of both together: none is computed twice
    assert_done(path, undisturbed)


def test_a_run_that_was_begun_in_another_way_is_refused(reward_model, tmp_path):
    path, model = tmp_path / "data/train", tmp_path / "model"
    shutil.copytree(reward_model, model)
    finished = interrupted(model, path)
    for options, words in (
        ({"dtype": "bfloat16"}, "whose dtype is 'torch.float32', not 'torch.bfloat16'"),
        ({"max_length": 100}, "whose max_length is '0', not '100'"),
        ({"share": False}, "whose share is True, not False"),
        ({"frame": a_frame(ANIMALS[:3])}, "whose fingerprint of the text is"),
        ({"frame": a_frame((*ANIMALS[:3], "bird"))}, "whose fingerprint of the text is"),
    ):
        with pytest.raises(InputError, match=words):
            embed(model, path, **options)
    for file, change in (
        ("chat_template.jinja", lambda old: old.replace(b"<|end|>", b"<|end|> ")),
        (
            "model.safetensors",
            lambda old: old[:-5000] + bytes(5000),
        ),  # trained on, in the same place
    ):
        before = (model / file).read_bytes()
        (model / file).write_bytes(change(before))
        with pytest.raises(
            InputError, match=r"train.parts holds an interrupted run whose version is"
        ):
            embed(model, path)
        (model / file).write_bytes(before)
    assert parts(path) == finished
    embed(model, path, batch_tokens=100)  # less memory is no other run
    assert len(load_split(path, "").table) == 24


def test_too_little_disk_is_known_before_the_start(reward_model, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 4000))
    monkeypatch.setattr(Encoder, "forward", lambda *_: pytest.fail("begun"))
    with pytest.raises(InputError, match=r"train.parts: needs 0.01 MB of disk, 0.00 MB are free"):
        embed(reward_model, tmp_path / "train")
