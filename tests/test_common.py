"""Whole files, devices, progress and output."""

import pytest
import torch

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


def test_a_missing_device_is_refused():
    with pytest.raises(InputError, match="device = cuda:99"):
        common.pick_device("cuda:99")
    with pytest.raises(InputError, match="use auto, cpu, cuda"):
        common.pick_device("abacus")
    assert common.pick_device("cpu") == torch.device("cpu")
