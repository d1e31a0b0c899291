"""The embedder against transformers and sentence-transformers, and its tokenizer against `tokenizers`."""

import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from phi3mobile.bench.retrieval import TEXT
from phi3mobile.errors import InputError
from phi3mobile.retrieval.embed import LONGEST, Embedder, embedder_folder, open_program, read_vocab
from phi3mobile.retrieval.wordpiece import WordPiece

TEXTS = ["What is a kludge?", "hi", "naïve café 中文 🙂 12+34=46", "", "x" * 300, "word " * 400]


@pytest.fixture(scope="module")
def folder():
    try:
        return embedder_folder()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def texts():
    return TEXTS + [line for line in (TEXT / "jargon.txt").read_text("utf-8").splitlines() if len(line) > 30][:60]


def reference(folder, texts):
    """Mean of transformers' BertModel over the tokens, of length 1: float32 [N, D]."""
    import tokenizers
    from transformers import BertModel

    model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    native = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    native.no_padding()
    native.enable_truncation(LONGEST)
    rows = []
    for text in texts:
        with torch.no_grad():
            mean = model(torch.tensor([native.encode(text).ids])).last_hidden_state[0].mean(0)
        rows.append((mean / mean.norm()).numpy())
    return np.stack(rows)


class Torch:
    def __init__(self, model):
        self._model = model

    def forward(self, tokens, position):
        return self._model(torch.from_numpy(tokens)[None], torch.tensor([position]))[0].numpy()


def test_our_minilm_is_transformers(folder, texts):
    from phi3mobile.export.embedder import load_minilm

    embedder = Embedder(Torch(load_minilm(folder)), read_vocab(folder))
    ours = np.stack([embedder.embed(text) for text in texts])
    assert (ours * reference(folder, texts)).sum(axis=1).min() > 0.999999


@pytest.mark.slow
def test_the_exported_program_is_sentence_transformers(folder, texts, tmp_path):
    from phi3mobile.export.embedder import export_embedder
    from phi3mobile.retrieval.embed import _Bindings

    sentence_transformers = pytest.importorskip("sentence_transformers", reason="the reference is not installed")
    export_embedder(folder, tmp_path / "minilm.pte")
    assert (tmp_path / "minilm.pte").stat().st_size < 60e6
    texts = [text for text in texts if text]
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    expected = model.encode(texts, normalize_embeddings=True, batch_size=1)
    vocab = read_vocab(folder)
    for program in (open_program(tmp_path / "minilm.pte", len(vocab)), _Bindings(tmp_path / "minilm.pte")):
        embedder = Embedder(program, vocab)
        ours = np.stack([embedder.embed(text) for text in texts])
        assert (ours * expected).sum(axis=1).min() >= 0.999


def test_other_folders_are_refused(tmp_path):
    from phi3mobile.export.embedder import load_minilm

    with pytest.raises(InputError, match="is no sentence-transformers folder"):
        load_minilm(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mpnet"}')
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="only bert embedders"):
        load_minilm(tmp_path)


def test_wordpiece_equals_tokenizers(folder):
    import tokenizers

    native = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    native.no_padding()
    native.no_truncation()
    ours = WordPiece(read_vocab(folder))
    # The compiled library's tables of marks and punctuation are older than Python's: characters that both have known long.
    old = st.characters(max_codepoint=0x05FF, blacklist_categories=("Cs", "Cn", "Cf")) | st.sampled_from("中文한글—“”…€™🙂ﬁ")
    parts = st.lists(st.sampled_from(["don't", "re-index", "中文", "ÀÉ", "\t", "[CLS", "##ing", "ß"])).map("".join)

    @settings(max_examples=300, deadline=None)
    @given(st.text(old, max_size=40) | parts)
    def check(text):
        # There a text can spell a control token. Here documents are text, whatever they say.
        assume(not re.search(r"\[(CLS|SEP|PAD|UNK|MASK)\]", text))
        assert ours.encode(text, 10**6) == native.encode(text).ids

    check()
    for line in (TEXT / "jargon.txt").read_text("utf-8").splitlines():
        assert ours.encode(line, 10**6) == native.encode(line).ids
    assert ours.encode("word " * 400, LONGEST)[-1] == native.token_to_id("[SEP]") and len(ours.encode("a " * 400, 9)) == 9
