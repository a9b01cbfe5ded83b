"""Tiny models with random weights and real tokenizers, in memory or as folders."""

from pathlib import Path

import torch

WORDS = (
    "the quick brown fox jumps over the lazy dog and asks what time it is in paris while seven wizards quietly mix "
    "boxes of liquid 你好 世界 今天 天气 怎么样 "
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(template: str | None = CHATML) -> object:
    """A byte-level BPE tokenizer, trained on a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    raw.train_from_iterator([WORDS] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|im_end|>", bos_token="<|endoftext|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = template
    return tokenizer


def make_wordpiece_tokenizer() -> object:
    """A WordPiece tokenizer as BERT has: [CLS] text [SEP]. Its vocabulary is listed: training is not deterministic."""
    from transformers import BertTokenizer

    signs = [*"abcdefghijklmnopqrstuvwxyz0123456789", *sorted({x for x in WORDS if x > "\u4e00"})]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *("##" + x for x in signs), *sorted(set(WORDS.split()))]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))})


DECODERS = ("llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma")
ENCODERS = {"distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4}}  # whose config has other names
ENCODER_DECODERS = {
    "t5": {"vocab_size": 320, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0},
    "bart": {
        "vocab_size": 320, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "dropout": 0.0,
        "max_position_embeddings": 256,
    },
}  # fmt: skip
FAMILIES = (*DECODERS, "bert")
SLIDING_WINDOW = ("gemma2", "gemma3_text")  # decoders that few tests need


def is_encoder(family: str) -> bool:
    return family not in (*DECODERS, *SLIDING_WINDOW, *ENCODER_DECODERS)


def make_model(family: str = "llama", seed: int = 0) -> torch.nn.Module:
    """A tiny random model of a family, in fp32: a causal language model, or an encoder without a head."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    small = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256}
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 2}
    if family == "gpt2":
        config = AutoConfig.for_model("gpt2", vocab_size=320, n_embd=32, n_layer=3, n_head=4, n_positions=256, **ends)
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    elif family in ENCODER_DECODERS:
        config = AutoConfig.for_model(family, **ENCODER_DECODERS[family], **ends, decoder_start_token_id=0)
    elif is_encoder(family):
        plain = {"num_attention_heads": 4, "max_position_embeddings": 256}
        config = AutoConfig.for_model(family, **small, **plain, **ENCODERS.get(family, {}))
    else:
        windows = {"sliding_window": 4, "query_pre_attn_scalar": 8} if family in SLIDING_WINDOW else {}
        config = AutoConfig.for_model(family, **small, **heads, **ends, **windows)
    torch.manual_seed(seed)
    generative = AutoModelForSeq2SeqLM if family in ENCODER_DECODERS else AutoModelForCausalLM
    auto_class = AutoModel if is_encoder(family) else generative
    model = auto_class.from_config(config, dtype=torch.float32)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    with torch.no_grad():
        for weight in model.parameters():  # away from the zeros of a new model, so that every path matters
            weight.add_(torch.randn_like(weight) * 0.05)
    return model.eval()


def save_model(folder: Path, family: str = "llama", template: str | None = CHATML) -> Path:
    """A tiny model and its tokenizer as a folder."""
    make_model(family).save_pretrained(folder)
    tokenizer = make_wordpiece_tokenizer() if is_encoder(family) else make_tokenizer(template)
    tokenizer.save_pretrained(folder)
    return folder
