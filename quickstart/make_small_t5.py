"""A small T5 with random weights, to train from scratch. Run: python quickstart/make_small_t5.py [TEXTS ...]

Its tokens are the characters of TEXTS (JSON lines, of which every string is read; or plain text), and </s> at the end of
each text. The folder (config, weights as safetensors, tokenizer) is a `base:`; the same texts and seed give the same
bytes. Without TEXTS it reads quickstart/data/dates_train.jsonl (prepare_dates.py) and writes quickstart/data/small_t5.
"""

import argparse
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from make_small_bert import strings_of

DATA = Path(__file__).parent / "data"
SPECIAL = ("<pad>", "</s>", "<unk>")


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description="A small T5 with random weights and a vocabulary of characters.")
    parser.add_argument("texts", type=Path, nargs="*", default=[DATA / "dates_train.jsonl"])
    parser.add_argument("--folder", type=Path, default=DATA / "small_t5")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    letters = sorted({letter for file in options.texts for text in strings_of(file) for letter in text})
    make(options.folder, letters, options.layers, options.width, options.heads, options.seed)
    size = f"{options.layers} + {options.layers} layers of width {options.width}"
    print(f"{options.folder}: {len(letters) + len(SPECIAL):,} tokens, {size}")


def make(folder: Path, letters: list[str], layers: int, width: int, heads: int, seed: int) -> None:
    """Writes config, random weights and tokenizer."""
    config = T5Config(
        vocab_size=len(SPECIAL) + len(letters),
        d_model=width,
        d_kv=width // heads,
        d_ff=4 * width,
        num_layers=layers,
        num_heads=heads,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        dropout_rate=0.0,  # a model this small learns a rule only without dropout
        decoder_start_token_id=0,  # pyright: ignore[reportCallIssue]
    )
    torch.manual_seed(seed)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    raw = Tokenizer(models.WordLevel({x: i for i, x in enumerate((*SPECIAL, *letters))}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    raw.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
