"""Which words a selection reads: the question, whatever chat template wrote it, and never the answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

from mi_pruner import MIPruner
from mi_pruner.integrations.chat_template import endings
from mi_pruner.integrations.instruction import Reader, special_ids
from mi_pruner.integrations.transformers import encode_inputs

from . import tiny_checkpoints, tiny_models
from .tiny_models import FAMILIES, batch, model, prune_inputs

pytestmark = pytest.mark.usefixtures("one_thread")

STRINGS = "{% for m in messages %}{{ m['role'] ~ ': ' + m['content'] }} {% endfor %}ASSISTANT:"
PRINTS = "{% for m in messages %}USER: {{ m['content'] }} {% endfor %}ASSISTANT:"  # a list as such
PARTS = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}{{ c['text'] }}{% endfor %} {% endfor %}"
    "ASSISTANT:"
)
SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system message') }}{% endif %}"


def reader(*ending_ids: list[int], ignored: set[int] = frozenset()) -> Reader:
    """Of ids whose text is `<20>` and so on."""
    words = SimpleNamespace(decode=lambda ids: " ".join(f"<{index}>" for index in ids))
    return Reader(set(ignored), words, tuple(words.decode(ids).replace(" ", "") for ids in ending_ids))


def read_words(processor, ids, **options):
    """The text that is read of a prompt (L,) without images."""
    nothing = torch.zeros(1, len(ids)).bool()
    told = Reader.of(model("llava"), processor, video=False)
    mask = told.instruction(torch.tensor([ids]), ~nothing, nothing, **options)
    return tiny_checkpoints.tokenizer().decode([index for index, is_read in zip(ids, mask[0], strict=True) if is_read])


class TestText:
    def test_instruction_leaves_out_special_tokens_and_what_opens_the_answer(self):
        ids = torch.tensor(
            [[0, 1, 7, 95, 95, 98, 20, 21, 5, 22, 30, 31], [1, 7, 95, 95, 98, 20, 30, 31, 5, 22, 33, 31]]
        )
        visual = ids == 95
        mask = reader([30, 31], ignored={0, 1, 5, 95, 98}).instruction(ids, ids != 0, visual)
        assert [ids[row][mask[row]].tolist() for row in (0, 1)] == [[20, 21, 22], [20]]

    @pytest.mark.parametrize(
        ("template", "ending"),
        [
            ("{% for m in messages %}USER: {{ m['content'] }} {% endfor %}ASSISTANT:", " ASSISTANT:"),
            ("{% for m in messages %}<u>{{ m['content'] }}<e>\n{% endfor %}<a>bot", "<e>\n<a>bot"),
            ("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | upper | escape }}\n{% endfor %}", "\n"),
        ],
    )
    def test_ending_is_what_the_template_puts_after_the_words(self, template, ending):
        words = tiny_checkpoints.tokenizer()
        words.chat_template = template
        assert endings(words, video=False)[0] == ending
        squeezed = "".join(ending.split())
        assert Reader.of(model("llava"), words, video=False).endings[:1] == (
            (squeezed,) if squeezed else ("[assistant]",)
        )

    def test_without_template_there_is_no_ending(self):
        words = tiny_checkpoints.tokenizer()
        words.chat_template = None
        assert Reader.of(model("llava"), words, video=False).endings == ()
        assert Reader.of(model("llava"), None, video=False).endings == ()

    @pytest.mark.parametrize("before", ["", "\n", "\n\n ", "</image>\n"])
    def test_white_space_around_the_words_is_not_read(self, before):
        words = tiny_checkpoints.tokenizer()
        words.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}Answer:"
        ids = words(f"<image>{before}what is the\nwoman wearing?\nAnswer:")["input_ids"]
        image = words.convert_tokens_to_ids("<image>")
        told = Reader.of(model("llava"), words, video=False)
        told.ignored.update(words("</image>", add_special_tokens=False)["input_ids"] if "<" in before else [])
        ids = torch.tensor([ids])
        mask = told.instruction(ids, ids >= 0, ids == image)
        assert words.decode(ids[mask]).strip() == "what is the\nwoman wearing?"

    def test_a_mask_is_without_special_tokens_and_ending_where_the_processor_is_known(self):
        ids = torch.tensor([[1, 95, 20, 5, 21, 22, 30, 31]])
        marked = torch.tensor([[0, 1, 0, 1, 1, 1, 1, 1]]).bool()
        mask = reader([30, 31], ignored={1, 5}).instruction(ids, ids > 0, ids == 95, marked=marked)
        assert ids[mask].tolist() == [21, 22]
        made = batch("llava", [1])
        marked = torch.zeros_like(made.inputs["input_ids"]).bool()
        marked[:, -4:] = True
        special = SimpleNamespace(all_special_ids=made.inputs["input_ids"][0, -2:].tolist(), added_tokens_decoder={})
        by_processor = prune_inputs(model("llava"), made.inputs, MIPruner(9), text_mask=marked, processor=special)
        marked[:, -2:] = False
        by_mask = prune_inputs(model("llava"), made.inputs, MIPruner(9), text_mask=marked, processor=None)
        assert torch.equal(by_processor.images[0].scores, by_mask.images[0].scores)

    def test_no_instruction(self):
        made = batch("llava", [1, 1])
        ids = made.inputs["input_ids"]
        ids[1, -10:] = tiny_models.EOS
        with pytest.raises(
            ValueError, match=r"text_mask: no instruction after the last image of sample 1: .*text_mask"
        ):
            prune_inputs(model("llava"), made.inputs, MIPruner())

    def test_question_before_the_image(self):
        made = batch("llava", [1])
        ids = made.inputs["input_ids"]
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, 1:3] = True
        pruner = MIPruner(keep=5)
        pruned = prune_inputs(model("llava"), made.inputs, pruner, text_mask=mask)
        encoded = encode_inputs(model("llava"), made.inputs)["mm_encoder_outputs"]["image"].pooler_output
        text = model("llava").get_input_embeddings()(ids[:, 1:3])
        assert pruned.images[0].rows.tolist() == pruner(encoded[0][None], text)[1][0].tolist()

    @pytest.mark.parametrize("family", ["llava_next", "qwen3_vl"])
    def test_own_tokens_do_not_depend_on_the_question(self, family):
        made = batch(family, [1])
        other = {**made.inputs, "input_ids": made.inputs["input_ids"].clone()}
        other["input_ids"][:, -5:] += 1
        first, second = (
            prune_inputs(model(family), inputs, MIPruner(keep=6), text="image").images[0]
            for inputs in (made.inputs, other)
        )
        assert first.order.tolist() == second.order.tolist()
        encoded = encode_inputs(model(family), made.inputs)["mm_encoder_outputs"]["image"].pooler_output[0]
        newline = getattr(model(family).base_model, "image_newline", None)
        mask = torch.ones(len(encoded)).bool() if newline is None else (encoded != newline).any(-1)
        own = encoded[mask][None]
        assert torch.equal(mask.nonzero()[:, 0][MIPruner(keep=6)(own, own)[1][0]], first.order.sort().values)


class TestAnswers:
    """What stands after the question in training, or where the likelihoods of answers are compared."""

    @staticmethod
    def answered(inputs, words, *, labelled):
        """The inputs of a batch whose prompts go on with `words` (T,), the last two of which close the answer."""
        rows, count = len(inputs["input_ids"]), len(words)
        longer = {name: inputs[name] for name in inputs}
        longer["input_ids"] = torch.cat([inputs["input_ids"], words.expand(rows, -1)], dim=1)
        for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                longer[name] = torch.nn.functional.pad(inputs[name], (0, count), value=int(name == "attention_mask"))
        if labelled:
            longer["labels"] = torch.full_like(longer["input_ids"], -100)
            longer["labels"][:, -count:-2] = words[:-2]
        return longer

    @staticmethod
    def words(length, seed):
        answer = torch.randint(40, 90, (length,), generator=torch.Generator().manual_seed(seed))
        return torch.cat([answer, torch.tensor([tiny_models.EOS, 33])])

    @pytest.mark.parametrize("family", FAMILIES)
    def test_labels_tell_the_answer_from_the_question(self, family):
        alone = batch(family, [2, 1]).inputs
        expected = prune_inputs(model(family), alone, MIPruner(keep=6))
        for length, seed in ((1, 0), (4, 1), (9, 2)):
            inputs = self.answered(alone, self.words(length, seed), labelled=True)
            pruned = prune_inputs(model(family), inputs, MIPruner(keep=6))
            for image, other in zip(pruned.images, expected.images, strict=True):
                assert image.order.tolist() == other.order.tolist()
            assert torch.equal(pruned["labels"][:, -length - 2 :], inputs["labels"][:, -length - 2 :])
            assert (pruned["labels"][:, : -length - 2] == -100).all()

    @pytest.mark.parametrize("family", FAMILIES)
    def test_so_does_the_end_of_the_template(self, family, monkeypatch):
        """Without labels, as where the log-probabilities of several answers are compared."""
        told = reader([30, 31, 32], ignored=special_ids(model(family), None))
        monkeypatch.setattr("mi_pruner.integrations.transformers.Reader.of", lambda *about: told)
        asked = self.answered(batch(family, [2, 1]).inputs, torch.tensor([30, 31, 32]), labelled=False)
        expected = prune_inputs(model(family), asked, MIPruner(keep=6))
        for length, seed in ((1, 0), (4, 1), (9, 2)):
            inputs = self.answered(asked, self.words(length, seed), labelled=False)
            pruned = prune_inputs(model(family), inputs, MIPruner(keep=6))
            for image, other in zip(pruned.images, expected.images, strict=True):
                assert image.order.tolist() == other.order.tolist()

    def test_what_opens_each_answer_and_what_closes_the_last_is_left_out(self):
        ids = torch.tensor([[1, 95, 20, 21, 30, 31, 40, 41, 5, 22, 23, 30, 31, 42, 5, 33], [0] * 14 + [95, 20]])
        labels = torch.full_like(ids, -100)
        labels[0, [6, 7, 13]] = ids[0, [6, 7, 13]]
        mask = reader([30, 31], ignored={0, 1, 5}).instruction(ids, ids > 0, ids == 95, labels)
        assert [ids[row][mask[row]].tolist() for row in (0, 1)] == [[20, 21, 22, 23], [20]]

    def test_a_row_without_labels_is_read_up_to_its_answer_as_well(self):
        """As in evaluation, or where the answer was cut off."""
        ids = torch.tensor([[95, 20, 30, 31, 40, 41], [95, 21, 30, 31, 42, 43]])
        labels = torch.full_like(ids, -100)
        labels[1, 4:] = ids[1, 4:]
        mask = reader([30, 31]).instruction(ids, ids > 0, ids == 95, labels)
        assert [ids[row][mask[row]].tolist() for row in (0, 1)] == [[20], [21]]

    def test_an_answer_of_which_only_the_end_is_labelled(self):
        ids = torch.tensor([[95, 20, 30, 31, 40, 41, 5]])
        labels = torch.full_like(ids, -100)
        labels[0, -1] = 5
        assert ids[reader([30, 31]).instruction(ids, ids > 0, ids == 95, labels)].tolist() == [20]

    def test_an_ending_of_characters_that_are_several_tokens(self):
        """As bytes, each a part of a character alone."""
        words = tiny_checkpoints.tokenizer()
        words.chat_template = "{% for m in messages %}{{ m['content'] }}\n回答：{% endfor %}"
        prompt = "照片里有什么？\n回答："
        for answer in ("", "杯子", "a cup"):
            assert read_words(words, words(prompt + answer)["input_ids"]) == "照片里有什么？"

    def test_characters_that_are_several_tokens_and_spoil_those_before(self):
        """As with Llama's byte tokens: of a run of them that ends within a character nothing can be read."""
        text = "杯？\n回答：杯子".encode()

        def decode(ids):
            try:
                return bytes(ids).decode()
            except UnicodeDecodeError:
                return "\ufffd" * len(ids)

        told = Reader(set(), SimpleNamespace(decode=decode), ("回答：",))
        for length in (len(text), len(text) - 3):
            ids = torch.tensor([list(text[:length])])
            mask = told.instruction(ids, ids >= 0, ids < 0)
            assert bytes(ids[mask].tolist()).decode() == "杯？"

    def test_a_conversation_that_ends_in_a_question_keeps_its_words(self):
        """Only what stands after the last ending is an answer; text that opens another is none."""
        ids = torch.tensor([[95, 20, 30, 31, 40, 5, 22, 30, 31]])
        for told, expected in (
            (reader([30, 31]), [20, 30, 31, 40, 5, 22]),
            (reader(), [20, 30, 31, 40, 5, 22, 30, 31]),
            (reader([30, 31, 40]), [20]),
            (reader([30, 31, 44, 45], [30, 31]), [20, 30, 31, 40, 5, 22]),
            (reader([29, 30, 31]), [20, 30, 31, 40, 5, 22, 30, 31]),
        ):
            assert ids[told.instruction(ids, ids > 0, ids == 95)].tolist() == expected

    def test_an_ending_of_few_characters_may_stand_in_a_question(self):
        words = tiny_checkpoints.tokenizer()
        words.chat_template = "{% for m in messages %}Q: {{ m['content'] }}\nA:{% endfor %}"
        ids = words("what is it?\nA: a cup\nB: a rocket\nA:")["input_ids"]
        assert read_words(words, ids) == "what is it?\nA: a cup\nB: a rocket"

    @pytest.mark.parametrize("question", ["where is the rocket?", "where is the rocket", "where is the rocket?\n\n"])
    def test_an_ending_that_is_tokenised_otherwise_behind_a_question(self, question):
        """`?` and a line's end are one token in the vocabularies of Qwen and of Llama 3."""
        words = tiny_checkpoints.tokenizer()
        words.chat_template = "{% for m in messages %}{{ m['content'] }}\nAssistant: {% endfor %}"
        pieces = [question[:-1], question[-1] + "\n", "Assist", "ant:", " a", " cup"]
        endings = Reader.of(model("llava"), words, video=False).endings
        told = Reader(set(), SimpleNamespace(decode=lambda ids: "".join(pieces[i] for i in ids)), endings)
        ids = torch.arange(6)[None]
        mask = told.instruction(ids, ids >= 0, ids < 0)
        assert mask[0].tolist() == [True, bool(pieces[1].strip()), False, False, False, False]

    def test_a_generation_prompt_that_says_more_than_an_answer_begins_with(self):
        thinks = tiny_checkpoints.TEMPLATE.replace("<turn>assistant\n", "<turn>assistant\n(no thoughts)\n\n")
        words = tiny_checkpoints.tokenizer()
        words.chat_template = thinks
        opened = ["<end>\n<turn>assistant\n(no thoughts)\n\n", "<end>\n<turn>assistant\n"]
        assert endings(words, video=False) == opened
        asked = [{"role": "user", "content": [{"type": "text", "text": "where is the rocket?"}]}]
        answer = [{"role": "assistant", "content": [{"type": "text", "text": "a cup of coffee"}]}]
        prompts = (
            words.apply_chat_template(asked, add_generation_prompt=True, tokenize=False),
            words.apply_chat_template(asked, add_generation_prompt=True, tokenize=False) + "a cup",
            words.apply_chat_template([*asked, *answer], tokenize=False),
        )
        for prompt in prompts:
            assert read_words(words, words(prompt)["input_ids"]) == "user\nwhere is the rocket?"

    def test_labels_everywhere(self):
        made = batch("llava", [1, 1])
        inputs = {**made.inputs, "labels": made.inputs["input_ids"].clone()}
        with pytest.raises(ValueError, match=r"labels: expected -100 on the question of sample 0, got .*text_mask"):
            prune_inputs(model("llava"), inputs, MIPruner())
        mask = torch.zeros_like(inputs["labels"]).bool()
        mask[:, -3:] = True
        assert len(prune_inputs(model("llava"), inputs, MIPruner(), text_mask=mask).images) == 2
        assert len(prune_inputs(model("llava"), inputs, MIPruner(), text="image").images) == 2

    @pytest.mark.parametrize("labels", [torch.zeros(2), [[1]], torch.zeros(1, 3)])
    def test_labels_of_another_form(self, labels):
        inputs = {**batch("llava", [1]).inputs, "labels": labels}
        with pytest.raises(ValueError, match=r"inputs: expected labels \(1, 48\), as input_ids, as a tensor, got"):
            prune_inputs(model("llava"), inputs, MIPruner())


class TestTemplates:
    @pytest.mark.parametrize("form", [STRINGS, PRINTS, PARTS])
    @pytest.mark.parametrize("system", ["", SYSTEM])
    @pytest.mark.parametrize("as_tokenizer", [False, True])
    def test_every_form_of_a_turn_is_understood(self, form, system, as_tokenizer):
        processor = tiny_checkpoints.processor("llava")
        if as_tokenizer:
            processor = processor.tokenizer
        processor.chat_template = system + form
        assert endings(processor, video=False)[0] == " ASSISTANT:"

    def test_the_template_may_be_another_for_videos(self):
        processor = tiny_checkpoints.processor("llava")
        for_videos = "{% if messages[0]['content'][0]['type'] == 'video' %}{% set name = 'BOT' %}{% endif %}"
        processor.chat_template = for_videos + PARTS.replace("ASSISTANT", "{{ name | default('ASSISTANT') }}")
        assert endings(processor, video=False)[0] == " ASSISTANT:"
        assert endings(processor, video=True)[0] == " BOT:"

    @pytest.mark.parametrize(
        ("template", "what"),
        [
            ("{{ raise_exception('ask nicely') }}", r"takes them, got one that fails \(ask nicely\)"),
            ("no words", "shows them as they are, got one that changes or drops them"),
            ("{% for m in messages %}{{ m['content'] | reverse }}{% endfor %}", "shows them as they are"),
        ],
    )
    def test_one_that_is_of_no_use(self, template, what):
        processor = tiny_checkpoints.processor("llava")
        processor.chat_template = template
        with pytest.raises(ValueError, match=rf"processor: expected a chat template .*{what}.*: mark .* text_mask"):
            endings(processor, video=False)


class TestProcessors:
    @pytest.mark.parametrize(
        ("processor", "got"),
        [
            ("llava-hf/llava-1.5-7b-hf", "'llava-hf/llava-1.5-7b-hf'"),
            (tiny_checkpoints.processor("llava").image_processor, "CLIPImageProcessorPil"),
            (7, "int"),
        ],
    )
    def test_what_has_no_tokenizer_is_refused(self, processor, got):
        with pytest.raises(
            TypeError, match=f"processor: expected the model's processor .*, got {got}, .*AutoProcessor"
        ):
            prune_inputs(model("llava"), batch("llava", [1]).inputs, MIPruner(), processor=processor)
