"""The quality study: its statistics by hand, its in-decoder methods, and all of it on a few scenes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bench import record
from bench.pages import documents
from bench.pages.markdown import NONE
from bench.quality import in_decoder, models, pictures, statistics, tables
from bench.quality.asked import Asked, questions
from bench.quality.methods import DEFAULT, DENSE, METHODS, SCORES, VARIANTS
from bench.quality.study import Accuracy, Specificity, main, study
from mi_pruner.demo.checkpoint import load_model
from mi_pruner.demo.model import TOKENS, DigitVLM
from mi_pruner.demo.questions import KINDS

pytest.importorskip("sklearn", reason="the scenes are made of scikit-learn's digits")
DEV: tuple[models.Trained, ...] = models.MODELS[:1]


@pytest.fixture(scope="module")
def model() -> DigitVLM:
    return load_model()[0]


@pytest.fixture(scope="module")
def asked(model: DigitVLM) -> list[Asked]:
    with torch.inference_mode():
        return list(questions(model, "dev", range(6)))


class TestStatistics:
    def test_a_constant_difference_has_no_width(self):
        right = np.ones((1, 3, 50, 5))
        assert statistics.differences(right, np.zeros_like(right)) == pytest.approx(1)

    @pytest.mark.slow
    def test_bands_hold_what_scenes_scatter(self):
        """The truth, 0.1, lies in the bands of 95 % in most of 40 experiments, all methods together."""
        held = 0
        for experiment in range(40):
            rng = np.random.default_rng(experiment)
            baseline = rng.random((4, 3, 200, 5)) < 0.5
            right = rng.random((4, 3, 200, 5)) < 0.6
            _, low, high = statistics.differences(right, baseline.astype(float), experiment).T
            held += bool(((low <= 0.1) & (high >= 0.1)).all())
        assert held >= 34

    def test_seeds_that_disagree_decide_nothing(self):
        right, baseline = np.ones((1, 3, 300, 5)), np.zeros((1, 3, 300, 5))
        right[0, 2], baseline[0, 2] = 0, 1
        assert statistics.differences(right, baseline)[0, 1] == pytest.approx(-1)

    def test_more_comparisons_make_wider_bands(self):
        rng = np.random.default_rng(0)
        right, baseline = (rng.random((30, 3, 100, 5)) < 0.5 for _ in range(2))
        one = statistics.differences(right[:1], baseline[:1])
        many = statistics.differences(right, baseline)
        assert many[0, 2] - many[0, 1] > 1.3 * (one[0, 2] - one[0, 1])

    def test_same_answers_same_band(self):
        """Pairing: two methods that answer alike differ by nothing, however hard the scenes."""
        right = (np.random.default_rng(0).random((1, 3, 100, 5)) < 0.5).astype(float)
        assert statistics.differences(right, right).tolist() == [[0, 0, 0]]

    def test_auc_by_hand(self):
        scores = np.array([[3.0, 1.0, 2.0, 1.0, 9.0]])
        positive = np.array([[True, True, False, False, False]])
        negative = np.array([[False, False, True, True, False]])
        assert statistics.auc(scores, positive, negative).tolist() == [(1 + 1 + 0 + 0.5) / 4]
        assert np.isnan(statistics.auc(scores, positive, np.zeros_like(negative))).all()


class TestQuestions:
    def test_one_of_each_kind_for_each_scene(self, asked: list[Asked]):
        scenes = torch.cat([group.scene for group in asked])
        assert scenes.bincount().tolist() == [len(KINDS)] * 6

    def test_what_is_needed(self, asked: list[Asked]):
        for group in asked:
            count = group.kind == KINDS.index("count")
            assert torch.equal(group.needed[count], group.owner[count] >= 0)
            assert (group.needed | ~group.named).all()
            left = group.kind == KINDS.index("left")
            assert (group.needed[left].sum(dim=1) > group.named[left].sum(dim=1)).all()


class TestInDecoder:
    @pytest.mark.parametrize("run", [in_decoder.fastv, in_decoder.fastv_first, in_decoder.pyramid, in_decoder.sparse])
    def test_all_tokens_answer_as_the_whole_model(self, run, asked: list[Asked]):
        for group in asked:
            done = run(group, TOKENS)
            assert torch.equal(done.answer, DENSE.run(group, TOKENS).answer)
            assert done.kept.shape == (len(group.visual), TOKENS)
            assert done.tokens_per_layer == TOKENS

    def test_tokens_per_layer(self, asked: list[Asked]):
        assert in_decoder.fastv(asked[0], 21).tokens_per_layer == (81 + 81 + 21) / 3
        assert in_decoder.fastv_first(asked[0], 21).tokens_per_layer == (81 + 21 + 21) / 3
        assert METHODS["llm-attention"].run(asked[0], 21).tokens_per_layer == 21 + 2 * 81 / 3
        assert in_decoder.pyramid(asked[0], 9).tokens_per_layer == (81 + 27 + 9) / 3

    def test_what_is_cut_has_no_say_any_more(self, asked: list[Asked]):
        """The last layer over K tokens equals the last layer over all with the others masked."""
        group = asked[0]
        done = in_decoder.fastv(group, 12)
        decoder, count = group.model.decoder, group.text.shape[1]
        x = torch.cat([group.visual, group.text], dim=1)
        place = torch.arange(x.shape[1]).expand(len(x), -1)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        for block in decoder[:2]:
            x = block(x, place, causal)
        seen = torch.zeros(len(x), x.shape[1], dtype=torch.bool).scatter_(1, done.kept, True)
        seen[:, -count:] = True
        mask = (causal & seen[:, None]) | torch.eye(x.shape[1], dtype=torch.bool)
        answer = group.model.head(decoder[2](x, place, mask[:, None])[:, -1]).argmax(dim=1)
        assert torch.equal(answer, done.answer)

    def test_layer_attention_is_a_share(self, asked: list[Asked]):
        share = in_decoder.layer_attention(asked[0])
        assert (share >= 0).all()
        assert (share.sum(dim=1) <= 1).all()


@pytest.fixture(scope="module")
def rows() -> tuple[list[Accuracy], list[Specificity]]:
    return study("quick", DEV, 8)


@pytest.mark.slow
class TestStudy:
    def test_a_row_for_every_method_and_budget(self, rows: tuple[list[Accuracy], list[Specificity]]):
        found = [(row.method, row.keep) for row in rows[0]]
        assert found == [("dense", 81), *((name, keep) for keep in (40, 20, 10, 6) for name in METHODS)]
        assert [row.scores for row in rows[1]] == list(SCORES)
        for row in rows[0]:
            assert row.questions == 8 * len(KINDS)
            assert row.ahead_low <= row.ahead <= row.ahead_high
            assert row.least <= row.accuracy <= row.most
        default = [row for row in rows[0] if row.method in (DEFAULT, "dense")]
        assert all(row.ahead == row.ahead_low == row.ahead_high == 0 for row in default)

    def test_the_text_singles_out_the_asked_digit(self, rows: tuple[list[Accuracy], list[Specificity]]):
        of = {row.scores: row.auc for row in rows[1]}
        assert of["mi"] > 0.9
        oracle = next(row for row in rows[0] if (row.method, row.keep) == ("oracle", 40))
        assert oracle.asked_kept > 0.99

    def test_keeps_the_patches_of_what_is_asked(self, rows: tuple[list[Accuracy], list[Specificity]]):
        of = {row.method: row for row in rows[0] if row.keep == 20}
        assert of[DEFAULT].asked_kept > 1.5 * of[DEFAULT].others_kept
        assert of[DEFAULT].accuracy > of["random"].accuracy

    def test_variants_answer(self):
        found = study("dev", DEV, 2)[0]
        assert {row.method for row in found} == {"dense", DEFAULT, *VARIANTS}

    def test_tables_of_all_groups(self, rows: tuple[list[Accuracy], list[Specificity]], tmp_path: Path):
        record.append(tmp_path / "a.csv", Accuracy, rows[0])
        read = record.read(tmp_path / "a.csv", Accuracy)
        blocks = tables.blocks(read, rows[1], [], [], [])
        assert "**mi_pruner**" in blocks["accuracy-aligned"]
        assert blocks["accuracy-large"] == NONE
        filled = documents.fill("<!-- quality:verdict -->old<!-- /quality:verdict -->", blocks, "quality")
        assert "old" not in filled
        assert blocks["verdict"] in filled

    def test_documents_show_the_kept_results(self):
        """docs/quality.md and README.md hold what bench.quality.report makes of the CSV files."""
        main_rows, *others = (
            record.read(record.RESULTS / f"quality-{part}-accuracy.csv", Accuracy)
            for part in ("test", "dev", "ideas", "null-word")
        )
        specificity = record.read(record.RESULTS / "quality-test-specificity.csv", Specificity)
        blocks = tables.blocks(main_rows, specificity, *others)
        for name in ("docs/quality.md", "README.md"):
            text = (record.ROOT / name).read_text(encoding="utf-8")
            assert documents.fill(text, blocks, "quality") == text

    def test_pictures(self, rows: tuple[list[Accuracy], list[Specificity]], tmp_path: Path):
        pytest.importorskip("matplotlib")
        varied = record.read(record.RESULTS / "quality-dev-accuracy.csv", Accuracy)
        drawn = pictures.draw(rows[0], varied, tmp_path)
        names = ("accuracy", "cost", "kinds", "sensitivity")
        assert [path.name for path in drawn] == [f"quality-{name}.svg" for name in names]
        assert all("<svg" in path.read_text(encoding="utf-8") for path in drawn)

    def test_a_method_that_keeps_fewer_is_told_apart(self, rows: tuple[list[Accuracy], list[Specificity]]):
        """DART selects 4 + 8 floor(K / 8) tokens."""
        assert "(4 kept)" in tables.accuracy(rows[0])
        assert not any((row.method, row.keep) == ("dart", 6) for row in tables._rivals(rows[0]))

    def test_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        main(["quick", "--scenes", "1", "--out", str(tmp_path)])
        printed = capsys.readouterr().out
        assert "aligned mi " in printed
        assert record.holds(tmp_path / "quality-quick-accuracy.csv", Accuracy)


class TestModels:
    def test_a_model_is_trained_after_the_one_that_it_begins_with(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(models, "ROOT", tmp_path)
        monkeypatch.setattr(models, "FOLDER", tmp_path / "build" / "quality")
        made = []
        monkeypatch.setattr(models, "make", lambda plan, path, *_: made.append(path.stem))
        models.ensure(tuple(model for model in models.MODELS if model.name == "aligned-1"), torch.device("cpu"))
        assert made == ["unaligned-1", "aligned-1"]

    def test_commands_are_distinct_and_groups_known(self):
        assert len({model.name for model in models.MODELS}) == len(models.MODELS)
        assert {model.group for model in models.MODELS} <= set(models.GROUPS)
