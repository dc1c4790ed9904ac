"""Positions that a model has, and where its pass depends on the longest one."""

import math

import pytest

from lore.text.checkpoint import count_positions, rotary_switch

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "factor": 2.0,
    "original_max_position_embeddings": 64,
}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    "parameters, switch",
    [
        (LONGROPE, 64),
        (PLAIN, math.inf),
        ({**PLAIN, "rope_type": "dynamic", "factor": 2.0}, math.inf),
        ({"full_attention": LONGROPE, "sliding_attention": PLAIN}, 64),  # by the kind of layer
    ],
)
def test_where_rotary_positions_switch(parameters, switch):
    from transformers import LlamaConfig

    config = LlamaConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=128)
    config.rope_parameters = parameters
    assert rotary_switch(config) == switch


def test_positions_of_tables_of_configurations_and_of_neither():
    from transformers import (
        IBertConfig,
        IBertModel,
        MambaConfig,
        MambaModel,
        OPTConfig,
        OPTModel,
        RobertaConfig,
        RobertaModel,
        XLNetConfig,
        XLNetModel,
    )

    size = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = RobertaConfig(**size, max_position_embeddings=20, pad_token_id=1)
    assert count_positions(RobertaModel(config), config) == 18
    config = IBertConfig(**size, max_position_embeddings=20, pad_token_id=1)
    assert count_positions(IBertModel(config), config) == 18  # a layer of a kind of its own
    config = OPTConfig(**size, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=20)
    assert count_positions(OPTModel(config), config) == 20  # its table has two rows more
    config = MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1)
    assert count_positions(MambaModel(config), config) == math.inf
    config = XLNetConfig(vocab_size=50, d_model=16, n_layer=1, n_head=2, d_inner=16)
    assert count_positions(XLNetModel(config), config) == math.inf  # it says -1
