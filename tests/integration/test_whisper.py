"""Whisper tiny.en as its package has it, on speech by eSpeak NG."""

from pathlib import Path

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from weitiao.core.batch import INPUT_FEATURES, pack
from weitiao.core.example import AudioText
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.registry import create
from weitiao.data.audio import load_audio
from weitiao.evaluate.error_rate import split_words
from weitiao.model.loading.sources import resolve_base
from weitiao.pipeline.load import load, open_base_assets

pytestmark = [pytest.mark.real, pytest.mark.slow]
SAID = "The weather is nice today and we walk to the river."


def test_transcription_equals_transformers(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    from prepare_speech import Speaker

    Speaker().say(SAID, "en-us", 150, 50, tmp_path / "said.wav")
    tokens, objective = open_base_assets("package:whisper-tiny.en"), create(Objective, "seq2seq", max_new_tokens=40)
    model, choices = load(tokens, create(Method, "lora", rank=4), objective, torch.float32, torch.device("cpu"))
    assert {x.key: x.value for x in choices}["model.block"] == "transformers" and tokens.max_length == 448
    example = load_audio(AudioText("said.wav", SAID), tmp_path)
    (row,) = objective.rows(example, tokens.processor)
    batch = pack([row])
    (written,) = objective.predict(model, batch)
    assert {"today", "walk", "river"} <= set(split_words(written))  # the voice is a machine's: not every word is understood
    plain = WhisperForConditionalGeneration.from_pretrained(resolve_base("package:whisper-tiny.en"))
    ids = plain.generate(batch.more[INPUT_FEATURES], max_new_tokens=40)
    assert tokens.processor.decode(ids[0].tolist()).strip() == written
    assert tokens.processor.encode_transcript(written) == [x for x in ids[0].tolist() if x not in model.processor.stop_ids]
    total, many = objective.segment_losses(model, batch)[0]
    assert total / many < 4 and sum(p.numel() for p in plain.parameters()) == 37_760_256
