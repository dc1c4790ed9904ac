"""RewardBench 2: its rows, checked."""

from pathlib import Path

from lore.conversations import fetch_rows, read_rows
from lore.values import as_list, content_key, require, whole_number

SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")


def read_bench(source, subset, limit):
    """Checked rows of one subset, or of all. InputError: a row that RewardBench 2 does not have."""
    wanted = [name for name in SUBSETS if not subset or name.lower() == subset.lower()]
    require(wanted, f"subset = {subset}: use one of {', '.join(SUBSETS)}")
    require(
        not Path(source).is_dir(),
        f"{source} is a folder; name the JSON-lines or parquet file in it",
    )
    here = Path(source).is_file()
    rows, known, tied, again = [], set(), set(), 0
    for place, found in read_rows(source) if here else fetch_rows(source, split="test"):
        row = checked_row(place, found)
        key = content_key(row)
        if key in known:
            again += 1
            continue
        known.add(key)
        if row["subset"] == "Ties":
            twice = f"{row['id']} stands here for the second time, with other replies"
            require(row["id"] not in tied, f"{place}: {twice}")
            tied.add(row["id"])
        if row["subset"] in wanted:
            rows.append(row)
    if again:
        print(f"left out: {again} rows that stand there a second time")
    require(rows, f"{source} holds no row" + (f" of {subset}" if subset else ""))
    return rows[: limit or None]


def checked_row(place, row):
    """id, subset, prompt, chosen and rejected replies of a row, and how many are correct."""
    subset, number = row.get("subset"), row.get("num_correct")
    chosen, rejected = as_list(row.get("chosen")), as_list(row.get("rejected"))
    require(subset in SUBSETS, f"{place}: subset {subset!r} is none of {', '.join(SUBSETS)}")
    texts = [row.get("prompt"), *(chosen or [None]), *(rejected or [None])]
    needed = "needs a prompt, chosen and rejected replies, all of them text"
    require(all(isinstance(text, str) for text in texts), f"{place}: {needed}")
    counted = f"num_correct is {number!r}, chosen replies: {len(chosen)}"
    require(whole_number(number) == len(chosen), f"{place}: {counted}")
    name = str(row.get("id"))
    kind, _, pair = name.partition(":")
    tied = kind in ("ref", "tied") and pair.isdigit()
    named = f"the id of a Ties row is ref:N or tied:N, not {row.get('id')!r}"
    require(subset != "Ties" or tied, f"{place}: {named}")
    correct = f"{len(chosen)} correct replies; tied rows have several, all others one"
    require((len(chosen) > 1) == (kind == "tied"), f"{place}: {correct}")
    kept = {"id": name, "subset": subset, "prompt": row["prompt"], "num_correct": len(chosen)}
    return {**kept, "chosen": chosen, "rejected": rejected}
