"""A checkpoint from disk or from the hub, and the prompt of one question about one picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .._errors import InputError
from .supported_model import check_family, check_version


@dataclass(frozen=True)
class Checkpoint:
    """A model of a supported family with its processor."""

    model: Any
    processor: Any

    def ask(self, picture: Any, question: str) -> dict[str, Any]:
        """Inputs on the model's device for one question about one PIL picture, which comes first in the prompt."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        if getattr(self.processor, "chat_template", None):
            conversation = [{"role": "user", "content": content}]
            prompt = self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        else:
            prompt = f"{self.processor.image_token}\n{question}\n"
        inputs = self.processor(images=[picture], text=[prompt], return_tensors="pt")
        return dict(inputs.to(self.model.device))


def load_checkpoint(name: str, device: str | None = None) -> Checkpoint:
    """The checkpoint `name`: a folder, or an id on the hub; on `device` (None: CUDA where there is one).

    Raises:
        InputError: if it cannot be loaded, or is of no supported family; or if the device cannot be used.
    """
    import transformers

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch's, where it is built without CUDA
        raise InputError(f"--device: cannot use {device}: {_first_sentence(error)}") from error
    try:
        check_version()
        check_family(transformers.AutoConfig.from_pretrained(name).model_type)
        processor = transformers.AutoProcessor.from_pretrained(name)
        model: Any = transformers.AutoModelForImageTextToText.from_pretrained(name, dtype="auto")  # GBs: last
        model = model.to(device)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise InputError(f"cannot load {name}: {_first_sentence(error)}") from error
    return Checkpoint(model.eval(), processor)


def _first_sentence(error: Exception) -> str:
    if isinstance(error, ImportError) and "torchvision" in str(error).lower():
        return "its processor needs torchvision: install the torchvision that belongs to your torch"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
