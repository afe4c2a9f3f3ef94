"""Videos in `explain`: views of frames, which of them a figure shows, and the command on tiny checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
pytest.importorskip("skimage")

from PIL import Image
from skimage import data

from mi_pruner._errors import InputError
from mi_pruner.cli import main
from mi_pruner.command_input import open_clip
from mi_pruner.integrations.views import image_views
from mi_pruner.viz import View, frames_figure

from . import tiny_checkpoints
from .tiny_models import TILE, batch, model
from .tiny_videos import FAMILIES, StandIn, pixels


def film(count: int, size: tuple[int, int] = (60, 40)) -> list[Image.Image]:
    """A window that moves over a photograph."""
    return [Image.fromarray(data.coffee()).crop((20 * n, 30, 20 * n + 300, 230)).resize(size) for n in range(count)]


def save_folder(folder: Path, frames: list[Image.Image]) -> Path:
    """Numbers without leading zeros: in the order of letters, frame10 would come before frame2."""
    folder.mkdir()
    for number, frame in enumerate(frames):
        frame.save(folder / f"frame{number + 1}.png")
    return folder


def views_of(family: str, frames: np.ndarray) -> tuple[list[View], torch.Tensor]:
    """Views of (T, 3, 24, 24) frames in 0 .. 1, and the encoder's features (N, D)."""
    inputs = {name: v.double() if v.is_floating_point() else v for name, v in pixels(family, frames).items()}
    modality = "video" if "pixel_values_videos" in inputs else "image"
    with torch.no_grad():
        encode = getattr(model(family).base_model, f"get_{modality}_features")
        pooled = encode(**inputs, return_dict=True).pooler_output
    features = torch.cat([part.flatten(0, -2) for part in pooled])
    return image_views(model(family), inputs, object(), len(features), frames=len(frames)), features


class TestViews:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_tokens_are_where_they_look(self, family):
        """A view for each frame; noise in one of its patches changes its token more than any other of the video.

        On average over several: a single one may change a neighbour more, which attends to it.
        """
        frames = np.stack([np.asarray(frame) for frame in film(3, (TILE, TILE))]).transpose(0, 3, 1, 2) / 255
        views, before = views_of(family, frames)
        assert [view.name for view in views] == [f"frame {n + 1} of 3" for n in range(3)]
        for view, frame in zip(views, frames, strict=True):
            assert np.abs(view.picture - 255 * frame.transpose(1, 2, 0)).max() <= 1
        tokens = np.stack([view.tokens for view in views])
        assert tokens.ravel().tolist() == list(range(27))
        generator = np.random.default_rng(0)
        for row, col in np.ndindex(3, 3):
            frame = (row + col) % 3
            change = torch.zeros(27, dtype=torch.float64)
            for _ in range(8):
                painted = frames.copy()
                painted[frame, :, 8 * row : 8 * row + 8, 8 * col : 8 * col + 8] = generator.random((3, 8, 8))
                change += (views_of(family, painted)[1] - before).norm(dim=1)[:27]
            assert int(change.argmax()) == tokens[frame, row, col]

    def test_of_a_model_in_a_wrapper(self):
        made = batch("llava_onevision", [1], video=True)
        wrapped = torch.compile(model("llava_onevision"))
        assert len(image_views(wrapped, made.inputs, object(), made.images[0])) == 2

    def test_pixels_as_the_video_processor_normalised_them(self):
        class Normaliser:
            def __init__(self, mean: float) -> None:
                self.image_mean, self.image_std = [mean] * 3, [0.5] * 3

        class Processor:
            image_processor, video_processor = Normaliser(0.9), Normaliser(0.5)

        inputs = pixels("internvl", np.zeros((2, 3, TILE, TILE)))
        for view in image_views(model("internvl"), inputs, Processor(), 18, frames=2):
            assert (view.picture == 128).all()

    def test_several_videos_are_refused(self):
        for family in ("llava_onevision", "qwen3_vl"):
            made = batch(family, [2], video=True)
            with pytest.raises(ValueError, match=r"expected one (image or )?video, got 2"):
                image_views(model(family), made.inputs, object(), made.images[0])


class TestFigure:
    def figure(self, count: int, repeats: np.ndarray, kept: list[int]):
        tokens = np.arange(6 * count).reshape(count, 2, 3)
        picture = np.zeros((20, 30, 3), np.uint8)
        frames = [View(f"frame {n + 1} of {count}", picture, own) for n, own in enumerate(tokens)]
        scores = np.where(repeats, 1000.0, np.arange(6 * count))
        return frames_figure(frames, scores, repeats, kept, kept, "title", "subtitle")

    def test_eight_of_many_frames(self):
        figure = self.figure(32, np.zeros(192, bool), [0, 5, 191])
        columns = np.array(figure.axes).reshape(8, 4)
        shown = [axes.get_xlabel() for axes in columns[:, 0]]
        assert shown == [f"frame {n} of 32" for n in (1, 5, 10, 14, 19, 23, 28, 32)]
        assert [axes.get_xlabel() for axes in columns[:, 2]] == ["kept: 2", *["kept: 0"] * 6, "kept: 1"]
        assert "subtitle; 8 of 32 frames shown" in [text.get_text() for text in figure.texts]

    @pytest.mark.parametrize("count", range(1, 9))
    def test_few_frames_are_all_shown(self, count):
        figure = self.figure(count, np.zeros(6 * count, bool), [0])
        assert len(figure.axes) == 4 * count
        assert "subtitle" in [text.get_text() for text in figure.texts]

    def test_repeats_are_grey_and_out_of_the_scale(self):
        repeats = np.arange(18) >= 8
        figure = self.figure(3, repeats, [0])
        panels = np.array(figure.axes).reshape(3, 4)[:, 1]
        assert [axes.get_xlabel() for axes in panels] == ["new: 6 of 6", "new: 2 of 6", "new: 0 of 6"]
        for panel, of_frame in zip(panels, repeats.reshape(3, 2, 3), strict=True):
            (heat,) = panel.images
            assert (np.ma.getmaskarray(heat.get_array()) == of_frame).all()
            low, high = heat.get_clim()
            assert low == 0
            assert 6 < high <= 7

    def test_no_frames(self):
        with pytest.raises(ValueError, match="frames: expected at least one"):
            frames_figure([], np.zeros(1), np.zeros(1, bool), [], [], "", "")


class TestClip:
    def test_folder_in_the_order_of_its_names(self, tmp_path):
        frames = film(11)
        folder = save_folder(tmp_path / "clip", frames)
        (folder / ".hidden").write_text("no picture")
        clip = open_clip(folder)
        assert clip.fps == 2
        assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(clip.frames, frames, strict=True))

    @pytest.mark.parametrize(("suffix", "options"), [("gif", {}), ("webp", {"lossless": True}), ("png", {})])
    def test_animation(self, suffix, options, tmp_path):
        first, *others = film(5)
        path = tmp_path / f"clip.{suffix}"
        first.save(path, save_all=True, append_images=others, duration=250, **options)
        clip = open_clip(path)
        assert clip.fps == 4
        assert [frame.mode for frame in clip.frames] == ["RGB"] * 5
        for frame, original in zip(clip.frames, film(5), strict=True):
            assert np.abs(np.asarray(frame).astype(float) - np.asarray(original)).mean() < 10

    def test_other_files_say_how_to_make_frames(self, tmp_path):
        path = tmp_path / "clip.mp4"
        path.write_bytes(b"\0\0\0\x18ftypmp42")
        with pytest.raises(InputError, match=rf"ffmpeg -i {path} -vf fps=2 frames/%04d\.png"):
            open_clip(path)

    def test_what_is_no_video(self, tmp_path):
        picture = tmp_path / "a.png"
        film(1)[0].save(picture)
        (tmp_path / "empty").mkdir()
        mixed = save_folder(tmp_path / "mixed", [*film(2), *film(1, (30, 40))])
        text = save_folder(tmp_path / "text", film(2))
        (text / "notes.txt").write_text("no picture")
        for path, says in (
            (tmp_path / "absent", "cannot read .*absent"),
            (picture, "expected at least two frames, got 1 in .*a.png: a single picture goes to --image"),
            (tmp_path / "empty", "expected at least two frames, got 0"),
            (mixed, "expected frames of one size, 60 × 40 as the first, got 30 × 40 for frame 3"),
            (text, "notes.txt is not a picture"),
        ):
            with pytest.raises(InputError, match=f"^--video: .*{says}"):
                open_clip(path)


class TestCommand:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_explains(self, family, tmp_path, capsys, monkeypatch):
        """With a stand-in for the processor, which is asked not to sample and told the times."""
        tiny_checkpoints.model_for(family).float().save_pretrained(tmp_path / "checkpoint")
        processor = StandIn(family)
        monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda name: processor)
        clip, out = save_folder(tmp_path / "clip", film(6)), tmp_path / "out.png"
        arguments = ["--model", str(tmp_path / "checkpoint"), "--video", str(clip), "--text", "where is the cup?"]
        assert main(["explain", *arguments, "--keep", "0.5", "--device", "cpu", "--out", str(out)]) == 0
        seen = 3 if family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl") else 6
        printed = capsys.readouterr().out
        begins = "6 frames, merged to 3 by the model; " if seen == 3 else "6 frames; "
        assert begins in printed
        assert f"of {9 * seen + (family == 'llava_onevision')} tokens repeat an earlier frame" in printed
        assert str(out) in printed
        assert processor.options["do_sample_frames"] is False
        (metadata,) = processor.options["video_metadata"]
        assert metadata["fps"] == 2
        assert metadata["duration"] == 3
        assert metadata["frames_indices"] == list(range(6))
        with Image.open(out) as drawn:
            assert drawn.format == "PNG"

    @pytest.mark.parametrize("family", tiny_checkpoints.WITH_PROCESSOR)
    def test_families_without_videos(self, family, tmp_path, capsys):
        """Said before the processor and the weights are read: there are none."""
        tiny_checkpoints.tiny_models.config(family).save_pretrained(tmp_path / "checkpoint")
        clip = save_folder(tmp_path / "clip", film(2))
        assert main(["explain", "--model", str(tmp_path / "checkpoint"), "--video", str(clip), "--text", "what"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("mi_pruner: --video: expected a model of internvl, llava_onevision, ")
        assert line.endswith(f", got {family}: give it a picture with --image")

    def test_frames_that_the_prompt_does_not_tell_apart(self, tmp_path, capsys, monkeypatch):
        tiny_checkpoints.model_for("internvl").float().save_pretrained(tmp_path / "checkpoint")
        monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda name: StandIn("internvl"))
        monkeypatch.setattr(
            "tests.tiny_videos.placeholders", lambda family, count: f"Picture: <start>{'<image>' * 9}<stop>" * count
        )
        arguments = ["--video", str(save_folder(tmp_path / "clip", film(3))), "--text", "what", "--device", "cpu"]
        assert main(["explain", "--model", str(tmp_path / "checkpoint"), *arguments]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert "expected one picture or video in the prompt, found 3 images" in line

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ([], "one of the arguments --image --video is required"),
            (["--image", "a.png", "--video", "b"], "not allowed with argument"),
        ],
    )
    def test_a_picture_or_a_video(self, given, says, capsys):
        with pytest.raises(SystemExit) as ended:
            main(["explain", "--model", "x", "--text", "what", *given])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line

    def test_two_videos(self, capsys):
        assert main(["explain", "--model", "x", "--video", "a", "--video", "b", "--text", "what"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "--video: expected one video, got 2" in line
