"""The file of the trained model: safetensors in float16, with how it was made in its metadata."""

from math import isqrt
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .model import DigitVLM

SHIPPED = Path(__file__).with_name("checkpoint.safetensors")


def save_model(model: DigitVLM, path: Path, metadata: dict[str, str]) -> None:
    """Writes the weights in float16, half the size at the same accuracy, and the metadata beside them."""
    tensors = {name: value.detach().cpu().half().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, path, metadata)


def load_model(path: Path = SHIPPED) -> tuple[DigitVLM, dict[str, str]]:
    """The model, float32 in eval mode on the CPU, and the metadata: command, seed, dev accuracy, versions."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    weights = load_file(path)
    model = DigitVLM(grid=isqrt(len(weights["encoder.position"])))
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False), metadata


def pixels_of(picture: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 array -> (3, H, W) float32 in 0 .. 1, what the model takes."""
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255
