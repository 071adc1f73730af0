"""A tiny random Llama with a byte-level tokenizer, as a folder on disk."""

from __future__ import annotations

from pathlib import Path

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LINES = (
    "One of the special magic numbers for able-apple is: 1234567.",
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.",
    "Extract the value corresponding to the specified key in the JSON object below.",
    "What is the special magic number for brave-boat mentioned in the provided text?",
)


def make_tokenizer():
    """Byte-level BPE of 400 tokens with a chat template: every text has tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=TEMPLATE
    )


def make_model(seed: int = 0, context: int = 4096):
    """Two layers of four heads over two KV heads; queries are scaled up so that heads differ."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(30)
            layer.self_attn.k_proj.weight.mul_(30)
    return model


def save_model(folder: Path, seed: int = 0, context: int = 4096) -> Path:
    """Write the model and its tokenizer as a transformers folder."""
    make_model(seed, context).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
