"""Tiny random checkpoints on disk that both vLLM and transformers load, with real processors, for vLLM on a CPU."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CORPUS = (
    "what is the woman wearing where is the rocket describe the picture user assistant a cup of coffee on the table"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<video>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
SPECIAL += ["<|video_pad|>"]
WIDTH, HEADS, LAYERS, CONTEXT = 128, 4, 3, 2048  # vLLM's CPU attention takes heads of 32, 64, 80, 96, 112, 128, 256
PATCH, TILE = 14, 84  # pixels; LLaVA's picture has 6 x 6 patches
FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
LLAVA = ("llava", "llava_next", "llava_siglip")
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] in ('image', 'image_url') %}IMAGE"
    "{% elif part['type'] == 'video' %}VIDEO{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
MARKS = {
    True: {"IMAGE": "<image>", "VIDEO": "<video>"},
    False: {
        "IMAGE": "<|vision_start|><|image_pad|><|vision_end|>",
        "VIDEO": "<|vision_start|><|video_pad|><|vision_end|>",
    },
}  # by whether a family is a LLaVA
_PICTURES = {
    "patch_size": PATCH,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "min_pixels": 28 * 28 * 4,
    "max_pixels": 28 * 28 * 64,
    "size": {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 64},
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), True),
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


def save(family: str, folder: Path, *, layers: int = LAYERS, width: int = WIDTH, side: int = TILE) -> Path:
    """Writes a checkpoint. layers, width: of the language model; side: of LLaVA's pictures, in pixels."""
    words = _tokenizer(family)
    model = sharp_model(_config(family, words, layers, width, side))
    model.generation_config.update(eos_token_id=None, pad_token_id=0, bos_token_id=1)
    model.save_pretrained(folder)
    if family in LLAVA:
        _llava_processor(family, words, side).save_pretrained(folder)
        _rename_tower(folder / "model.safetensors")
    else:
        words.save_pretrained(folder)
        _write_qwen_processor(family, folder, words.chat_template)
    return folder


def byte_level(corpus: list[str], special: list[str], size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of `size` tokens, trained on a few words."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(corpus, trainer)
    return trained


def sharp_model(config: Any) -> Any:
    """A model with sharp random weights in float32, so that a wrong row or position moves the logits."""
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if weight.dim() >= 2:
            weight.data.normal_(0, 1.5 / math.sqrt(weight[0].numel()), generator=generator)
        elif not name.endswith("norm.weight"):
            weight.data.add_(0.3 * torch.randn(weight.shape, generator=generator))
    model.get_input_embeddings().weight.data.normal_(0, 1, generator=generator)
    return model


def _tokenizer(family: str) -> Any:
    marks = MARKS[family in LLAVA]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level([CORPUS], SPECIAL, 384),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        additional_special_tokens=SPECIAL[3:],
        extra_special_tokens={
            "image_token": "<image>" if family in LLAVA else "<|image_pad|>",
            "video_token": "<|video_pad|>",
        },
        chat_template=re.sub("IMAGE|VIDEO", lambda found: marks[found[0]], TEMPLATE),
    )


def _config(family: str, words: Any, layers: int, width: int, side: int) -> Any:
    ids = {name: words.convert_tokens_to_ids(name) for name in SPECIAL}
    text = {
        "vocab_size": 384,
        "hidden_size": width,
        "intermediate_size": 3 * width // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": width // HEADS,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": ids["<pad>"],
        "bos_token_id": ids["<s>"],
        "eos_token_id": ids["</s>"],
        "tie_word_embeddings": False,
    }
    if family in LLAVA:
        kind = transformers.LlavaNextConfig if family == "llava_next" else transformers.LlavaConfig
        siglip = family == "llava_siglip"  # no token of a class
        vision = {
            "model_type": "siglip_vision_model" if siglip else "clip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": side,
            "patch_size": PATCH,
        }
        if siglip:
            vision["vision_use_head"] = False
        tiles = {"image_grid_pinpoints": _pinpoints(side)} if family == "llava_next" else {}
        return kind(
            vision_config=vision,
            vision_feature_select_strategy="full" if siglip else "default",
            text_config={"model_type": "llama", "architectures": ["LlamaForCausalLM"], **text},
            image_token_index=ids["<image>"],
            image_seq_length=(side // PATCH) ** 2,
            architectures=[kind.__name__.replace("Config", "ForConditionalGeneration")],
            tie_word_embeddings=False,
            **tiles,
        )
    return _qwen_config(family, ids, text)


def _qwen_config(family: str, ids: dict[str, int], text: dict[str, Any]) -> Any:
    kind, own = {
        "qwen2_vl": (transformers.Qwen2VLConfig, {"embed_dim": 64, "hidden_size": WIDTH, "mlp_ratio": 2}),
        "qwen2_5_vl": (
            transformers.Qwen2_5_VLConfig,
            {"out_hidden_size": WIDTH, "window_size": 56, "fullatt_block_indexes": [1]},
        ),
        "qwen3_vl": (
            transformers.Qwen3VLConfig,
            {"out_hidden_size": WIDTH, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
        ),
    }[family]
    vision = {"depth": 2, "num_heads": 2, "patch_size": PATCH, "temporal_patch_size": 2, "spatial_merge_size": 2}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}  # half of a head
    if family == "qwen3_vl":
        rope["mrope_interleaved"] = True
    return kind(
        text_config={**text, "rope_parameters": rope},
        vision_config={**vision, "in_channels": 3, "hidden_size": 64, "intermediate_size": 96, **own},
        architectures=[kind.__name__.replace("Config", "ForConditionalGeneration")],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def _pinpoints(side: int) -> list[list[int]]:
    return [[side, 2 * side], [2 * side, side], [2 * side, 2 * side]]


def _llava_processor(family: str, words: Any, side: int) -> Any:
    t = transformers
    options = {
        "chat_template": words.chat_template,
        "patch_size": PATCH,
        "vision_feature_select_strategy": "full" if family == "llava_siglip" else "default",
        "num_additional_image_tokens": 0 if family == "llava_siglip" else 1,
    }
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    if family == "llava_next":
        pictures = t.LlavaNextImageProcessorPil(**size, image_grid_pinpoints=_pinpoints(side))
        return t.LlavaNextProcessor(pictures, words, **options)
    return t.LlavaProcessor(t.CLIPImageProcessorPil(**size), words, **options)


def _rename_tower(file: Path) -> None:
    """Released checkpoints and vLLM say vision_tower.vision_model.*, which transformers 5 reads, but does not write."""
    renamed = {
        name if ".vision_model." in name else name.replace("vision_tower.", "vision_tower.vision_model."): weight
        for name, weight in load_file(file).items()
    }
    save_file(renamed, file, metadata={"format": "pt"})


def _write_qwen_processor(family: str, folder: Path, template: str) -> None:
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family] + "Processor"
    videos = "Qwen3VLVideoProcessor" if family == "qwen3_vl" else "Qwen2VLVideoProcessor"
    said = json.loads((folder / "tokenizer_config.json").read_text())
    for file, content in {
        "preprocessor_config.json": {**_PICTURES, "image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config.json": {**_PICTURES, "video_processor_type": videos},
        "tokenizer_config.json": said,
    }.items():
        (folder / file).write_text(json.dumps({**content, "processor_class": name}, indent=1))
    (folder / "chat_template.jinja").write_text(template)
