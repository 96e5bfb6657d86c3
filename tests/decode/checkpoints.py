"""A tiny random checkpoint with a tokenizer, in the layout of the bundled ones."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from qspec_decode.demo import prompts

VOCAB_SIZE = 600


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE, so that every text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([prompt.text for prompt in prompts.read()], trainer)
    return tokenizer


def write(
    directory: Path,
    *,
    hidden: int = 128,
    layers: int = 2,
    vocab_size: int = VOCAB_SIZE,
    positions: int = 1024,
) -> Path:
    """Write a Llama with random weights; equal arguments give equal weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(hidden + layers)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.15,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    make_tokenizer().save(str(directory / "tokenizer.json"))
    return directory
