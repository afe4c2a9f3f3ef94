"""Videos for the tiny models as their families' video processors make them, and a stand-in for such a processor.

The real ones need torchvision, which can't be installed beside the CPU torch of the development environment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from . import tiny_checkpoints
from .tiny_models import QWEN, TILE

FAMILIES = (*QWEN, "llava_onevision", "internvl", "smolvlm")
_TEMPLATE = tiny_checkpoints.TEMPLATE.replace("{% else %}", "{% elif part['type'] == 'video' %}<video>{% else %}", 1)


def pixels(family: str, frames: np.ndarray) -> dict[str, Tensor]:
    """The processor's tensors for frames (T, 3, 24, 24) float, not normalised; 3 × 3 tokens come of each.

    Qwen-VL sees T frames of two equal ones each.
    """
    shown = torch.from_numpy(frames)
    if family in QWEN:
        count, side = len(frames), TILE // 8  # tokens of 2 × 2 patches of 4 × 4 pixels
        patches = shown.reshape(count, 3, side, 2, 4, side, 2, 4).permute(0, 2, 5, 3, 6, 1, 4, 7)
        twice = patches.reshape(-1, 3, 1, 4, 4).expand(-1, 3, 2, 4, 4)
        grid = torch.tensor([[count, TILE // 4, TILE // 4]])
        return {"pixel_values_videos": twice.reshape(len(twice), -1), "video_grid_thw": grid}
    if family == "llava_onevision":
        return {"pixel_values_videos": shown[None]}
    if family == "internvl":
        return {"pixel_values": shown}
    return {"pixel_values": shown[None], "pixel_attention_mask": torch.ones(1, len(frames), TILE, TILE).bool()}


def placeholders(family: str, count: int) -> str:
    """What the processor writes into the prompt for a video of `count` frames."""
    if family == "internvl":
        return "\n".join(f"Frame{frame + 1}: <start>{'<image>' * 9}<stop>" for frame in range(count))
    if family == "smolvlm":
        fake, image = "<fake_token_around_image>", "<global-img>" + "<image>" * 9
        return "".join(f"\nFrame from 00:{frame:02d}:{fake}{image}{fake}" for frame in range(count)) + "\n\n"
    if family == "qwen3_vl":
        return "".join(f"<{frame + 0.25:.1f} seconds><start>{'<video>' * 9}<stop>" for frame in range(count))
    return "<video>" * (9 * count + (family == "llava_onevision"))


class StandIn:
    """Takes one video and one prompt, as the family's processor does; `options` holds what else it was called with."""

    image_token, video_token, chat_template = "<image>", "<video>", _TEMPLATE

    def __init__(self, family: str) -> None:
        self.family, self.tokenizer = family, tiny_checkpoints.tokenizer()

    def apply_chat_template(self, conversation: list[Any], **options: Any) -> str:
        return self.tokenizer.apply_chat_template(conversation, chat_template=self.chat_template, **options)

    def __call__(self, text: list[str], return_tensors: str, videos: list[list[Any]], **options: Any) -> Any:
        self.options = options
        step = 2 if self.family in QWEN else 1
        frames = np.stack([np.asarray(frame.resize((TILE, TILE))) for frame in videos[0][::step]])
        made = pixels(self.family, frames.transpose(0, 3, 1, 2).astype(np.float32) / 255)
        prompt = text[0].replace("<video>", placeholders(self.family, len(frames)))
        ids = self.tokenizer([prompt], return_tensors=return_tensors)["input_ids"]
        extra = {}
        if self.family in QWEN:
            extra["mm_token_type_ids"] = 2 * (ids == self.tokenizer.convert_tokens_to_ids("<video>")).int()
        return transformers.BatchFeature({"input_ids": ids, "attention_mask": torch.ones_like(ids), **extra, **made})
