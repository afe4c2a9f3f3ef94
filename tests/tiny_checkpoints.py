"""Tiny random checkpoints on disk, with real image processors, a real tokenizer and a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from bench.serving.vllm_checkpoints import byte_level

from . import tiny_models

TEMPLATE = (
    "{% for message in messages %}<turn>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
_CORPUS = ["what is the woman wearing? where is the rocket? describe the picture. user assistant a cup of coffee"]
_SPECIAL = ["<pad>", "<s>", "</s>", "<turn>", "<end>", "<image>", "<video>", "<start>", "<stop>"]
_SPECIAL += ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
_SPECIAL += [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]


def tokenizer() -> Any:
    """A byte-level BPE tokenizer, trained on a few words."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level(_CORPUS, _SPECIAL, 400),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        extra_special_tokens={
            "image_token": "<image>",
            "video_token": "<video>",
            "boi_token": "<start>",
            "eoi_token": "<stop>",
        },
        additional_special_tokens=_SPECIAL[3:],
    )


def processor(family: str) -> Any:
    """The family's real processor, where it can be built without torchvision; else its image processor."""
    t, side = transformers, tiny_models.TILE
    size, pinpoints = {"height": side, "width": side}, tiny_models.config("llava_next").image_grid_pinpoints
    clip = {"size": {"shortest_edge": side}, "crop_size": size}
    llava = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    tiles = {"size": {"longest_edge": 2 * side}, "max_image_size": {"longest_edge": side}}
    qwen = {"patch_size": 4, "min_pixels": 16 * 16, "max_pixels": 64 * 64}
    return {
        "llava": lambda: t.LlavaProcessor(
            t.CLIPImageProcessorPil(**clip), tokenizer(), chat_template=TEMPLATE, **llava
        ),
        "llava_next": lambda: t.LlavaNextProcessor(
            t.LlavaNextImageProcessorPil(**clip, image_grid_pinpoints=pinpoints),
            tokenizer(),
            chat_template=TEMPLATE,
            **llava,
        ),
        "gemma3": lambda: t.Gemma3Processor(
            t.Gemma3ImageProcessorPil(size=size),
            tokenizer(),
            image_seq_length=9,
            chat_template=TEMPLATE.replace("<image>", "<start>"),
        ),
        "idefics3": lambda: t.Idefics3Processor(
            t.Idefics3ImageProcessorPil(**tiles), tokenizer(), image_seq_len=9, chat_template=TEMPLATE
        ),
        "llava_onevision": lambda: t.LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=pinpoints),
        "qwen2_vl": lambda: t.Qwen2VLImageProcessorPil(**qwen),
        "qwen2_5_vl": lambda: t.Qwen2VLImageProcessorPil(**qwen),
        "qwen3_vl": lambda: t.Qwen2VLImageProcessorPil(**qwen),
        "internvl": lambda: t.GotOcr2ImageProcessorPil(size=size, max_patches=6, crop_to_patches=True),
        "smolvlm": lambda: t.SmolVLMImageProcessorPil(**tiles),
    }[family]()


WITH_PROCESSOR = ("llava", "llava_next", "gemma3", "idefics3")


def model_for(family: str) -> Any:
    """A model whose vocabulary is that of the tokenizer."""
    words = tokenizer()
    return tiny_models.build(
        tiny_models.config(
            family,
            vocabulary=len(words),
            image=words.convert_tokens_to_ids("<image>"),
            video=words.convert_tokens_to_ids("<video>"),
        ),
    )


def save(family: str, folder: Path) -> Path:
    """Writes model and processor as a checkpoint that `from_pretrained` reads."""
    model_for(family).float().save_pretrained(folder)
    processor(family).save_pretrained(folder)
    return folder
