"""Packed shards: what goes in comes out, in any cut; a killed writer's files end as if it had not been; damage is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3mobile.errors import InputError
from phi3mobile.training.data.shards import ShardWriter, Vocabulary, open_shards, write_index

SMALL = Vocabulary(size=300, eos=299, sha256="a")
LARGE = Vocabulary(size=100_352, eos=100_257, sha256="b")
DOCUMENTS = st.lists(st.lists(st.integers(0, 298), max_size=12), min_size=1, max_size=20)


def write(folder: Path, documents, vocabulary=SMALL, limit=16, name="00000"):
    writer = ShardWriter(folder, vocabulary, name, limit)
    for i, document in list(enumerate(documents))[writer.documents :]:
        writer.add(document, key=i)
    writer.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, st.integers(1, 40), st.integers(1, 30))
def test_stream_and_documents(tmp_path_factory, documents, limit, length):
    folder = tmp_path_factory.mktemp("shards")
    write(folder, documents, limit=limit)
    shards = write_index(folder)
    stream = [token for document in documents for token in [*document, 299]]
    numbers = [i for i, document in enumerate(documents) for _ in range(len(document) + 1)]
    assert (shards.tokens, shards.documents) == (len(stream), len(documents))
    assert [shards.document(i).tolist() for i in range(len(documents))] == [[*d, 299] for d in documents]
    assert shards.keys().tolist() == list(range(len(documents)))
    ids, owners = shards.read(0, shards.tokens)
    assert ids.tolist() == stream and owners.tolist() == numbers
    for start in range(0, shards.tokens - length + 1):
        ids, owners = shards.read(start, length)
        assert ids.tolist() == stream[start : start + length] and owners.tolist() == numbers[start : start + length]


@settings(max_examples=30, deadline=None)
@given(DOCUMENTS, st.data())
def test_resumed_writer_writes_the_same_files(tmp_path_factory, documents, data):
    whole, cut = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("cut")
    write(whole, documents)
    killed = ShardWriter(cut, SMALL, shard_tokens=16)
    for i, document in enumerate(documents[: data.draw(st.integers(0, len(documents)))]):
        killed.add(document, key=i)  # no close: what is not a whole shard is lost
    (cut / "00000-00000.tokens.partial").write_bytes(b"torn")
    write(cut, documents)
    (cut / "00000-00000.tokens.partial").unlink(missing_ok=True)
    assert contents(whole) == contents(cut)


def test_wide_ids_and_several_writers(tmp_path):
    write(tmp_path, [[100_000, 3]], LARGE, name="00001")
    write(tmp_path, [[7]], LARGE, name="00000")
    shards = write_index(tmp_path, {"from": "test"})
    assert shards.read(0, 5)[0].tolist() == [7, 100_257, 100_000, 3, 100_257]
    assert open_shards(tmp_path).about == {"from": "test"}
    blocks = list(shards.blocks(2))
    assert [b["tokens"].tolist() for b in blocks] == [[7, 100_257], [100_000, 3]]
    assert blocks[0]["tokens"].dtype == blocks[0]["segments"].dtype == np.int32


def test_damage_is_found(tmp_path):
    with pytest.raises(InputError, match="finished shard folder"):
        open_shards(tmp_path)
    with pytest.raises(InputError, match="no document was written"):
        write_index(tmp_path)
    write(tmp_path, [[1, 2, 3], [4]])
    write_index(tmp_path)
    file = tmp_path / "00000-00000.tokens"
    good = file.read_bytes()
    file.write_bytes(good[:-2])
    with pytest.raises(InputError, match="bytes"):
        open_shards(tmp_path)
    file.write_bytes(good[:-2] + b"\0\0")
    with pytest.raises(InputError, match="sha256"):
        open_shards(tmp_path)
    file.write_bytes(good)
    assert open_shards(tmp_path).tokens == 6
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        open_shards(tmp_path)


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="outside the vocabulary"):
        ShardWriter(tmp_path, SMALL).add([300])
    with pytest.raises(InputError, match="outside the vocabulary"):
        ShardWriter(tmp_path, SMALL).add([-1, 5])
    with pytest.raises(InputError, match="shard_tokens"):
        ShardWriter(tmp_path, SMALL, shard_tokens=0)
    write(tmp_path, [[1] * 20])
    with pytest.raises(InputError, match="another tokenizer or shard size"):
        ShardWriter(tmp_path, LARGE, shard_tokens=16)
    write(tmp_path, [[1]], LARGE, name="00001")
    with pytest.raises(InputError, match="several tokenizers"):
        write_index(tmp_path)
