"""What a model saw of an image, for drawing: pictures from the processor's pixels, and the token of every patch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ..viz import View
from .supported_model import family_of, unwrapped

Pixels = np.ndarray  # (3, H, W) float, as the processor normalised them


def image_views(
    model: Any,
    inputs: Mapping[str, Any],
    processor: Any,
    tokens: int,
    newlines: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
    frames: int = 1,
) -> list[View]:
    """The views of the only image or video in `inputs`; of a video, one for each frame.

    Args:
        model: of a supported family, also inside what `prune_inputs` takes.
        inputs: the processor's output for one sample with one image or video.
        processor: the model's processor, or its image or video processor: how pixels were normalised.
        tokens: how many the image or video has.
        newlines: (N,) bool, True on the structural rows of LLaVA-NeXT's and LLaVA-OneVision's features.
        size: (H, W) of the original picture, to lay out the tiles of InternVL, SmolVLM and Idefics3.
        frames: `KeptImage.frames`, which tells InternVL's and SmolVLM's videos from images with tiles.

    Raises:
        ValueError: for several images or videos.
    """
    model = unwrapped(model)
    family = family_of(model)
    encoded_as = "pixel_values" if inputs.get("pixel_values_videos") is None else "pixel_values_videos"
    is_video = frames > 1 or encoded_as == "pixel_values_videos"
    shown = _unnormalise(getattr(processor, "video_processor" if is_video else "image_processor", processor))
    if inputs.get(encoded_as) is None:
        raise ValueError(
            f"inputs: expected pixel_values or pixel_values_videos, got {', '.join(inputs)}: pass the "
            "processor's output"
        )
    if family.mrope:
        return _merged_patches(model.config.vision_config, inputs, shown)
    pixels = inputs[encoded_as].float().cpu().numpy()
    if is_video:
        return _frames(pixels, tokens - family.newlines, shown)  # a line end closes all frames
    if family.newlines:
        if newlines is None:
            raise ValueError("newlines: expected (N,) bool for a model with image_newline rows, got None")
        return _anyres(model.config, pixels, inputs["image_sizes"], newlines, shown)
    pixels = pixels.reshape(-1, *pixels.shape[-3:])
    if family.tiles is not None:
        pixels = pixels[pixels.any((1, 2, 3))]  # without the all-zero tiles that pad a batch
        return _tiles(pixels, tokens // len(pixels), size, shown)
    if len(pixels) != 1:
        raise ValueError(f"inputs: expected one image, got {len(pixels)}")
    return [View("what the model sees", shown(pixels[0]), _square(tokens))]


def _unnormalise(image_processor: Any) -> Callable[[Pixels], np.ndarray]:
    """(3, H, W) normalised pixels -> (H, W, 3) uint8."""
    mean = np.asarray(getattr(image_processor, "image_mean", None) or (0.0,) * 3)[:, None, None]
    std = np.asarray(getattr(image_processor, "image_std", None) or (1.0,) * 3)[:, None, None]
    if getattr(image_processor, "do_normalize", True) is False:
        mean, std = np.zeros_like(mean), np.ones_like(std)
    scale = 255 if getattr(image_processor, "do_rescale", True) is not False else 1

    def shown(pixels: Pixels) -> np.ndarray:
        return np.clip((pixels * std + mean) * scale + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)

    return shown


def _square(tokens: int, first: int = 0) -> np.ndarray:
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"tokens: expected a square grid, got {tokens} tokens")
    return np.arange(first, first + tokens).reshape(side, side)


def _merged_patches(vision: Any, inputs: Mapping[str, Any], shown: Callable[[Pixels], np.ndarray]) -> list[View]:
    """Qwen: patches come flattened, merge × merge of them in a token, one view for each frame."""
    video = inputs.get("video_grid_thw") is not None
    grids: Tensor = inputs["video_grid_thw" if video else "image_grid_thw"]
    if len(grids) != 1:
        raise ValueError(f"inputs: expected one image or video, got {len(grids)}")
    frames, height, width = grids[0].tolist()
    merge, side, depth = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    rows, cols = height // merge, width // merge
    flat = inputs["pixel_values_videos" if video else "pixel_values"].float().cpu().numpy()
    patches = flat.reshape(frames, rows, cols, merge, merge, 3, depth, side, side)[:, :, :, :, :, :, 0]
    pictures = patches.transpose(0, 5, 1, 3, 6, 2, 4, 7).reshape(frames, 3, height * side, width * side)
    tokens = np.arange(frames * rows * cols).reshape(frames, rows, cols)
    return _in_time(list(pictures), list(tokens), shown)


def _frames(pixels: np.ndarray, tokens: int, shown: Callable[[Pixels], np.ndarray]) -> list[View]:
    """LLaVA-OneVision (1, T, 3, H, W), SmolVLM (1, T, 3, H, W), InternVL (T, 3, H, W): as many tokens in each frame."""
    if pixels.ndim == 5 and len(pixels) != 1:
        raise ValueError(f"inputs: expected one video, got {len(pixels)}")
    pictures = pixels.reshape(-1, *pixels.shape[-3:])
    each = tokens // len(pictures)
    return _in_time(list(pictures), [_square(each, frame * each) for frame in range(len(pictures))], shown)


def _in_time(pictures: list[Pixels], tokens: list[np.ndarray], shown: Callable[[Pixels], np.ndarray]) -> list[View]:
    """A view for each frame, or the only one."""
    count = len(pictures)
    names = [f"frame {frame + 1} of {count}" for frame in range(count)] if count > 1 else ["what the model sees"]
    return [View(name, shown(picture), own) for name, picture, own in zip(names, pictures, tokens, strict=True)]


def _anyres(
    config: Any, pixels: np.ndarray, sizes: Any, newlines: np.ndarray, shown: Callable[[Pixels], np.ndarray]
) -> list[View]:
    """LLaVA-NeXT and LLaVA-OneVision: the whole picture, and its tiles with a structural token after every line."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    if len(sizes) != 1:
        raise ValueError(f"inputs: expected one image, got {len(sizes)}")
    ends = np.flatnonzero(newlines)
    base = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    views = [View("the whole image", shown(pixels[0, 0]), _square(base))]
    if len(ends) < 2:
        return views
    height, width = (int(value) for value in sizes[0])
    shape = get_anyres_image_grid_shape((height, width), config.image_grid_pinpoints, config.vision_config.image_size)
    picture = _unpadded(_stitched(pixels[0, 1 : 1 + shape[0] * shape[1]], shape), height, width)
    lines = np.arange(base, len(newlines)).reshape(len(ends), -1)
    return [*views, View("its tiles", shown(picture), lines[:, :-1])]


def _stitched(tiles: np.ndarray, shape: tuple[int, int]) -> Pixels:
    """(rows * cols, 3, h, w) -> (3, rows * h, cols * w)."""
    rows, cols = shape
    _, channels, height, width = tiles.shape
    placed = tiles.reshape(rows, cols, channels, height, width).transpose(2, 0, 3, 1, 4)
    return placed.reshape(channels, rows * height, cols * width)


def _unpadded(picture: Pixels, height: int, width: int) -> Pixels:
    """Without the bars that were added to reach the tiles' size, of a picture that was (height, width) before."""
    _, rows, cols = picture.shape
    if width / height > cols / rows:
        bar = (rows - round(height * cols / width)) // 2
        return picture[:, bar : rows - bar]
    bar = (cols - round(width * rows / height)) // 2
    return picture[:, :, bar : cols - bar]


def _tiles(
    pixels: np.ndarray, each: int, size: tuple[int, int] | None, shown: Callable[[Pixels], np.ndarray]
) -> list[View]:
    """InternVL, SmolVLM, Idefics3: tiles row by row, then the whole picture."""
    numbers = np.stack([_square(each, tile * each) for tile in range(len(pixels))])
    if len(pixels) == 1:
        return [View("what the model sees", shown(pixels[0]), numbers[0])]
    shape = _tile_grid(len(pixels) - 1, size)
    rows, cols = shape
    side = numbers.shape[1]
    tokens = numbers[:-1].reshape(rows, cols, side, side).transpose(0, 2, 1, 3).reshape(rows * side, cols * side)
    return [
        View("the whole image", shown(pixels[-1]), numbers[-1]),
        View("its tiles", shown(_stitched(pixels[:-1], shape)), tokens),
    ]


def _tile_grid(tiles: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of square tiles that come closest to the aspect of a picture of size (H, W) (None: a square)."""
    aspect = 1.0 if size is None else size[1] / size[0]
    shapes = [(rows, tiles // rows) for rows in range(1, tiles + 1) if tiles % rows == 0]
    return min(shapes, key=lambda shape: abs(math.log(shape[1] / shape[0] / aspect)))
