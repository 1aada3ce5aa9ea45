"""Every figure of appendices M to S that the paper prints; the exact counts against torch's."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from sce.evaluation import flops, paper
from sce.evaluation.flops import JINA_V3, LLAMA_1B, LORA_RANK, ROBERTA_BASE, Architecture

TINY = Architecture(d=32, d_ff=48, n_f1=2, n_f2=1, blocks=2, kv_size=16, vocabulary=64)
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def polynomial(cost) -> tuple[float, float, float]:
    """c, b and a of a*m^2 + b*m + c, by three values of it."""
    zero, one, two = cost(0), cost(1), cost(2)
    square = (two - 2 * one + zero) / 2
    return zero, one - zero - square, square


def test_a_block_and_the_model_of_llama():
    block = polynomial(
        lambda m: (
            flops.forward_block_lora(LLAMA_1B, m, LORA_RANK)
            + flops.backward_block_lora(LLAMA_1B, m, LORA_RANK)
        )
    )
    assert block == (0, 159_653_888, 12_288)
    model = polynomial(lambda m: flops.lora_sample(LLAMA_1B, m, LORA_RANK))
    assert model == (0, 2_554_462_208, 196_608)


def test_the_model_of_sce():
    model = polynomial(lambda m: flops.encoder_sample(ROBERTA_BASE, m, JINA_V3.d))
    assert model == (2_359_296, 254_803_968, 55_296)


def test_the_embedder():
    model = polynomial(lambda m: flops.embedding_sample(JINA_V3, m))
    assert model == (0, 301_989_888, 49_152)


def test_epochs_and_their_ratios():
    """Appendix S: 16,000 samples; of Llama 225 tokens each (140 of the template, 75 of the text, 10
    of the labels), of SCE ten labels and the query (it prints "1 = 10"; with 11 its figure comes
    out), of the embedder 84.17 tokens of the text."""
    samples = 16_000
    llama = samples * flops.lora_sample(LLAMA_1B, 225, LORA_RANK)
    sce = samples * flops.encoder_sample(ROBERTA_BASE, 11, JINA_V3.d)
    embedding = samples * flops.embedding_sample(JINA_V3, 84.17)
    assert llama == pytest.approx(9.355e15, rel=5e-4)
    assert sce == pytest.approx(4.5e13, rel=5e-3)
    assert embedding == pytest.approx(4.12e14, rel=5e-3)
    assert round(sce / llama, 3) == paper.FLOPS_RATIO == 0.005
    # Section 3.3: the texts are embedded once, however many epochs follow.
    bound = {n: round((n * sce + embedding) / (n * llama), 3) for n in (1, 10)}
    assert bound == paper.FLOPS_BOUND == {1: 0.049, 10: 0.009}


def test_parameters_of_lora_on_the_meta_device():
    assert flops.lora_parameters(LLAMA_1B, LORA_RANK) == 126_812_160
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, vocab_size=128_256, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = get_peft_model(
            LlamaForCausalLM(config), LoraConfig(r=LORA_RANK, target_modules=LINEARS)
        )
    assert model.get_nb_trainable_parameters() == (126_812_160, 1_362_626_560)


def counted(step) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


@pytest.mark.parametrize("r", [0, 4])
def test_exact_counts_of_a_llama(r):
    tokens = 5
    config = LlamaConfig(
        hidden_size=TINY.d, intermediate_size=TINY.d_ff, num_hidden_layers=TINY.blocks,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=TINY.vocabulary,
        attn_implementation="eager", use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.lm_head.weight.requires_grad_(False)
    if r:
        model = get_peft_model(model, LoraConfig(r=r, target_modules=LINEARS))
    embedded = torch.randn(1, 7, TINY.d, requires_grad=True)
    found: list[torch.Tensor] = []

    def forward() -> None:
        found.append(model(inputs_embeds=embedded, logits_to_keep=tokens).logits.sum())

    assert counted(forward) == flops.exact_forward(TINY, 7, r, tokens)
    assert counted(found[0].backward) == flops.exact_backward(TINY, 7, r, tokens)


def test_exact_counts_of_an_encoder():
    a = Architecture(d=32, d_ff=64, n_f1=1, n_f2=1, blocks=2, kv_size=32, vocabulary=0)
    config = RobertaConfig(
        hidden_size=a.d, intermediate_size=a.d_ff, num_hidden_layers=a.blocks,
        num_attention_heads=4, vocab_size=16, attn_implementation="eager",
    )  # fmt: skip
    model = RobertaModel(config, add_pooling_layer=False)
    embedded = torch.randn(1, 11, a.d, requires_grad=True)
    found: list[torch.Tensor] = []

    def forward() -> None:
        found.append(model(inputs_embeds=embedded).last_hidden_state.sum())

    assert counted(forward) == flops.exact_forward(a, 11)
    assert counted(found[0].backward) == flops.exact_backward(a, 11)


def test_the_exact_count_of_an_encoder_is_twice_the_papers():
    paper = flops.encoder_sample(ROBERTA_BASE, 11, 0)
    exact = flops.exact_forward(ROBERTA_BASE, 11) + flops.exact_backward(ROBERTA_BASE, 11)
    assert exact == 2 * paper
