"""Tables on disk: what was saved comes back, and what is wrong with a file is said."""

import pandas as pd
import pytest
import torch
from populations import a_split
from safetensors.torch import load_file

from lore import splits
from lore.common import InputError
from lore.fit.comparisons import Comparisons
from lore.splits import Split, load_split, save_split


def test_a_saved_split_comes_back_whole(tmp_path):
    split = a_split()
    save_split(tmp_path / "train", split, fingerprint="x")
    again = load_split(tmp_path / "train", "prepare")
    assert torch.equal(again.table, split.table) and again.table.dtype == torch.bfloat16
    assert again.frame.equals(split.frame) and torch.equal(again.head, split.head) and again.model == "tiny"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.parquet", "train.safetensors"]
    save_split(tmp_path / "train", split._replace(frame=split.frame[:0]))
    assert len(load_split(tmp_path / "train", "prepare").frame) == 0  # no comparison at all


def with_nan(table):
    table[3, 1] = float("nan")
    return table


def test_what_is_wrong_with_a_split_is_said(tmp_path):
    path = tmp_path / "train"
    with pytest.raises(InputError, match=r"train.safetensors is missing; make it with: python x.py"):
        load_split(path, "python x.py")
    for change, words in (
        ({"table": with_nan(a_split().table)}, "row 3 of the embeddings holds NaN"),
        ({"table": a_split().table[:5]}, "outside the 5 rows"),
        ({"frame": a_split().frame.assign(user_id=["b", None, "b"])}, "row 1 has no user_id"),
        ({"frame": a_split().frame.assign(chosen=[0, None, 4])}, "column chosen holds no row numbers"),
        ({"head": torch.randn(9, 1)}, "head has width 9, the embeddings have 4"),
        ({"head": torch.full((4, 1), float("nan"))}, "head holds NaN"),
        ({"frame": a_split().frame.drop(columns="prompt")}, r"train\.parquet has no column prompt"),
    ):
        save_split(path, a_split()._replace(**change))
        with pytest.raises(InputError, match=words):
            load_split(path, "prepare", needed=("user_id", "prompt"))
    for kind in ("parquet", "safetensors"):
        save_split(path, a_split())
        file = path.with_suffix(f".{kind}")
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(InputError, match=rf"train\.{kind} is damaged"):
            load_split(path, "prepare")


def test_a_split_written_in_blocks_reads_like_one_written_whole(tmp_path):
    frame = pd.DataFrame({"user_id": ["u"], "chosen": [0], "rejected": [4]})
    head = torch.randn(3, 1)
    for dtype in splits.DTYPES:
        table = torch.randn(5, 3).to(dtype)
        save_split(tmp_path / "whole", Split(table, frame, head, "m"), fingerprint="f")
        blocks = [([3, 0], table[[3, 0]]), ([1, 2, 4], table[[1, 2, 4]])]
        save_split(tmp_path / "parts", Split(table.to("meta"), frame, head, "m"), blocks, fingerprint="f")
        whole, parts = (load_split(tmp_path / name, "") for name in ("whole", "parts"))
        as_the_library_reads_it = load_file(tmp_path / "parts.safetensors")["embeddings"]
        for copy in (parts.table, whole.table, as_the_library_reads_it):
            assert torch.equal(copy, table)
        assert torch.equal(parts.head, head) and parts.model == "m"
    for shape in ((3,), (1, 3), (3, 1)):
        assert torch.equal(splits.reference_head(head.reshape(shape), 3), head)  # a column


def test_a_split_that_others_rewrote_holds_the_same_comparisons(tmp_path):
    split = a_split()
    shuffled = split.frame.iloc[[2, 0, 1]].astype({"user_id": "category", "chosen": "uint8"})
    save_split(tmp_path / "train", split._replace(table=split.table.double(), frame=shuffled))
    again = load_split(tmp_path / "train", "prepare")
    assert again.table.dtype == torch.float64 and list(again.frame.index) == [0, 1, 2]

    def placed(frame):
        return sorted(frame[["user_id", "prompt", "chosen", "rejected"]].values.tolist())

    assert placed(again.frame) == placed(split.frame)
    data = Comparisons.from_frame(again.table, again.frame, ["a"])
    like = torch.zeros(1, dtype=torch.float64)
    expected = split.table[2].double() - split.table[3].double()
    assert torch.equal(data.differences(like)[0], expected)

    for ids in ([7, 8, 7], [7.0, 8.0, 7.0], ["7", "8", "7"]):
        save_split(tmp_path / "train", split._replace(frame=split.frame.assign(user_id=ids)))
        assert load_split(tmp_path / "train", "").frame["user_id"].tolist() == ["7", "8", "7"]
