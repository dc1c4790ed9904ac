"""What a session has learned of its people, written as other scripts of apply/ take it."""

from pathlib import Path

import pandas as pd
from safetensors.torch import save_file

from lore.common import written_whole
from lore.fit.basis import save_basis
from lore.fit.comparisons import Comparisons
from lore.fit.likelihood import LOGIT_SCALE
from lore.text.input_rows import judgements_of
from newcomers import require_new, to_fit
from stored_answers import taken_in

BASIS = "basis.safetensors"


def write_people(folder, basis, pool, rows):
    """FOLDER/basis.safetensors, as adapt.py writes it, and a head for each person of rows of SESSIONS.

    A head is score.weight (1, d), V w + e over LOGIT_SCALE: the last shard of export.py's folder. -> rows of
    adapt.py's table. InputError: somebody stands in the basis by now.
    """
    judgements = judgements_of((f"SESSIONS, line {number}", row) for number, row in enumerate(rows, 1))
    require_new(judgements, basis, "the basis")
    judgements = to_fit(judgements)
    pairs = embedded(judgements, pool)
    with_people, said = taken_in(basis, pairs, judgements)
    save_basis(Path(folder) / BASIS, with_people)
    heads = with_people.rewards(pairs.user_ids).T / LOGIT_SCALE  # (P, d)
    for number, user in enumerate(pairs.user_ids):
        with written_whole(Path(folder) / f"head_{number:03d}.safetensors") as file:
            head = {"score.weight": heads[[number]]}
            save_file(head, file, {"format": "pt", "user_id": user})
    return said


def embedded(judgements, pool):
    """Comparisons of judgements whose replies have vectors, as newcomers.embedded_pairs has them."""
    frame = pd.DataFrame({"user_id": [each.user_id for each in judgements]})
    frame["prompt"] = [each.prompt_id for each in judgements]
    frame["chosen"] = pool.rows_of([each.chosen for each in judgements])
    frame["rejected"] = pool.rows_of([each.rejected for each in judgements])
    return Comparisons.from_frame(pool.table, frame, prompt="prompt")
