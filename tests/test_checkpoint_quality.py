"""The evaluation of a checkpoint on a folder of pictures and questions: a tiny random model, a tiny folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("skimage")
pytest.importorskip("tqdm")

from PIL import Image
from skimage import data

from bench.quality.checkpoint import Question, _asked, main, plain
from bench.quality.selectors import BASELINES, by_baseline, by_chance, selectors
from mi_pruner.integrations.checkpoint import load_checkpoint
from mi_pruner.integrations.packed_selection import PackedImages
from mi_pruner.integrations.transformers import rewrite_inputs

from . import tiny_checkpoints
from .tiny_models import batch, model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return tiny_checkpoints.save("llava", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def folder(tmp_path) -> Path:
    Image.fromarray(data.coffee()).save(tmp_path / "coffee.png")
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.jpg")
    questions = [
        {"image": "coffee.png", "question": "what is in the cup?", "answer": "coffee"},
        {"image": "cat.jpg", "question": "what is it?", "answer": ["a cat", "cat"]},
    ]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    return tmp_path


@pytest.mark.slow
def test_writes_the_table(checkpoint, folder, capsys):
    out = folder / "out" / "table.csv"
    arguments = ["--model", str(checkpoint), "--data", str(folder), "--out", str(out), "--new-tokens", "3"]
    assert main([*arguments, "--keep", "0.25", "20"]) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    named = [(row["selector"], row["keep"], float(row["visual_tokens"])) for row in rows]
    assert named == [
        ("dense", "1.0", 36),
        *[(name, keep, count) for keep, count in (("0.25", 9), ("20", 20)) for name in selectors(20, 0)],
    ]
    assert rows[0]["same_as_dense"] == "1.0000"
    assert {row["model"] for row in rows} == {str(checkpoint)}
    assert float(rows[0]["prompt_tokens"]) - float(rows[1]["prompt_tokens"]) == 27
    assert "same_as_dense" in capsys.readouterr().out


def test_answers_are_compared_without_case_punctuation_and_articles():
    assert plain("The  Cat.") == plain("a cat") == "cat"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read"),
        ("{", "expected"),
        ('[{"image": "coffee.png"}]', "KeyError: 'question'"),
        ("[]", "no questions"),
        ('[{"image": "absent.png", "question": "what", "answer": "x"}]', "no picture"),
    ],
)
def test_bad_folders_are_one_line(content, says, checkpoint, folder, capsys):
    if content is None:
        (folder / "questions.json").unlink()
    else:
        (folder / "questions.json").write_text(content)
    assert main(["--model", str(checkpoint), "--data", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_what_cannot_work_is_said_before_the_run(checkpoint, folder, capsys):
    (folder / "coffee.png").write_bytes(b"no picture")
    for arguments, says in (
        (["--new-tokens", "0"], "--new-tokens: expected at least 1, got 0"),
        (["--out", str(folder)], f"--out: cannot write {folder}: Is a directory"),
        (["--out", str(folder / "t.csv")], f"--data: {folder / 'coffee.png'} is not a picture"),
    ):
        assert main(["--model", "/absent", "--data", str(folder), *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    assert not (folder / "t.csv").exists()


def test_a_question_that_fails_is_named(checkpoint, folder, capsys):
    entry = {"image": "cat.jpg", "question": "what is <image>?", "answer": "x"}
    (folder / "questions.json").write_text(json.dumps([entry]))
    assert main(["--model", str(checkpoint), "--data", str(folder), "--keep", "4"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"question 1 ({folder / 'cat.jpg'}, 'what is <image>?'): " in line


def test_the_brief_is_not_scored(checkpoint, folder):
    loaded = load_checkpoint(str(checkpoint), "cpu")
    question = Question(folder / "coffee.png", "what is in the cup?", ("coffee",))
    encoded, scored = _asked(loaded, question, "Answer in one word.")
    assert loaded.processor.tokenizer.decode(encoded["input_ids"][scored]).startswith("what is in the cup?")
    assert "Answer" not in loaded.processor.tokenizer.decode(encoded["input_ids"][scored])
    assert "Answer in one word." in loaded.processor.tokenizer.decode(encoded["input_ids"][0])


def test_baselines_keep_as_many_and_spare_structural_rows():
    made = batch("llava_next", [1, 1])
    for select in (by_chance(3), *map(by_baseline, BASELINES.values())):  # 8: DART keeps multiples of it
        pruned = rewrite_inputs(model("llava_next"), made.inputs, 8, select, text="image")
        assert [len(image.rows) for image in pruned.images] == [8 + ends for ends in made.structural]


def test_cosine_takes_what_is_most_like_the_question():
    visual = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [5.0, 0.1]])
    images = PackedImages(visual, torch.tensor([[2.0, 0.0]]), [4], [1], None, [0])
    assert set(by_baseline(BASELINES["cosine"])(images, [2]).indices.tolist()) == {0, 3}
