"""Encoders of token ids: what a token may see, and that padding counts for nothing."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslkit import SslkitError, build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.text.encoders.base import TextEncoder
from sslkit.text.tokenizer import CLS, PAD, SEP, SPECIALS, Tokenizer

IDS = 20 + len(SPECIALS)
NAMES = ["gpt_micro", "bert_micro", "rnn_text", "elmo_text", "feedforward_text"]


def built(name: str, size: int = 12, **options: Any) -> TextEncoder:
    torch.manual_seed(0)
    texts = {"width": 16, **options}
    encoder = build_encoder(recipe_for(name, size, IDS, {key: str(value) for key, value in texts.items()})).eval().double()
    assert isinstance(encoder, TextEncoder)
    return encoder


def rows(*length: int) -> Tensor:
    """Return random rows of tokens, padded; with a class token and a separator."""
    torch.manual_seed(1)
    tokens = torch.randint(20, (len(length), 12))
    for row, end in enumerate(length):
        tokens[row, 0], tokens[row, end - 1], tokens[row, end:] = 20 + CLS, 20 + SEP, 20 + PAD
    return tokens


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_no_features(name: str) -> None:
    encoder = built(name)
    padded = rows(7)
    for layer, (long, short) in enumerate(zip(encoder.layers(padded), encoder.layers(padded[:, :7]), strict=True)):
        assert torch.allclose(long[:, :7], short), layer
        pooled = encoder.pool_sample(long, padded)
        assert torch.allclose(pooled, encoder.pool_sample(short, padded[:, :7]))
        last = 5 if encoder.class_token else 6  # before the separator, which is text to an encoder without a class token
        assert torch.equal(encoder.last_token(long, padded), long[:, last])
    assert torch.allclose(encoder(padded), encoder(padded[:, :7])) and encoder(padded).shape == (1, encoder.width)


@pytest.mark.parametrize("name", [*NAMES, "word_vectors"])
def test_padding_is_not_computed(name: str) -> None:
    encoder = build_encoder(recipe_for(name, 64, IDS, {"width": "16"})).eval()
    tokens = torch.randint(20, (2, 64))
    for length, kept in ((0, 16), (5, 16), (16, 16), (17, 32), (64, 64)):
        padded = tokens.where(torch.arange(64) < length, IDS if name == "word_vectors" else 20 + PAD)
        assert encoder.without_padding(padded).shape == (2, kept)
        if length:
            assert torch.allclose(encoder(padded), encoder(tokens[:, :length]), atol=1e-6)
    unknown = tokens[:, :40].clone()
    unknown[:, 3:30] = IDS if name == "word_vectors" else 0
    assert encoder.without_padding(unknown).shape == (2, 40)  # never longer than it was


@pytest.mark.parametrize("name", NAMES)
def test_causal_encoders_see_no_later_token(name: str) -> None:
    encoder = built(name)
    first = rows(12)
    changed = first.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 20
    same = torch.isclose(encoder.states(first), encoder.states(changed), rtol=0, atol=1e-12).all(dim=2)[0]
    assert bool(same[:6].all()) == encoder.causal and not same[6]
    assert encoder.causal == ("causal" in encoder.provides)


def test_averages_leave_out_class_token_separators_and_padding() -> None:
    encoder, sample = built("bert_micro"), rows(6)
    states = encoder.states(sample)
    assert torch.allclose(encoder(sample), states[:, 1:5].mean(dim=1))
    causal = built("gpt_micro")
    assert torch.allclose(causal(sample), causal.states(sample)[:, :6].mean(dim=1))


def test_a_separator_ends_the_first_segment() -> None:
    encoder = built("bert_micro")
    pair = rows(12)
    pair[0, 5] = 20 + SEP
    vectors = encoder.embed(pair) - encoder.token(pair) - encoder.position[:12]
    assert torch.allclose(vectors[0, :6], encoder.segment.weight[0].expand(6, -1))
    assert torch.allclose(vectors[0, 6:], encoder.segment.weight[1].expand(6, -1))


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_recurrent_states_are_those_of_single_steps(cell: str) -> None:
    encoder = built("rnn_text", cell=cell, depth=2)
    sample = rows(12)
    cells: dict[str, type[nn.Module]] = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
    x = encoder.token(sample)
    for layer, expected in zip(encoder.cells, encoder.layers(sample), strict=True):
        step = cells[cell](16, 16).double()
        step.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
        state, outputs = None, []
        for place in range(12):
            state = step(x[:, place], state)
            outputs.append(state[0] if cell == "lstm" else state)
        x = torch.stack(outputs, dim=1)
        assert torch.allclose(x, expected)


@torch.no_grad()
def test_a_hidden_layer_over_the_last_tokens() -> None:
    for direct in (0, 1):
        encoder, sample = built("feedforward_text", order=3, vectors=4, direct=direct), rows(12)
        states = encoder.states(sample)[0]
        vectors = [torch.zeros(4, dtype=torch.double), *encoder.token(sample)[0]]
        for place in range(12):
            context = torch.cat(vectors[place : place + 2])  # the token before and the token itself
            expected = torch.tanh(encoder.hidden.bias + encoder.hidden.weight @ context)
            assert torch.allclose(states[place], torch.cat([expected, context]) if direct else expected)
    with pytest.raises(SslkitError, match="order 13 exceeds the 12 tokens"):
        built("feedforward_text", order=13)


@torch.no_grad()
def test_two_directions_see_different_tokens() -> None:
    encoder, padded = built("elmo_text", depth=2), rows(9)
    tokens = padded[:, :9]
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 20
    for layer in range(2):
        before, after = (read(tokens)[layer] - read(changed)[layer] for read in (encoder.states_before, encoder.states_after))
        assert before.abs().amax(dim=2)[0].gt(0).tolist() == [place >= 4 for place in range(9)]
        assert after.abs().amax(dim=2)[0].gt(0).tolist() == [place <= 4 for place in range(9)]
    x = encoder.token(tokens).flip(1)
    for number, cell in enumerate(encoder.backward_cells):
        states = cell(x)[0]
        x = states if number == 0 else x + states
        assert torch.allclose(encoder.states_after(padded)[number][:, :9], x.flip(1))
    vectors, *states = encoder.layers(tokens)
    assert torch.equal(vectors, torch.cat([encoder.token(tokens)] * 2, dim=2)) and len(states) == 2
    assert torch.equal(states[1][..., :16], encoder.next_states(tokens))


@torch.no_grad()
def test_attention_against_a_loop() -> None:
    encoder = built("gpt_micro", depth=1, heads=2)
    sample = rows(2)[:, :2]
    block = encoder.blocks[0]
    x = encoder.embed(sample)[0]
    normalized = block.norm1(x)
    query = block.attention.query(normalized)
    key, value = block.attention.key_value(normalized).chunk(2, dim=1)
    attended = []
    for head in (slice(0, 8), slice(8, 16)):
        scores = [float(query[1, head] @ key[place, head]) / math.sqrt(8) for place in (0, 1)]
        weights = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
        attended.append(weights[0] * value[0, head] + weights[1] * value[1, head])
    second = x[1] + block.attention.output(torch.cat(attended))
    second = second + block.mlp(block.norm2(second))
    assert torch.allclose(encoder.norm(second), encoder.states(sample)[0, 1])


@torch.no_grad()
def test_weights_begin_small_and_forget_gates_open() -> None:
    encoder = built("gpt_micro", width=64, depth=8)
    assert float(encoder.token.weight.std()) == pytest.approx(0.02, rel=0.1)
    assert float(encoder.blocks[3].mlp[2].weight.std()) == pytest.approx(0.02 / 4, rel=0.1)
    (layer,) = built("rnn_text").cells
    assert torch.equal(layer.bias_hh_l0[16:32], torch.ones(16, dtype=torch.double))


def test_the_tokenizer_is_kept_and_checked() -> None:
    content = Tokenizer.learn("word", lambda: [" ".join(f"w{n}" for n in range(20))]).to_bytes()
    encoder = built("gpt_micro", letters=len(content))
    encoder.keep_tokenizer(content)
    assert encoder.tokenizer().encode(["w3 w4"])[0].tolist() == [3, 4]
    encoder.keep_tokenizer(content.replace(b'"w19"', b'"w18"'))
    with pytest.raises(SslkitError, match="the tokenizer in the checkpoint is damaged"):
        encoder.tokenizer()
    short = Tokenizer("word", ["a"]).to_bytes()
    other = built("gpt_micro", letters=len(short))
    other.keep_tokenizer(short)
    with pytest.raises(SslkitError, match="has 7 ids, its encoder 26"):
        other.tokenizer()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gpt_micro", {"heads": 3}, "width 16 is not a multiple of 3 heads"),
        ("bert_micro", {"dropout": 1}, "dropout should be from 0 to below 1"),
        ("rnn_text", {"cell": "qrnn"}, "cell should be rnn, gru, lstm"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SslkitError, match=message):
        built(name, **options)
