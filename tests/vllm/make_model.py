"""Writes a tiny Llama with random weights and two LoRA adapters: `python make_model.py FOLDER`.

Its output is random, but it is a complete model for vLLM: tokenizer, chat template, weights, adapters. Equal seeds give
equal bytes. Runs in the environment of environment.py; needs no network.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from pydoc_data import topics

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT_TOKENS = 2048
SHAPE = LlamaConfig(
    vocab_size=2048,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,  # vLLM's minimum on a CPU
    max_position_embeddings=CONTEXT_TOKENS,
    bos_token_id=0,
    eos_token_id=1,
    tie_word_embeddings=True,
)
ADAPTERS = ("lora-a", "lora-b")
RANK = 8
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with about four bytes per token, trained on the documentation in CPython's standard library."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE.vocab_size,
        special_tokens=["<begin>", "<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([text for _, text in sorted(topics.topics.items())], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<begin>",
        eos_token="<end>",
        model_max_length=CONTEXT_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def adapter(seed: int) -> dict[str, torch.Tensor]:
    """Random weights for the query and value projections, under the names of peft's format."""
    random = torch.Generator().manual_seed(seed)
    outputs = {
        "q_proj": SHAPE.num_attention_heads * SHAPE.head_dim,
        "v_proj": SHAPE.num_key_value_heads * SHAPE.head_dim,
    }
    weights: dict[str, torch.Tensor] = {}
    for layer in range(SHAPE.num_hidden_layers):
        for projection, width in outputs.items():
            stem = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            weights[f"{stem}.lora_A.weight"] = torch.randn(RANK, SHAPE.hidden_size, generator=random)
            weights[f"{stem}.lora_B.weight"] = torch.randn(width, RANK, generator=random)
    return weights


def main(folder: Path) -> None:
    tiny = folder / "tiny"
    tokenizer().save_pretrained(tiny)
    torch.manual_seed(1)
    model = LlamaForCausalLM(SHAPE)
    model.save_pretrained(tiny)
    for seed, name in enumerate(ADAPTERS, 100):
        home = folder / name
        home.mkdir(parents=True, exist_ok=True)
        save_file(adapter(seed), home / "adapter_model.safetensors", metadata={"format": "pt"})
        described = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "tiny",
            "r": RANK,
            "lora_alpha": RANK,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": ["q_proj", "v_proj"],
            "inference_mode": True,
        }
        (home / "adapter_config.json").write_text(json.dumps(described, indent=1))
    print(f"{sum(weight.numel() for weight in model.parameters())} parameters and {len(ADAPTERS)} adapters in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
