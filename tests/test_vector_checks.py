"""Vectors that would be wrong are refused, whenever in a run they come."""

import pytest
from tiny import LONGROPE, TALKS, a_model, assert_own_passes, dialogue, edit_json, encoder, rewritten

from lore.common import InputError
from lore.text.attention import Stretch
from lore.text.conversations import exchange


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    "family, options",
    [
        ("Llama", {}),
        ("Llama", {"original_max_position_embeddings": 60}),
        ("Phi3", {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}),
    ],
)
def test_positions_scaled_by_the_longest_in_a_pass(family, options, share, tokenizer, tmp_path):
    """Conversations on the two sides of the switch do not share a pass, even in one tree."""
    a_model(f"{family}ForSequenceClassification", tmp_path, tokenizer, rope_parameters=LONGROPE, **options)
    if "original_max_position_embeddings" in options:  # it wins, once the model is loaded
        longer = LONGROPE | {"original_max_position_embeddings": 200}
        edit_json(tmp_path / "config.json", rope_parameters=longer)
    model = encoder(tmp_path, share=share)
    talks = [*dialogue(4), *TALKS, exchange("the cat " * 40, "ok"), exchange("the cat " * 40, "no")]
    lengths = [len(ids) for ids in model.tokeniser.tokens(talks)[0]]
    assert min(lengths) < 60 < max(lengths) and len(lengths) == 18
    assert_own_passes(model, talks)


def test_a_window_of_its_own_is_noticed_at_the_first_longer_text(tokenizer, tmp_path, monkeypatch):
    """It is right for texts within the window, which come first here as they have more letters."""
    a_model("MistralForSequenceClassification", tmp_path, tokenizer, sliding_window=100)
    monkeypatch.setattr("lore.text.packing.PART_BYTES", 10)
    mask = Stretch.mask
    monkeypatch.setattr(Stretch, "mask", lambda self, _, additive: mask(self, None, additive))
    model = encoder(tmp_path)
    short = exchange("the cat sat on the mat and the dog lay beside it " * 6, "ok")
    longer = exchange("7 6 5 4 3 2 1 " * 20, "ok")
    lengths = [len(ids) for ids in model.tokeniser.tokens([short, longer])[0]]
    assert lengths[0] < 100 < lengths[1]
    assert_own_passes(model, [short])
    with pytest.raises(InputError, match="depends on what is computed beside it; use --no-share"):
        model.embed([short, longer])
    assert_own_passes(encoder(tmp_path, share=False), [short, longer])


@pytest.mark.parametrize("dtype, number", [("float32", float("nan")), ("float16", 1e5)])
def test_no_finite_vector_is_told_with_text_and_dtype(reward_model, tmp_path, dtype, number, tokenizer):
    """Only the text with one token is hit, and it comes last."""
    (row,) = tokenizer("Q", add_special_tokens=False)["input_ids"]

    def hit(weights):
        weights["model.embed_tokens.weight"][row] = number
        return weights

    model = encoder(rewritten(reward_model, tmp_path / "model", hit), dtype=dtype, batch_tokens=1)
    assert model.embed(TALKS).isfinite().all()
    with pytest.raises(InputError, match=f"gives NaN or infinity for the text 'a Q' with --dtype {dtype}"):
        model.embed([*TALKS, exchange("x", "a Q")])


def test_a_mean_that_sees_padding_is_refused_and_its_way_out_is_right(tokenizer, tmp_path):
    """Fourier mixing has no mask: padding beside a longer text is mixed in."""
    a_model("FNetModel", tmp_path, tokenizer)
    with pytest.raises(InputError, match=r"depends on what is .* beside it; use --batch_tokens 1"):
        encoder(tmp_path, "mean", attention="eager").embed(TALKS)
    model = encoder(tmp_path, "mean", attention="eager", batch_tokens=1)
    assert_own_passes(model, TALKS)


def test_every_longest_text_so_far_is_compared(reward_model, monkeypatch):
    compared = []
    model = encoder(reward_model, batch_tokens=1)
    compare = model.checks.compare

    def look_and_compare(tokens, vector):
        compared.append(len(tokens))
        compare(tokens, vector)

    monkeypatch.setattr(model.checks, "compare", look_and_compare)
    lengths = [len(ids) for ids in model.tokeniser.tokens(TALKS)[0]]
    model.embed([TALKS[0]])
    assert max(compared) == lengths[0]
    compared.clear()
    model.embed([TALKS[3]])  # shorter
    assert not compared
    model.embed([TALKS[1], TALKS[1], TALKS[0]])
    assert set(compared) == {lengths[1]}
