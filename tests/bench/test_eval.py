"""Evaluation: what lm-eval gets from our engines is what it gets from transformers, reuse changes nothing, runs go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from exported import LINES, VOCAB, talking_checkpoint
from fake_engine import VOCAB as FAKE_VOCAB
from fake_engine import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_tensors, tiny, transformers_model

from phi3mobile.bench.evaluate.answers import Answers
from phi3mobile.bench.evaluate.forwards import Reader
from phi3mobile.bench.evaluate.model import open_model
from phi3mobile.bench.evaluate.results import append_result, holds_results, quality_table, read_results
from phi3mobile.bench.evaluate.tasks import wanted
from phi3mobile.cli import main
from phi3mobile.errors import InputError

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from lm_eval.api.instance import Instance

from phi3mobile.bench.evaluate.harness import EngineLM
from phi3mobile.bench.evaluate.tasks import Library

SHOTS = "\n".join(LINES)
PAIRS = [
    *((f"{SHOTS}\n{line}", f" {word}") for line in LINES for word in ("cat", "sat on the mat", "é🙂", "46")),
    ("", "the cat sat"),
    ("ends with spaces  ", "hello"),
    (SHOTS * 2, " again"),
    ("a", "b"),
    ("a", "b"),
    ("a ", " b c d"),
]


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, one, index, ("test", index, 1)) for index, one in enumerate(arguments)]


@pytest.fixture
def open_lm(tmp_path):
    def get(path: Path, truncate: bool = False, name: str = "answers.sqlite", **options) -> EngineLM:
        model = open_model(path, **options)
        return EngineLM(model, Answers(tmp_path / name, model.identity), truncate=truncate)

    return get


def harness_lm(folder: Path, config, max_length: int):
    """lm-eval's own model class over transformers, with the same weights and tokenizer."""
    pytest.importorskip("accelerate", reason="lm-eval's HF model needs it: extra `train`")
    import transformers
    from lm_eval.models.huggingface import HFLM

    hf = transformers_model(config, random_tensors(config))
    hf.generation_config.pad_token_id, hf.generation_config.eos_token_id = 0, [2, 0]
    told = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **told)
    return HFLM(pretrained=hf, tokenizer=tokenizer, max_length=max_length, batch_size=1)


# The same numbers as lm-eval's own model


@pytest.mark.parametrize("name", ["tiny-gqa", "tiny-window", "tiny-longrope"])
def test_loglikelihoods_are_those_of_lm_evals_hf_model(name, tmp_path, open_lm):
    folder = talking_checkpoint(tmp_path / name, name)
    ours = open_lm(folder, truncate=True)
    theirs = harness_lm(folder, tiny(name, vocab_size=VOCAB), ours.max_length)
    asked = requests("loglikelihood", PAIRS)
    for (value, greedy), (expected, likeliest) in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
        assert value == pytest.approx(expected, abs=1e-3) and greedy == likeliest
    assert ours.reader.run_tokens < 0.6 * sum(len(ours.tok_encode("".join(pair))) for pair in PAIRS)
    texts = requests("loglikelihood_rolling", [(LINES[0],), (SHOTS,), ("x",), (SHOTS * 3,)])
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), abs=1e-3)


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
}


@pytest.mark.parametrize("how", ["post-processor", "within a sequence", "add_bos_token", "add_bos_token false", "no bos named"])
def test_the_bos_that_a_tokenizer_adds_is_read_as_by_lm_evals_hf_model(how, tmp_path, open_lm):
    """Once where the text starts with it, as a chat's prompt does."""
    folder = talking_checkpoint(tmp_path / "model", "tiny-gqa")
    tokenizer, config = (json.loads((folder / name).read_text()) for name in ("tokenizer.json", "tokenizer_config.json"))
    if how != "add_bos_token":
        byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
        several = {"type": "Sequence", "processors": [byte_level, TEMPLATE]}
        tokenizer["post_processor"] = several if how == "within a sequence" else TEMPLATE
    if how.startswith("add_bos_token"):
        config["add_bos_token"] = how == "add_bos_token"
    if how == "no bos named":
        config["bos_token"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    ours = open_lm(folder, truncate=True)
    theirs = harness_lm(folder, tiny("tiny-gqa", vocab_size=VOCAB), ours.max_length)
    assert ours.prefix_token_id == theirs.prefix_token_id == (2 if how == "no bos named" else 1)
    for text in ("the cat", "<|im_start|>user\nhello<|im_end|>\n", " <|im_start|>", ""):
        assert ours.tok_encode(text) == theirs.tok_encode(text)
    assert (ours.tok_encode("the cat")[0] == 1) == (how != "add_bos_token false")
    pairs = [*PAIRS[::5], ("<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n", "sat")]
    asked = requests("loglikelihood", pairs)
    for (value, greedy), (expected, likeliest) in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked), strict=True):
        assert value == pytest.approx(expected, abs=1e-3) and greedy == likeliest
    texts = requests("loglikelihood_rolling", [(LINES[0],), (SHOTS * 3,)])
    assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs.loglikelihood_rolling(texts), abs=1e-3)
    free = requests("generate_until", [(line, {"until": [], "max_gen_toks": 8}) for line in LINES[:2]])
    assert ours.generate_until(free) == theirs.generate_until(free)


def test_greedy_answers_are_those_of_lm_evals_hf_model(tiny_checkpoint_folder, open_lm):
    ours = open_lm(tiny_checkpoint_folder)
    theirs = harness_lm(tiny_checkpoint_folder, tiny("tiny-gqa", vocab_size=VOCAB), ours.max_length)
    free = requests("generate_until", [(f"{SHOTS}\n{line}", {"until": [], "max_gen_toks": 24}) for line in LINES])
    texts = ours.generate_until(free)
    assert texts == theirs.generate_until(free) and len(set(texts)) > 1
    # Stop strings that do occur, in the middle of tokens too.
    stops = [[stop for stop in (text[5:7], text[2:3]) if stop] for text in texts]
    cut = requests(
        "generate_until", [(one.args[0], {"until": stop, "max_gen_toks": 24}) for one, stop in zip(free, stops, strict=True)]
    )
    shorter = ours.generate_until(cut)
    assert shorter == theirs.generate_until(cut)
    assert all(len(short) <= 5 and text.startswith(short) for short, text in zip(shorter, texts, strict=True))


def test_a_shipped_task_scores_as_with_lm_evals_hf_model(tiny_checkpoint_folder, open_lm):
    ours = open_lm(tiny_checkpoint_folder, truncate=True)
    theirs = harness_lm(tiny_checkpoint_folder, tiny("tiny-gqa", vocab_size=VOCAB), ours.max_length)
    (one,) = wanted(["next_sentence"])
    library = Library(None, [one.task])
    found = library.run(ours, one, limit=12)
    assert found == library.run(theirs, one, limit=12)
    assert found["n"] == 12 and found["shots"] == 0 and set(found["metrics"]) == {"acc,none", "acc_norm,none"}


def test_the_chat_format_is_the_templates(tiny_checkpoint_folder, open_lm):
    lm = open_lm(tiny_checkpoint_folder)
    theirs = harness_lm(tiny_checkpoint_folder, tiny("tiny-gqa", vocab_size=VOCAB), lm.max_length)
    history = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "So?"}]
    assert lm.apply_chat_template(history) == theirs.apply_chat_template(history)
    begun = [*history, {"role": "assistant", "content": "The answer is"}]
    prompt = lm.apply_chat_template(begun, add_generation_prompt=False)
    assert prompt == theirs.apply_chat_template(begun, add_generation_prompt=False)
    assert prompt.endswith("assistant\nThe answer is")


# Engines


@pytest.mark.parametrize("recipe", ["android-cpu", "ios-gpu"])
def test_exported_programs_answer_like_the_checkpoint_nearly(recipe, bundle_of, tiny_checkpoint_folder, open_lm):
    if recipe == "ios-gpu":
        pytest.importorskip("coremltools", reason="needs the extra `coreml`")
    float_lm, packed = open_lm(tiny_checkpoint_folder), open_lm(bundle_of("tiny-gqa", recipe))
    asked = requests("loglikelihood", PAIRS[:8])
    exact, ours = (lm.loglikelihood(asked) for lm in (float_lm, packed))
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in exact], abs=6) and exact != ours
    text = requests("generate_until", [(LINES[0], {"until": [], "max_gen_toks": 4})])
    assert isinstance(packed.generate_until(text)[0], str)


# Reuse of the KV cache


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_scores_do_not_depend_on_what_was_asked_before(data):
    original = data.draw(st.sampled_from([None, 12]))
    back = data.draw(st.sampled_from([None, 5]))
    engine = FakeEngine(max_context=40, original_context=original, back=back)
    reader = Reader(engine)
    trunk = data.draw(st.lists(st.integers(0, FAKE_VOCAB - 1), min_size=1, max_size=20))
    for _ in range(6):
        kept = data.draw(st.integers(0, len(trunk)))
        tail = data.draw(st.lists(st.integers(0, FAKE_VOCAB - 1), min_size=kept == 0, max_size=15))
        tokens = trunk[:kept] + tail
        first = data.draw(st.integers(0, len(tokens) - 1))
        alone = Reader(FakeEngine(max_context=40, original_context=original, back=back))
        assert reader.score(tokens, first, {1, 2}) == alone.score(tokens, first, {1, 2})


def test_a_shared_prefix_is_run_once():
    engine = FakeEngine(max_context=90, max_chunk=16)
    reader = Reader(engine)
    prefix = [3, 4, 5, 6] * 15
    for tail in range(5):
        reader.score([*prefix, tail, 7], len(prefix), {1})
    assert reader.run_tokens == len(prefix) + 2 + 4 * 2 and reader.reused_tokens == 4 * len(prefix)


# Answers are kept


def test_a_run_that_was_cut_off_goes_on(tiny_checkpoint_folder, open_lm):
    asked = requests("loglikelihood", PAIRS)
    first = open_lm(tiny_checkpoint_folder)

    def stop(stage: str, done: int, total: int) -> None:
        if done > len(asked) // 2:
            raise KeyboardInterrupt

    first.progress = stop
    with pytest.raises(KeyboardInterrupt):
        first.loglikelihood(asked)
    first.answers.close()
    second, fresh = open_lm(tiny_checkpoint_folder), open_lm(tiny_checkpoint_folder, name="other.sqlite")
    resumed, whole = ([value for value, _ in lm.loglikelihood(asked)] for lm in (second, fresh))
    assert resumed == pytest.approx(whole, abs=1e-4)
    assert 0 < second.answers.fresh < fresh.answers.fresh
    third = open_lm(tiny_checkpoint_folder)
    assert third.loglikelihood(asked) == second.loglikelihood(asked) and third.answers.fresh == third.reader.run_tokens == 0


def test_another_model_has_other_answers(tmp_path):
    first, second = (Answers(tmp_path / "a.sqlite", name) for name in ("one", "two"))
    first.put(["q", 1], [0.5, True])
    assert first.get(["q", 1]) == [0.5, True] and second.get(["q", 1]) is None


def test_sampled_repetitions_differ_and_are_kept(tiny_checkpoint_folder, open_lm):
    lm = open_lm(tiny_checkpoint_folder)
    options = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 12, "until": []}
    asked = requests("generate_until", [(LINES[0], options)] * 3)
    texts = lm.generate_until(asked)
    assert len(set(texts)) == 3 and open_lm(tiny_checkpoint_folder).generate_until(asked) == texts


# The verb


@pytest.fixture
def own_task(tmp_path) -> Path:
    """A task as a user writes it: yaml, and jsonl beside it."""
    folder = tmp_path / "tasks" / "deeper"
    folder.mkdir(parents=True)
    choices = [" cat", " sea", " hills"]
    entries = [{"question": line, "choices": choices, "answer": index % 3} for index, line in enumerate(LINES)]
    (folder / "mine.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    (folder / "mine.yaml").write_text("""
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: mine.jsonl}}
test_split: test
output_type: multiple_choice
num_fewshot: 0
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""")
    return tmp_path / "tasks"


def test_eval_of_shipped_and_own_tasks_and_their_table(tiny_bundle, tiny_checkpoint_folder, own_task, tmp_path, capsys):
    out, answers = tmp_path / "results.jsonl", tmp_path / "answers.sqlite"
    shared = ["--limit", "4", "--truncate", "--out", str(out), "--answers", str(answers)]
    assert main(["eval", str(tiny_bundle), "--tasks", "sums,mine", "--tasks-folder", str(own_task), *shared]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [one["task"] for one in said["results"]] == ["sums", "mine"] and [one["n"] for one in said["results"]] == [4, 4]
    assert said["results"][0]["shots"] == 5 and said["results"][1]["metric"] == "acc,none"
    mine = ["--tasks", "mine", "--tasks-folder", str(own_task), *shared]
    assert main(["eval", str(tiny_checkpoint_folder), "--chat", *mine]) == 0
    capsys.readouterr()
    lines = read_results(out)
    assert len(lines) == 3 and lines[2]["model"]["recipe"] == "float32" and lines[2]["chat"] and holds_results(out)
    assert main(["eval", str(tiny_bundle), *mine]) == 0
    assert read_results(out)[3]["answered_before"] and read_results(out)[3]["score"] == lines[1]["score"]
    capsys.readouterr()
    for name in ("report.md", "report.html"):
        assert main(["report", str(out), "-o", str(tmp_path / name)]) == 0
        assert "68.8" in (tmp_path / name).read_text() and "Quality" in (tmp_path / name).read_text()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["results"] == 4


def line_of(task: str, score: float, metric: str = "acc,none", model: str = "phi", **more) -> dict:
    return {
        "kind": "quality",
        "format": 1,
        "task": task,
        "metric": metric,
        "score": score,
        "stderr": 0.01,
        "n": 100,
        "metrics": {metric: score},
        "model": {"hash": model, "name": model, "recipe": "host"},
        **more,
    }


def test_the_table_has_the_papers_numbers_and_stays_empty_where_nothing_ran():
    table = quality_table(
        [
            line_of("mmlu", 0.5, shots=5),
            line_of("mmlu", 0.612, shots=5),
            line_of("own", 0.25, model="b"),
            line_of("mt_bench", 7.5, "score", unrated=2),
        ]
    )
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows["MMLU, 5-shot"] == ["68.8", "61.2 ± 1 (acc, n 100, 5-shot)", ""]
    assert rows["GSM8K, chain of thought, 8-shot"] == ["82.5", "", ""] and rows["HellaSwag, 5-shot"][0] == "76.7"
    assert rows["ARC-C, 10-shot"][0] == "84.9"
    assert rows["MT-bench"] == ["8.38", "7.50 ± 0.01 (score, n 100, 2 unrated)", ""]
    assert rows["own"] == ["", "", "25.0 ± 1 (acc, n 100)"]


def test_the_papers_tasks_have_its_shots():
    by_name = {one.name: one for one in wanted(["report"])}
    assert [(name, one.task, one.shots) for name, one in by_name.items()] == [
        ("mmlu", "mmlu", 5),
        ("hellaswag", "hellaswag", 5),
        ("gsm8k", "gsm8k_cot", 8),
        ("arc_challenge", "arc_challenge", 10),
        ("humaneval", "humaneval", 0),
    ]
    assert wanted(["mmlu"], shots=2)[0].shots == 2
    assert [one.name for one in wanted(["local"])] == ["next_sentence", "sums", "words"]


# Bad input


def refused(capsys, *arguments) -> str:
    assert main(["eval", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    return captured.err


def test_bad_arguments_are_one_line(tiny_bundle, tmp_path, capsys):
    (tmp_path / "not.yaml").write_text("task: [unclosed")
    cases = {
        "--limit 0": (tiny_bundle, "--limit", "0"),
        "neither a bundle nor": (tmp_path,),
        "--tasks is empty": (tiny_bundle, "--tasks", ","),
        "is not a folder": (tiny_bundle, "--tasks-folder", tmp_path / "none"),
        "is a bundle and has its own": (tiny_bundle, "--context", "64"),
        "--shots -1": (tiny_bundle, "--shots", "-1"),
        "goes with --tasks mt_bench": (tiny_bundle, "--judge-url", "x"),
        "needs --questions": (tiny_bundle, "--tasks", "mt_bench"),
    }
    for expected, arguments in cases.items():
        assert expected in refused(capsys, *arguments), expected


@pytest.mark.slow  # reads all of the harness's task files
def test_an_unknown_task_is_refused_with_names_near_it(tiny_checkpoint_folder, capsys):
    assert "near are hellaswag" in refused(capsys, tiny_checkpoint_folder, "--tasks", "helaswag")


def test_a_prompt_that_does_not_fit_is_refused_before_anything_runs(tiny_checkpoint_folder, capsys, tmp_path):
    error = refused(capsys, tiny_checkpoint_folder, "--tasks", "words", "--context", "64", "--answers", tmp_path / "a")
    assert "fit the context of 64" in error and "--truncate" in error and "--shots" in error


def test_data_out_of_reach_says_what_to_do(tiny_checkpoint_folder, own_task, capsys, monkeypatch):
    import datasets

    def offline(*_, **__):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    error = refused(capsys, tiny_checkpoint_folder, "--tasks", "mine", "--tasks-folder", own_task)
    assert "can't be reached" in error and "--tasks-folder" in error


def test_unusable_task_files_are_refused(tiny_checkpoint_folder, own_task, capsys):
    task = own_task / "deeper" / "mine.yaml"
    text = task.read_text()
    for wrong in (
        text.replace("mine.jsonl", "gone.jsonl"),
        text.replace("multiple_choice", "guess"),
        text.replace("metric: acc,", "metric: nonsense,"),
        text.replace("{{question}}", "{{query.x}}"),
    ):
        task.write_text(wrong)
        assert "mine" in refused(capsys, tiny_checkpoint_folder, "--tasks", "mine", "--tasks-folder", own_task, "--truncate")


def test_foreign_generation_options_are_refused(tiny_checkpoint_folder, open_lm):
    lm = open_lm(tiny_checkpoint_folder)
    with pytest.raises(InputError, match="num_beams"):
        lm.generate_until(requests("generate_until", [("a", {"num_beams": 4})]))
    with pytest.raises(InputError, match="an answer of 100000 tokens"):
        lm.generate_until(requests("generate_until", [("a", {"max_gen_toks": 100_000})]))


def test_results_are_added_whole_and_foreign_files_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    for score in (0.1, 0.2):
        append_result(path, line_of("mmlu", score))
    assert [line["score"] for line in read_results(path)] == [0.1, 0.2] and not list(tmp_path.glob(".*"))
    for text in ('{"kind": "head", "format": 1}\n', "[1]\n", "nonsense\n", json.dumps(line_of("x", 1) | {"n": "many"}) + "\n"):
        path.write_text(text)
        with pytest.raises(InputError, match=r"r\.jsonl"):
            append_result(path, line_of("mmlu", 1.0))
        assert path.read_text() == text
    with pytest.raises(InputError, match="can't hold answers"):
        Answers(path / "inside" / "a.sqlite", "x")


def test_a_model_without_a_chat_template_is_evaluated_as_text_only(tiny_checkpoint_folder, tmp_path, open_lm):
    folder = shutil.copytree(tiny_checkpoint_folder, tmp_path / "base")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    del told["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    lm = open_lm(folder)
    assert lm.loglikelihood(requests("loglikelihood", [("", "cat")]))[0][0] < 0
    with pytest.raises(InputError, match="no chat template"):
        lm.apply_chat_template([{"role": "user", "content": "x"}])
