"""What is found and what is not: by words alone and with the embedder, in small libraries and in larger ones."""

import re
from itertools import groupby

import pytest
from documents import word_paragraph, word_table, write_docx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phi3mobile.bench.collections import (
    COLLECTIONS,
    TOGETHER,
    Remembering,
    calibrate,
    measure_collections,
    open_collections,
    read_questions,
)
from phi3mobile.cli import main
from phi3mobile.errors import InputError
from phi3mobile.retrieval import Library, index_documents, open_library
from phi3mobile.retrieval import relevance as numbers
from phi3mobile.retrieval.embed import Embedder, embedder_folder, read_vocab
from phi3mobile.retrieval.terms import MOST, beginning, language_of, terms
from phi3mobile.verbs.answering import look_up


class Torch:
    def __init__(self, model):
        self._model = model

    def forward(self, tokens, position):
        import torch

        return self._model(torch.from_numpy(tokens)[None], torch.tensor([position]))[0].detach().numpy()


@pytest.fixture(scope="module")
def minilm():
    """The embedder of libraries, not exported."""
    from phi3mobile.export.embedder import load_minilm

    try:
        folder = embedder_folder()
    except InputError as error:
        pytest.skip(str(error))
    return Remembering(Embedder(Torch(load_minilm(folder)), read_vocab(folder)))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Every collection and all together, by words only."""
    with open_collections(tmp_path_factory.mktemp("words"), None) as libraries:
        yield libraries


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory, minilm):
    with open_collections(tmp_path_factory.mktemp("hybrid"), minilm) as libraries:
        yield libraries


def library_of(path, texts, embedder=None):
    folder = path / "docs"
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    index_documents([folder], path / "l.db", embedder=embedder)
    return Library(path / "l.db", embedder)


LEASE = "The tenant pays a deposit. Pets are allowed, snakes are not. The serial number of the boiler is K-77."


def test_a_price_in_a_words_table_is_found(tmp_path, minilm):
    table = word_table(
        [word_paragraph("Pump"), word_paragraph("45 euros")], [word_paragraph("Hose"), word_paragraph("12 euros")]
    )
    write_docx(tmp_path / "prices.docx", table)
    assert main(["index", str(tmp_path / "prices.docx"), "-o", str(tmp_path / "l.db"), "--words-only"]) == 0
    (found,) = look_up(tmp_path / "l.db", "How much does the pump cost?")
    assert "Pump | 45 euros" in found.text
    index_documents([tmp_path / "prices.docx"], tmp_path / "v.db", embedder=minilm)
    with Library(tmp_path / "v.db", minilm) as library:
        assert "Pump | 45 euros" in library.search("How much does the pump cost?")[0].text
        assert library.search("When is the rent due?") == []


@pytest.mark.parametrize("question", ["snakes", "Snake", "deposit", "pets", "serial number", "Are pets allowed?"])
def test_a_word_is_found_in_one_passage_and_among_all(tmp_path, words, question):
    with library_of(tmp_path, {"lease.txt": LEASE}) as library:
        assert library.passages == 1 and library.search(question)[0].text == LEASE
    assert words[TOGETHER].passages > 93
    found = words[TOGETHER].search(question, k=1)[0]
    asked = [word for word in ("snake", "deposit", "pets", "serial number") if word in question.lower()]
    assert any(word in found.text.lower() for word in asked)


def test_what_is_not_about_it_is_not_cited(tmp_path, minilm):
    tyres = "Storage of tyres\n\nTyres are washed and their tread is measured. The next season's change is due in October."
    rent = "The monthly rent is 840 euros and is due on the third working day of each month."
    with library_of(tmp_path, {"tyres.txt": tyres}, minilm) as library:
        assert library.search("When is the rent due?") == []
        assert library.search("tyres") and library.search("When are the tyres changed?")
    with library_of(tmp_path, {"rent.txt": rent}, minilm) as library:
        assert [passage.source for passage in library.search("When is the rent due?")] == ["rent.txt"]


def test_most_of_the_words_are_enough(hybrid):
    assert "dripping tap" in hybrid["contracts"].search("Who pays for a dripping tap?")[0].text


def test_no_tyres_beside_the_rent(hybrid):
    sources = [passage.source for passage in hybrid["contracts"].search("When is the rent due?")]
    assert sources[0] == "rental.md" and "tyres.md" not in sources


FUNCTIONS = ["how", "much", "is", "the", "a", "of", "what", "when", "do", "you", "in"]


def stored_words(library):
    """Word -> the passages that the index finds by it."""
    texts = library._db.execute("SELECT text FROM passages").fetchall()
    return sorted({word for (text,) in texts for word in re.findall(r"[^\W_]{3,}", text)})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_word_of_a_passage_alone_finds_one_that_has_it(words, data):
    library = words[data.draw(st.sampled_from(sorted(words)))]
    word = data.draw(st.sampled_from(stored_words(library)))
    asked = " AND ".join(terms(word))
    having = {row[0] for row in library._db.execute("SELECT rowid FROM words WHERE words MATCH ?", (asked,))}
    assert having & {passage.id for passage in library.search(word, k=3)}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words_=st.lists(st.sampled_from(FUNCTIONS), min_size=1, max_size=5))
def test_function_words_alone_are_looked_up(words, words_):
    assert terms(" ".join(words_)) == [f'"{word}"' for word in dict.fromkeys(words_)]
    for passage in words["contracts"].search(" ".join(words_)):
        assert passage.score > 0


def test_function_words_say_nothing(words):
    for question in (
        "How long is the giraffe?",
        "Wie lang ist die Giraffe?",
        "¿Cuánto mide la jirafa?",
        "Какая столица у Франции?",
    ):
        assert words[TOGETHER].search(question) == [], question


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How much does the pump cost?", ["pump", "cost"]),
        ("Wo ist die Bremse?", ["bremse"]),
        ("Où est l'antivol ?", ["antivol"]),
        ("hat size", ["hat", "size"]),  # German's "hat"
        ("die casting", ["die", "casting"]),
        ("I don't know the tariff", ["know", "tariff"]),
        ("押金是多少？", ["押 金"]),
        ("玄米は何分で炊けますか？", ["玄 米", "分", "炊 け"]),
        ("도서관은 어디에 있습니까?", ["도 서", "서 관"]),
        ("?!", []),
    ],
)
def test_terms(question, expected):
    assert terms(question) == [f'"{term}"' for term in expected]


def test_a_pasted_text_is_looked_up_in_part(words):
    question = " ".join(f"pump{number}" for number in range(5000))
    assert len(terms(question)) == MOST
    assert words["manuals"].search(f"Pump? {question}", always=True)


def test_endings_of_other_languages(tmp_path):
    texts = {"de.txt": "Die Rechnung kommt im Mai.", "ru.txt": "Насос стоит в подвале."}
    with library_of(tmp_path, texts) as library:
        assert library.search("Wann kommen die Rechnungen?")[0].source == "de.txt"
        assert library.search("Где мой подвальный насос?")[0].source == "ru.txt"
        assert library.search("Wo ist der Brasilianer?") == []
    assert beginning('"rechnungen"') == '"rechnung" *' and beginning('"brasil"') == beginning('"12345678"') == ""


def test_a_shared_character_is_no_hit(words):
    library = words["languages"]
    assert "押金为两个月" in library.search("押金是多少？")[0].text
    assert library.search("金星在哪里？") == [] and library.search("猫头鹰") != library.search("养猫")
    assert library.search("蛇")[0].source == "zh-gongyu.md"


def test_languages_told_by_their_function_words():
    asked = ("When is it?", "pump", "Wann ist es?", "насос", "Где насос?", "Kdy je to?", "does it cost 45 €", "45 €")
    assert [language_of(question) for question in asked] == ["en", "", "de", "other", "ru", "cs", "en", ""]


def test_the_score_is_a_probability():
    assert 0 < numbers.relevance(0.0, -1.0) < numbers.relevance(0.5, None) < numbers.relevance(0.5, 0.5) < 1
    assert numbers.relevance(1.0, -1.0) == numbers.relevance(numbers.ENOUGH, -1.0) == numbers.RELEVANT  # the words are there


def test_the_collections_are_what_their_readme_says():
    for name, halves in read_questions().items():
        files = [path for path in (COLLECTIONS / name).iterdir() if path.suffix != ".json"]
        assert len(files) >= 8, name
        asked = [item["question"] for half in halves.values() for item in half["answerable"]]
        wrong = [question for half in halves.values() for question in half["unanswerable"] + half["elsewhere"]]
        assert len(asked) >= 25 and len(wrong) >= 15, name
        texts = [path.read_text("utf-8") for path in files]
        for item in (item for half in halves.values() for item in half["answerable"]):
            assert any(item["evidence"] in text for text in texts), item
        fitted, reported = ({item["question"] for item in half["answerable"]} for half in halves.values())
        assert not fitted & reported, name


def totals(rows, k=3):
    """(method, among others?) -> recall@k, false nothing and false hits over the collections' questions."""
    result = {}
    for key, group in groupby(rows, lambda row: (row["method"], row["among_others"])):
        each = list(group)
        asked, wrong = sum(row["answerable"] for row in each), sum(row["unanswerable"] for row in each)
        result[key] = (
            sum(row[f"recall@{k}"] * row["answerable"] for row in each) / asked,
            sum(row["false_nothing"] * row["answerable"] for row in each) / asked,
            sum(row["false_hits"] * row["unanswerable"] for row in each) / wrong,
        )
    return result


def test_words_on_held_out_questions(words):
    recall, nothing, hits = totals(measure_collections(words))["words", False]
    assert recall > 0.90 and nothing < 0.07 and hits < 0.15
    recall, nothing, hits = totals(measure_collections(words))["words", True]
    assert recall > 0.90 and nothing < 0.06 and hits < 0.28


def test_words_and_vectors_on_held_out_questions(hybrid):
    got = totals(measure_collections(hybrid))
    recall, nothing, hits = got["hybrid", False]
    assert recall > 0.93 and nothing < 0.06 and hits < 0.06
    recall, nothing, hits = got["hybrid", True]
    assert recall > 0.92 and nothing < 0.06 and hits < 0.17


@pytest.mark.slow
def test_the_numbers_of_relevance_are_those_of_the_calibration(hybrid):
    for name, number in calibrate(hybrid).items():
        assert getattr(numbers, name) == pytest.approx(number, abs=0.5), name


def test_a_library_of_version_1_is_searched(tmp_path):
    with library_of(tmp_path, {"lease.txt": LEASE}) as library:
        assert library._db.execute("PRAGMA user_version").fetchone()[0] == 1
    with open_library(tmp_path / "l.db") as library:
        assert library.search("deposit")
