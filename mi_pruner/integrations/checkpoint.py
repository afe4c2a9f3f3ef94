"""A checkpoint from disk or from the hub, and the prompt of one question about one picture or video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .._errors import InputError
from ..command_input import Clip
from .chat_template import one_turn
from .instruction import tokenizer_of
from .supported_model import FAMILIES, check_family, check_version


@dataclass(frozen=True)
class Checkpoint:
    """A model of a supported family with its processor."""

    model: Any
    processor: Any

    def ask(self, shown: Any, question: str) -> dict[str, Any]:
        """Inputs on the model's device for one question about a PIL picture or a Clip, which comes first in the prompt.

        Raises:
            ValueError: if no form of the chat template's prompt holds both.
        """
        kind = "video" if isinstance(shown, Clip) else "image"
        visual = _sampled(shown) if isinstance(shown, Clip) else {"images": [shown]}
        prompt = self._prompt(kind, question)
        bos = tokenizer_of(self.processor).bos_token
        begun = bos is not None and prompt.startswith(bos)  # by the chat template: not once more by the tokenizer
        inputs = self.processor(text=[prompt], return_tensors="pt", add_special_tokens=not begun, **visual)
        return dict(inputs.to(self.model.device))

    def _prompt(self, kind: str, question: str) -> str:
        """kind: "image" or "video"."""
        placeholder = getattr(self.processor, f"{kind}_token")
        string = f"{placeholder}\n{question}"
        if not getattr(self.processor, "chat_template", None):
            return f"{string}\n"
        parts = [{"type": kind}, {"type": "text", "text": question}]
        found = one_turn(self.processor, parts, string, placeholder, question.strip())
        if found is None:
            raise ValueError(
                f"processor: expected a chat template that takes one {kind} and a question, got one whose prompt lacks "
                f"{placeholder} or the question"
            )
        return found[1]


def _sampled(clip: Clip) -> dict[str, Any]:
    """A processor's arguments for frames that are sampled already; their times come from `fps`."""
    width, height = clip.frames[0].size
    metadata = {
        "total_num_frames": len(clip.frames),
        "fps": clip.fps,
        "duration": len(clip.frames) / clip.fps,
        "frames_indices": list(range(len(clip.frames))),
        "width": width,
        "height": height,
    }
    return {"videos": [clip.frames], "video_metadata": [metadata], "do_sample_frames": False}


def load_checkpoint(name: str, device: str | None = None, video: bool = False) -> Checkpoint:
    """The checkpoint `name`: a folder, or an id on the hub; on `device` (None: CUDA where there is one).

    video: it is to take videos.

    Raises:
        InputError: if it cannot be loaded, or is of no supported family; if it takes no videos but is to take them; or
            if the device cannot be used.
    """
    import transformers

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch's, where it is built without CUDA
        raise InputError(f"--device: cannot use {device}: {_first_sentence(error)}") from error
    try:
        check_version()
        family = transformers.AutoConfig.from_pretrained(name).model_type
        check_family(family)
        if video and not FAMILIES[family].takes_videos:
            others = ", ".join(other for other, about in FAMILIES.items() if about.takes_videos)
            raise InputError(f"--video: expected a model of {others}, got {family}: give it a picture with --image")
        processor = transformers.AutoProcessor.from_pretrained(name)
        model: Any = transformers.AutoModelForImageTextToText.from_pretrained(name, dtype="auto")  # GBs: last
        model = model.to(device)
    except InputError:
        raise
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise InputError(f"cannot load {name}: {_first_sentence(error)}") from error
    return Checkpoint(model.eval(), processor)


def _first_sentence(error: Exception) -> str:
    if isinstance(error, ImportError) and "torchvision" in str(error).lower():
        return "its processor needs torchvision: install the torchvision that belongs to your torch"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
