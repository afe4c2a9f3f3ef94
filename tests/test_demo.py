"""The demo: its scenes, its model, the selection seen through it, and the command with good and bad input."""

import builtins
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")

from PIL import Image

import mi_pruner
from bench.quality.batches import dense_accuracy, make_batch
from mi_pruner.cli import main
from mi_pruner.demo.checkpoint import SHIPPED, load_model, pixels_of
from mi_pruner.demo.model import TOKENS, DigitVLM
from mi_pruner.demo.questions import KINDS, questions_about
from mi_pruner.demo.scenes import SIDE, make_scene, patches_of
from mi_pruner.demo.sources import SPLITS, digit_images, photographs
from mi_pruner.demo.vocabulary import COLOURS, MAX_QUESTION, WORD_ID, encode_question
from mi_pruner.viz import dim_dropped, kept_mask, selections_figure

HELD_OUT = "test"


@pytest.fixture(scope="module")
def model() -> DigitVLM:
    return load_model()[0]


class TestScenes:
    def test_same_seed_same_scene(self):
        first, second = make_scene(HELD_OUT, 5), make_scene(HELD_OUT, 5)
        assert np.array_equal(first.pixels, second.pixels)
        assert first.digits == second.digits
        assert not np.array_equal(first.pixels, make_scene(HELD_OUT, 6).pixels)
        assert not np.array_equal(first.pixels, make_scene("dev", 5).pixels)

    def test_splits_share_no_digit_image(self):
        seen = {split: {image.tobytes() for value in digit_images(split) for image in value} for split in SPLITS}
        assert sum(len(images) for images in seen.values()) == len(set().union(*seen.values())) > 1700

    def test_splits_share_no_part_of_a_photograph(self):
        pytest.importorskip("skimage")
        from mi_pruner.demo.sources import _PHOTOGRAPHS

        regions = [(file, region) for split in SPLITS for _, file, region in _PHOTOGRAPHS[split]]
        for number, (file, region) in enumerate(regions):
            for other_file, other in regions[:number]:
                assert file != other_file or _apart(region, other)
        assert all(min(photograph.size) >= SIDE for split in SPLITS for photograph in photographs(split))

    @pytest.mark.parametrize("seed", range(20))
    def test_owners_are_the_digits(self, seed: int):
        scene = make_scene(HELD_OUT, seed)
        assert scene.pixels.shape == (SIDE, SIDE, 3)
        assert scene.pixels.dtype == np.uint8
        assert 2 <= len(scene.digits) <= 6
        assert (
            len({digit.value for digit in scene.digits}) == len({d.colour for d in scene.digits}) == len(scene.digits)
        )
        assert set(np.unique(scene.owner)) == set(range(-1, len(scene.digits)))
        for index, digit in enumerate(scene.digits):  # every patch of a digit lies in its cell and shows its colour
            rows, cols = np.nonzero(scene.owner == index)
            assert set(rows // 3 * 3 + cols // 3) == {digit.cell}
            closeness = np.linalg.norm(scene.pixels.astype(float) - COLOURS[digit.colour], axis=2) < 60
            assert patches_of(closeness)[rows, cols].any(axis=(1, 2)).mean() > 0.5

    def test_every_kind_of_question_comes_and_can_be_read(self):
        questions = [question for seed in range(30) for question in questions_about(make_scene("dev", seed))]
        assert {question.kind for question in questions} == set(KINDS)
        assert all(question.answer in WORD_ID for question in questions)
        assert all(2 <= len(encode_question(question.text)) <= MAX_QUESTION for question in questions)

    def test_spellings(self):
        assert encode_question("Which COLOR is the 7?") == encode_question("what colour is the seven")


def _apart(first: tuple[int, ...] | None, second: tuple[int, ...] | None) -> bool:
    """Whether two regions (left, top, right, bottom) do not overlap."""
    if first is None or second is None:
        return False
    return first[2] <= second[0] or second[2] <= first[0] or first[3] <= second[1] or second[3] <= first[1]


class TestModel:
    def test_checkpoint_is_small_and_says_how_it_was_made(self, model: DigitVLM):
        _, metadata = load_model()
        assert SHIPPED.stat().st_size <= 3_000_000
        assert sum(value.numel() for value in model.parameters()) < 800_000
        assert metadata["command"].startswith("python -m bench.quality.train ")
        assert {"seed", "dev_accuracy", "torch"} <= metadata.keys()

    def test_all_tokens_in_any_packing_give_the_same_logits(self, model: DigitVLM):
        batch = make_batch(HELD_OUT, range(4))
        visual, everywhere = model.encode_image(batch.pixels), torch.arange(TOKENS).expand(4, -1)
        text = model.embed_text(batch.text)
        together = model.answer_many(visual, everywhere, text, batch.text_mask)
        for question in range(batch.text.shape[1]):
            alone = model.answer(visual, everywhere, text[:, question], batch.text_mask[:, question])
            torch.testing.assert_close(alone, together[:, question], atol=1e-4, rtol=1e-4)

    def test_pruned_equals_masked(self, model: DigitVLM):
        """Passing K tokens with their positions is attending to those K of all 81."""
        visual = model.encode_image(pixels_of(make_scene(HELD_OUT, 1).pixels)[None])
        text = model.embed_text(torch.tensor([encode_question("where is the seven")]))
        everywhere = torch.arange(TOKENS)[None]
        kept = torch.tensor([[0, 3, 17, 40, 41, 80]])
        mask = torch.zeros(1, TOKENS, dtype=torch.bool).scatter_(1, kept, True)
        pruned = model.answer(visual[:, kept[0]], kept, text)
        masked = model.answer(visual, everywhere, text, visual_mask=mask)
        torch.testing.assert_close(pruned, masked, atol=1e-4, rtol=1e-4)

    def test_padding_of_a_question_changes_nothing(self, model: DigitVLM):
        visual = model.encode_image(pixels_of(make_scene(HELD_OUT, 1).pixels)[None])
        ids = encode_question("where is the seven")
        padded = torch.tensor([ids + [0] * 4])
        mask = torch.arange(padded.shape[1])[None] < len(ids)
        everywhere = torch.arange(TOKENS)[None]
        plain = model.answer(visual, everywhere, model.embed_text(torch.tensor([ids])))
        torch.testing.assert_close(
            model.answer(visual, everywhere, model.embed_text(padded), mask), plain, atol=1e-4, rtol=1e-4
        )

    @pytest.mark.slow
    def test_dense_accuracy_on_held_out_scenes(self, model: DigitVLM):
        assert dense_accuracy(model, HELD_OUT, 200, torch.device("cpu"))["all"] >= 0.86


class TestDrawing:
    def test_dropped_patches_are_dimmed_and_unused_slots_skipped(self):
        picture = np.full((12, 18, 3), 200, np.uint8)
        kept = [0, 5, -1]
        assert kept_mask(kept, (2, 3)).tolist() == [[True, False, False], [False, False, True]]
        drawn = dim_dropped(picture, kept, (2, 3))
        assert (drawn[:6, :6] == 200).all()
        assert (drawn[6:, 12:] == 200).all()
        assert (drawn[:6, 6:] < 100).all()

    def test_no_selection_no_figure(self):
        with pytest.raises(ValueError, match="selections"):
            selections_figure([])


class TestCommand:
    def test_two_questions_on_the_default_scene(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        out = tmp_path / "demo.png"
        assert main(["demo", "--out", str(out)]) == 0
        printed = capsys.readouterr().out
        assert printed.count("the truth:") == 2
        assert str(out) in printed
        with Image.open(out) as image:
            assert image.format == "PNG"
            assert min(image.size) > 500

    def test_finds_a_scene_that_fits_the_question(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        arguments = ["demo", "--text", "what digit is red", "--keep", "20", "--out", str(tmp_path / "a.png")]
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert "20 tokens:" in printed
        assert "unknown" not in printed

    def test_own_picture(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        picture = tmp_path / "own.jpg"
        Image.new("L", (300, 200), 80).save(picture)
        assert main(["demo", "--image", str(picture), "--out", str(tmp_path / "a.png"), "--keep", "1.0"]) == 0
        assert "knows only coloured digits" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--text", ""], "empty"),
            (["--text", " ? "], "empty"),
            (["--text", "what digit is purple"], "'purple'.*the model knows .*seven"),
            (["--text", "what " * 12], "12 words"),
            (["--keep", "0.0"], "ratio"),
            (["--keep", "1.01"], "ratio"),
            (["--keep", "nan"], "ratio"),
            (["--keep", "some"], "got 'some'"),
            (["--keep", "0"], "count of 1 to 81"),
            (["--keep", "82"], "count of 1 to 81"),
            (["--seed", "-1"], "--seed"),
            (["--image", "absent.png"], "absent.png"),
            (["--image", __file__], "not a picture"),
            (["--out", "absent/folder/a.png"], "--out.*no folder"),
            (["--out", "a.jpg"], r"--out.*\.png"),
            (["--image", "a.png", "--seed", "3"], "--seed"),
        ],
    )
    def test_bad_input(self, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]):
        assert main(["demo", *arguments]) == 2
        _assert_one_line(capsys.readouterr().err, says)

    def test_truncated_picture(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        picture = tmp_path / "half.png"
        Image.fromarray(make_scene(HELD_OUT, 0).pixels).save(picture)
        picture.write_bytes(picture.read_bytes()[:2000])
        assert main(["demo", "--image", str(picture)]) == 2
        _assert_one_line(capsys.readouterr().err, "half.png")

    @pytest.mark.parametrize("arguments", [[], ["paint"], ["demo", "--seed", "x"], ["demo", "--loud"]])
    def test_wrong_command_line(self, arguments: list[str], capsys: pytest.CaptureFixture[str]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        _assert_one_line(capsys.readouterr().err, "--help")

    def test_version(self, capsys):
        with pytest.raises(SystemExit, match="0"):
            main(["--version"])
        assert capsys.readouterr().out == f"mi_pruner {mi_pruner.__version__}\n"

    @pytest.mark.parametrize("module", ["PIL", "matplotlib", "safetensors"])
    def test_missing_extra(self, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        _hide(module, monkeypatch)
        assert main(["demo"]) == 2
        _assert_one_line(capsys.readouterr().err, r"pip install 'mi_pruner\[demo\]'")

    @pytest.mark.slow
    def test_help_and_bare_import_need_no_extra(self):
        absent = (
            "import sys; sys.modules.update(dict.fromkeys(['PIL', 'matplotlib', 'safetensors', 'sklearn', 'skimage']))"
        )
        code = f"{absent}; from mi_pruner.cli import main; main(['--help'])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "demo" in done.stdout


def _assert_one_line(printed: str, says: str) -> None:
    assert printed.count("\n") == 1, printed
    assert re.search(says, printed), printed


def _hide(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes importing a module fail, as where it is not installed."""
    real_import: Callable = builtins.__import__

    def fake_import(name: str, *rest, **named):
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return real_import(name, *rest, **named)

    for loaded in [name for name in sys.modules if name.startswith(("mi_pruner.demo", "mi_pruner.viz"))]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setattr(builtins, "__import__", fake_import)
