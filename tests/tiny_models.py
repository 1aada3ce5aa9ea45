"""Tiny models of the real architectures, with random weights and real tokenizers, in seconds.

    python -m tests.tiny_models OUT_DIR

writes `OUT_DIR/sentence_transformer`, `jina`, `roberta` and `llama`. The weights are
the same at each run (seeded), so two machines build the same checkpoints.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    JinaEmbeddingsV3Config,
    JinaEmbeddingsV3Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
)

WIDTH = 32
LAYERS = 2
SEED = 7
_CORPUS = [
    "The quick brown fox jumps over the lazy dog while seven judges watch.",
    "Markets rose after the central bank held interest rates steady on Thursday.",
    "The team won the cup in extra time, and the captain thanked every supporter.",
    "My parcel never arrived; please refund the order and cancel the subscription.",
    "A new telescope has measured the light of a galaxy near the edge of the sky.",
]
_MASKS = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def build_sentence_transformer(folder: Path, pooling: str = "mean") -> Path:
    """A BERT of two layers in the folder layout of a sentence-transformers checkpoint."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=special, show_progress=False, initial_alphabet=_alphabet()
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=64,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    torch.manual_seed(SEED)
    BertModel(
        BertConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
    ).save_pretrained(folder)
    _write_json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {
                "idx": 1,
                "name": "1",
                "path": "1_Pooling",
                "type": "sentence_transformers.models.Pooling",
            },
        ],
    )
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": 64})
    modes = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    flags = {f"pooling_mode_{name}": mode == pooling for mode, name in modes.items()}
    _write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, **flags})
    return folder


def build_jina(folder: Path) -> Path:
    """A JinaEmbeddingsV3 of two layers with a LoRA adapter in the subfolder `classification`."""
    tokenizer = _byte_level_tokenizer(folder)
    config = JinaEmbeddingsV3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=130,
        initializer_range=0.3,
    )
    torch.manual_seed(SEED)
    model = JinaEmbeddingsV3Model(config)
    model.save_pretrained(folder)
    lora = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "fc1"], init_lora_weights=False
    )
    torch.manual_seed(SEED + 1)
    get_peft_model(model, lora, adapter_name="classification").save_pretrained(folder)
    # The adapter's card is written from a template of Hub usage, which has no meaning here.
    (folder / "classification" / "README.md").unlink(missing_ok=True)
    return folder


def build_f2llm(folder: Path, appends_end: bool = False) -> Path:
    """A Qwen3 of two layers laid out as F2LLM is: a sentence-transformers checkpoint that pools
    the last token, weights in bfloat16 and several files, a prompt for queries, and a tokenizer
    that leaves the end of a text to the caller (or not, as some of its revisions).
    """
    end, pad = "<|im_end|>", "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[pad, "<|im_start|>", end],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    steps = [processors.ByteLevel(add_prefix_space=False, trim_offsets=False)]
    if appends_end:
        steps.append(processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 2)]))
    tokenizer.post_processor = processors.Sequence(steps)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=131072, pad_token=pad, eos_token=end
    ).save_pretrained(folder)
    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=96,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=None,
    )
    Qwen3Model(config).bfloat16().save_pretrained(folder, max_shard_size="20KB")
    kinds = ["Transformer", "Pooling", "Normalize"]
    _write_json(
        folder / "modules.json",
        [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{kind}" if i else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(kinds)
        ],
    )
    (folder / "2_Normalize").mkdir()
    _write_json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {
                "query": "Instruct: Given a question, retrieve passages.\nQuery: ",
                "document": "",
            },
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    _write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": WIDTH,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_lasttoken": True,
            "include_prompt": True,
        },
    )
    return folder


def build_roberta(folder: Path) -> Path:
    """A RoBERTa of two layers and width 32 with a byte-level BPE tokenizer."""
    tokenizer = _byte_level_tokenizer(folder)
    torch.manual_seed(SEED)
    RobertaModel(
        RobertaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=130,
            type_vocab_size=1,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
        )
    ).save_pretrained(folder)
    return folder


def build_llama(folder: Path) -> Path:
    """A Llama with a chat template; its tokenizer is that of `build_roberta`."""
    build_roberta(folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.chat_template = (
        "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=len(tokenizer),
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def build_all(folder: Path) -> dict[str, Path]:
    """Every tiny model, each in its own subfolder of `folder`."""
    return {
        "sentence_transformer": build_sentence_transformer(folder / "sentence_transformer"),
        "jina": build_jina(folder / "jina"),
        "roberta": build_roberta(folder / "roberta"),
    }


def _byte_level_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), add_prefix_space=False
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=128,
        cls_token="<s>",
        sep_token="</s>",
        mask_token="<mask>",
        **_MASKS,
    ).save_pretrained(folder)
    return tokenizer


def _alphabet() -> list[str]:
    return [chr(code) for code in range(33, 127)]


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.tiny_models OUT_DIR")
    out = Path(sys.argv[1])
    for name, path in {**build_all(out), "llama": build_llama(out / "llama")}.items():
        print(f"{name}: {path}")
