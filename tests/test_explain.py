"""Views of a photograph through real image processors, and the `explain` command on tiny checkpoints on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")
pytest.importorskip("skimage")

from PIL import Image
from skimage import data
from tokenizers.processors import TemplateProcessing

from mi_pruner import MIPruner
from mi_pruner._errors import InputError
from mi_pruner.cli import main
from mi_pruner.integrations.checkpoint import Checkpoint, load_checkpoint
from mi_pruner.integrations.transformers import encode_inputs, prune_inputs
from mi_pruner.integrations.views import image_views
from mi_pruner.viz import View, views_figure

from . import tiny_checkpoints
from .tiny_models import FAMILIES, batch, model

CENTRE_CROP = ("llava",)


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    return Image.fromarray(data.coffee()).resize((60, 40))


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory) -> Path:
    return tiny_checkpoints.save("llava_next", tmp_path_factory.mktemp("checkpoint"))


def pixels_of(family: str, picture: Image.Image):
    """What the family's image processor makes of a picture, in the dtype of the test models."""
    processor = tiny_checkpoints.processor(family)
    processor = getattr(processor, "image_processor", processor)
    inputs = processor(images=[picture], return_tensors="pt")
    return processor, {
        name: value.double() if name == "pixel_values" else value
        for name, value in inputs.items()
        if torch.is_tensor(value)
    }


def features_of(family: str, inputs: dict) -> torch.Tensor:
    """(N, D): the encoder's output for one picture."""
    wanted = {"pixel_values", "image_grid_thw", "image_sizes", "pixel_attention_mask"}
    arguments = {name: value for name, value in inputs.items() if name in wanted}
    with torch.no_grad():
        output = model(family).base_model.get_image_features(**arguments, return_dict=True).pooler_output
    return torch.cat([part.flatten(0, -2) for part in output])


def views_of(family: str, picture: Image.Image) -> tuple[list[View], torch.Tensor]:
    processor, inputs = pixels_of(family, picture)
    features = features_of(family, inputs)
    newline = getattr(model(family).base_model, "image_newline", None)
    ends = None if newline is None else (features == newline).all(-1).numpy()
    size = (picture.height, picture.width)
    return image_views(model(family), inputs, processor, len(features), ends, size), features


class TestViews:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_show_the_photograph(self, family, photograph):
        """The pictures are the photograph, resized; together they hold every token that is not a line end, once."""
        views, features = views_of(family, photograph)
        for view in views:
            height, width, _ = view.picture.shape
            original = photograph
            if family in CENTRE_CROP:
                original = photograph.crop((10, 0, 50, 40))
            expected = np.asarray(original.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
            assert np.abs(view.picture - expected).mean() < 12
            assert height % view.grid[0] == width % view.grid[1] == 0 or view.name == "its tiles"
        numbers = np.concatenate([view.tokens.ravel() for view in views])
        newline = getattr(model(family).base_model, "image_newline", None)
        ends = 0 if newline is None else int((features == newline).all(-1).sum())
        assert len(set(numbers.tolist())) == len(numbers) == len(features) - ends

    @pytest.mark.parametrize("family", FAMILIES)
    def test_tokens_are_where_they_look(self, family, photograph):
        """Painting one patch of a view changes its token more than any other token of that view."""
        views, before = views_of(family, photograph)
        for number, view in enumerate(views):
            rows, cols = view.grid
            row, col = rows // 3, 2 * cols // 3
            left, top, width, height = (10, 0, 40, 40) if family in CENTRE_CROP else (0, 0, 60, 40)
            box = (left + width * col / cols, top + height * row / rows)
            painted = np.asarray(photograph).copy()
            ends = (box[0] + width / cols, box[1] + height / rows)
            painted[round(box[1]) : round(ends[1]), round(box[0]) : round(ends[0])] = (0, 255, 0)
            _, after = views_of(family, Image.fromarray(painted))
            change = (after - before).norm(dim=1).numpy()[views[number].tokens]
            assert np.unravel_index(change.argmax(), change.shape) == (row, col)

    def test_several_images_are_refused(self):
        for family in ("llava", "qwen3_vl", "llava_next"):
            made = batch(family, [2])
            with pytest.raises(ValueError, match="expected one image"):
                image_views(model(family), made.inputs, object(), made.images[0], np.zeros(made.images[0], bool))

    def test_inputs_without_pixels_are_refused(self):
        inputs = {"input_ids": batch("llava", [1]).inputs["input_ids"]}
        with pytest.raises(ValueError, match=r"expected pixel_values or pixel_values_videos, got input_ids: pass"):
            image_views(model("llava"), inputs, object(), 36)


class TestFigure:
    def test_of_two_views(self):
        generator = np.random.default_rng(0)
        tokens = np.arange(24).reshape(4, 6)
        picture = generator.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        views = [View("a", picture, tokens), View("b", picture, np.where(tokens % 5 == 0, -1, tokens + 24))]
        figure = views_figure(views, generator.random(48), [1, 2, 30], [30, 1], "title", "subtitle")
        assert len(figure.axes) == 8
        labels = [axes.get_xlabel() for axes in figure.axes]
        assert labels[2] == "kept: 2 tokens"
        assert labels[6] == "kept: 1 tokens"
        assert labels[4] == "b: 19 tokens"
        ranks = figure.axes[7].images[1].get_array()
        assert np.isnan(np.ma.filled(ranks, np.nan)).sum() == 23

    def test_no_views(self):
        with pytest.raises(ValueError, match="views: expected at least one"):
            views_figure([], np.zeros(1), [], [], "", "")


class TestProcessors:
    @pytest.mark.parametrize("family", tiny_checkpoints.WITH_PROCESSOR)
    def test_photograph_and_question_end_to_end(self, family, photograph):
        """Real processor, real tokenizer; the selection reads the words of the question only."""
        processor = tiny_checkpoints.processor(family)
        checkpoint = Checkpoint(tiny_checkpoints.model_for(family).float(), processor)
        inputs = checkpoint.ask(photograph, "what is the woman wearing?")
        pruned = prune_inputs(checkpoint.model, inputs, MIPruner(keep=0.5), processor=processor)
        (image,) = pruned.images
        words = processor.tokenizer(" the woman wearing", add_special_tokens=False)["input_ids"]
        ids = inputs["input_ids"][0].tolist()
        start = next(n for n in range(len(ids)) if ids[n : n + len(words)] == words)
        mask = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        question = processor.tokenizer("what is the woman wearing?", add_special_tokens=False)["input_ids"]
        first = start - question.index(words[0])
        mask[0, first : first + len(question)] = True
        assert processor.tokenizer.decode(inputs["input_ids"][0][mask[0]]) == "what is the woman wearing?"
        by_mask = prune_inputs(checkpoint.model, inputs, MIPruner(keep=0.5), text_mask=mask)
        assert image.order.tolist() == by_mask.images[0].order.tolist()
        generated = checkpoint.model.generate(**pruned, max_new_tokens=3, do_sample=False)
        assert generated.shape == (1, pruned["input_ids"].shape[1] + 3)

    @pytest.mark.parametrize(
        ("template", "opens"),
        [
            ("{{ messages[0]['content'].strip() }}<end>", "<image>\nwhere?"),
            (
                "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system message') }}{% endif %}"
                "{{ messages[1]['content'][0]['text'] or '<image>' }}{{ messages[1]['content'][1]['text'] }}<end>",
                "<image>where?",
            ),
            ("{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}", None),
            (None, "<image>\nwhere?\n"),
        ],
        ids=["content as a string", "a system message", "no pictures", "no template"],
    )
    def test_templates_of_other_forms(self, template, opens, photograph):
        processor = tiny_checkpoints.processor("llava")
        processor.chat_template = template
        checkpoint = Checkpoint(model("llava"), processor)
        if opens is None:
            with pytest.raises(ValueError, match="prompt lacks <image> or the question"):
                checkpoint.ask(photograph, "where?")
        else:
            prompt = processor.tokenizer.decode(checkpoint.ask(photograph, "where?")["input_ids"][0])
            assert prompt.startswith(opens.replace("<image>", 36 * "<image>"))

    @pytest.mark.parametrize("template", ["<s>" + tiny_checkpoints.TEMPLATE, tiny_checkpoints.TEMPLATE, None])
    def test_the_prompt_begins_once(self, template, photograph):
        """Whether the template writes the first token, or the tokenizer adds it."""
        processor = tiny_checkpoints.processor("llava")
        words = processor.tokenizer
        first = [("<s>", words.bos_token_id)]
        words.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=first)
        processor.chat_template = template
        ids = Checkpoint(tiny_checkpoints.model_for("llava"), processor).ask(photograph, "what?")["input_ids"]
        assert (ids == words.bos_token_id).nonzero().tolist() == [[0, 0]]

    def test_encoding_keeps_what_the_positions_need(self):
        made = batch("qwen2_5_vl", [1])
        assert "image_grid_thw" in encode_inputs(model("qwen2_5_vl"), made.inputs)


class TestCommand:
    @pytest.mark.parametrize("family", tiny_checkpoints.WITH_PROCESSOR)
    def test_explains(self, family, tmp_path, capsys):
        checkpoint_folder = tiny_checkpoints.save(family, tmp_path / "checkpoint")
        picture, out = tmp_path / "coffee.jpg", tmp_path / "out.png"
        Image.fromarray(data.coffee()).save(picture)
        arguments = ["--model", str(checkpoint_folder), "--image", str(picture), "--text", "where is the cup?"]
        assert main(["explain", *arguments, "--keep", "0.25", "--out", str(out)]) == 0
        printed = capsys.readouterr().out
        assert "where is the cup?" in printed
        assert "prefill" in printed
        assert "its share" in printed
        assert str(out) in printed
        with Image.open(out) as drawn:
            assert drawn.format == "PNG"
            assert drawn.width > 1000

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"--model": "/absent"}, "cannot load /absent: "),
            ({"--image": "/absent.png"}, "--image: cannot read /absent.png"),
            ({"--text": " "}, "--text: the question is empty"),
            ({"--keep": "1.5"}, "--keep: expected a ratio"),
            ({"--out": "a.jpg"}, "--out: expected a file ending in .png"),
        ],
    )
    def test_bad_input_is_one_line(self, change, says, checkpoint_folder, tmp_path, capsys):
        picture = tmp_path / "a.png"
        Image.new("RGB", (50, 40)).save(picture)
        given = {"--model": str(checkpoint_folder), "--image": str(picture), "--text": "what", **change}
        assert main(["explain", *(part for pair in given.items() for part in pair)]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mi_pruner")]
        assert says in line

    @pytest.mark.parametrize("device", ["cuda", "gpu", "cuda:99"])
    def test_a_device_that_cannot_be_used_is_one_line_before_the_checkpoint_is_read(self, device, tmp_path, capsys):
        if device == "cuda" and torch.cuda.is_available():
            pytest.skip("there is a GPU")
        picture = tmp_path / "a.png"
        Image.new("RGB", (50, 40)).save(picture)
        given = ["--model", "/absent", "--image", str(picture), "--text", "what", "--device", device]
        assert main(["explain", *given]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mi_pruner")]
        assert line.startswith(f"mi_pruner: --device: cannot use {device}: ")

    def test_two_pictures(self, capsys):
        assert main(["explain", "--model", "x", "--image", "a.png", "--image", "b.png", "--text", "what"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "--image: expected one picture, got 2" in line

    def test_family_is_checked_before_the_processor_and_that_before_the_weights(self, checkpoint_folder, tmp_path):
        config = json.loads((checkpoint_folder / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match="rocessor") as refused:  # there are no weights either
            load_checkpoint(str(tmp_path))
        assert "safetensors" not in str(refused.value)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
        with pytest.raises(InputError, match=r"cannot load .*: model: expected one of gemma3, .*, got 'bert'"):
            load_checkpoint(str(tmp_path))

    def test_processor_that_needs_torchvision(self, checkpoint_folder, monkeypatch):
        def absent(name):
            raise ImportError("\nAProcessor requires the Torchvision library but it was not found in your environment.")

        monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", absent)
        with pytest.raises(InputError, match=r"install the torchvision that belongs to your torch$"):
            load_checkpoint(str(checkpoint_folder))

    def test_old_transformers(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("transformers.__version__", "4.57.6")
        picture = tmp_path / "a.png"
        Image.new("RGB", (50, 40)).save(picture)
        assert main(["explain", "--model", "x", "--image", str(picture), "--text", "what"]) == 2
        assert "transformers >= 5.18 is needed" in capsys.readouterr().err
