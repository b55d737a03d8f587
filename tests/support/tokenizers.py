"""A tokenizer of a few German and Chinese sentences, in a folder as the hub's are."""

import json
from pathlib import Path
from typing import Any

import pytest

SENTENCES = (
    "ein Foto von Flasche",
    "ein Foto von Schraube ohne Fehler",
    "ein Foto von beschädigter Schraube",
    "ein dunkles Foto von Kachel mit Riss",
    "一张完好的瓶子的照片",
    "一张损坏的瓶子的照片",
    "没有缺陷的螺丝",
    "有缺陷的螺丝",
)
SIZE = 300


def tokenizer_folder(folder: Path, adds_start: bool = True, pad_is_end: bool = False) -> Path:
    """Trains the tokenizer and writes its files.

    Args:
        folder: Where to.
        adds_start: Whether prompts begin with a start token, as XLM-R's do and Gemma's here do not.
        pad_is_end: Whether it pads with the end-of-text token, as SigLIP's does.
    """
    tokenizers = pytest.importorskip("tokenizers", reason="the extra `hub` is not installed")
    pytest.importorskip("transformers", reason="the extra `hub` is not installed")
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["<s>", "<pad>", "</s>", "<unk>"]  # XLM-R's first four, in its order
    tokenizer: Any = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*SENTENCES, *map(str.lower, SENTENCES)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if adds_start else "$A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>" if pad_is_end else "<pad>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
