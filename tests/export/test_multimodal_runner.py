"""Recipe android-multimodal in ExecuTorch's own multimodal runner; in a process of its own: it logs to stdout."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from exported import VOCAB, psnr, talking_checkpoint
from photos import drawn
from safetensors.torch import load_file, save_file

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.registry import open_tower
from phi3mobile.errors import InputError
from phi3mobile.export.build import export
from phi3mobile.export.packed_vision import PackedVision
from phi3mobile.export.plan import plan_export
from phi3mobile.export.targets.executorch.program import Pte
from phi3mobile.export.targets.executorch.read_vision import tower_difference
from phi3mobile.manifest import tower_bytes
from phi3mobile.models.checkpoint import open_checkpoint
from phi3mobile.models.vision import fit, plan_crops
from phi3mobile.session.pictures import Pictures
from phi3mobile.session.session import Session
from phi3mobile.text.vocabularies import load_tokenizer

pytestmark = pytest.mark.slow  # its export alone takes a minute
CONTEXT, TOKENS = 1024, 16  # below the switch, which the runner does not know
RUN = """
import json, sys
import numpy as np, torch
from executorch.extension.llm.custom_ops import custom_ops
from executorch.kernels import quantized
from executorch.extension.llm.runner import GenerationConfig, MultimodalRunner, make_image_input, make_token_input
program, tokenizer, count, *asked = sys.argv[1:]
for path in asked:
    given = np.load(path)
    runner = MultimodalRunner(program, tokenizer)
    image = make_image_input(torch.from_numpy(given["picture"]))
    parts = [make_token_input(given["before"].tolist()), image, make_token_input(given["after"].tolist())]
    pieces = []
    runner.generate(parts, GenerationConfig(echo=False, max_new_tokens=int(count), temperature=0.0), pieces.append)
    print("\\n@@" + json.dumps(pieces))
"""


WIDE, TALL = drawn(1), drawn(2, 30, 40)  # 2 by 2 crops with num_crops 4


def fitted(picture: np.ndarray) -> np.ndarray:
    """What an app gives the runner: uint8 [3, 672, 672]."""
    plan = plan_crops(picture.shape[1], picture.shape[0], 4)
    assert plan.grid == (2, 2) and plan.tokens == 757
    return np.ascontiguousarray(fit(picture, plan).transpose(2, 0, 1))


@pytest.fixture(scope="module")
def folder(once):
    """A model that only says ASCII: the runner's callback takes whole characters alone."""

    def make(folder):
        talking_checkpoint(folder, "vision-tiny")
        tokenizer, (file,) = load_tokenizer(folder), folder.glob("*.safetensors")
        silent = [token for token in range(VOCAB) if not (text := tokenizer.decode([token])).isascii() or not text]
        tensors = load_file(file)
        tensors["lm_head.weight"][silent] = 0
        save_file(tensors, file, metadata={"format": "pt"})

    return once("checkpoint-vision-ascii", make)


@pytest.fixture(scope="module")
def bundle(once, folder):
    made = once("seeing-multimodal", lambda out: export(folder, out, "android-multimodal", CONTEXT, method="rtn"))
    return open_bundle(made)


def test_the_runner_says_what_our_session_says(bundle, tmp_path):
    pytest.importorskip("executorch.extension.llm.runner", reason="this ExecuTorch has no Python bindings of its LLM runners")
    ours, asked = [], []
    for number, picture in enumerate((WIDE, TALL)):
        with Session(bundle) as session:
            parts = [
                {"type": "text", "text": "what "},
                {"type": "image", "image": picture},
                {"type": "text", "text": "the cat?"},
            ]
            options = {"temperature": 0.0, "repetition_penalty": 1.0, "repetition": True}
            list(session.generate([{"role": "user", "content": parts}], max_tokens=TOKENS, **options))
            ids, end = session._rows.tokens, session.statistics.prompt_tokens
        seen = [at for at in range(end) if ids[at] < 0]
        assert len(seen) == 757 and len(ids) >= end + TOKENS - 1
        ours.append([bundle.tokenizer.decode([token]) for token in ids[end:]][: TOKENS - 1])
        asked.append(tmp_path / f"{number}.npz")
        np.savez(asked[-1], picture=fitted(picture), before=ids[: seen[0]], after=ids[seen[-1] + 1 : end])
    command = [
        sys.executable,
        "-c",
        RUN,
        str(bundle.program),
        str(bundle.folder / "tokenizer.json"),
        str(TOKENS),
        *map(str, asked),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = [json.loads(line[2:]) for line in done.stdout.splitlines() if line.startswith("@@")]
    assert [pieces[: TOKENS - 1] for pieces in theirs] == ours and ours[0] != ours[1]


def test_its_rows_are_the_towers(bundle):
    from executorch.extension.pybindings import portable_lib

    program, pictures = portable_lib._load_for_executorch(str(bundle.program)), Pictures(open_tower(bundle), 4)
    for picture in (WIDE, TALL):
        (rows,) = program.run_method("vision_encoder", (torch.from_numpy(fitted(picture)),))
        assert rows.shape == (1, 757, 64)
        expected = pictures.embeddings(pictures.ids(picture))
        noise = np.square(rows[0].numpy() - expected).sum(-1) / np.square(expected).sum(-1)
        assert np.quantile(noise, 0.75) < 1e-6 and psnr(expected, rows[0].numpy()) > 40


def test_it_is_one_delegate_a_layer_with_the_sources_integers(bundle, folder):
    packed = PackedVision(open_checkpoint(folder))
    encoder = Pte(bundle.program, "vision_encoder")
    assert len(encoder.calls()) == 5 + packed.config.layers + 1  # patches are cut view by view
    assert not [name for name in bundle.manifest["runtime"]["operators"] if name.startswith("phi3mobile::")]
    assert bundle.vision["grid"] == [2, 2] and bundle.vision["rows"] == 128 and bundle.info.max_chunk == 768
    assert tower_difference(bundle, packed) == ""
    vector = packed.vector
    packed.vector = lambda name: vector(name) * (2 if name.endswith("layers.1.layer_norm2.bias") else 1)
    assert "norms or positions" in tower_difference(bundle, packed)


def test_the_tower_is_counted_twice_and_read_by_no_token(bundle):
    files = bundle.manifest["files"]
    tower, separators = files["vision.pte"]["bytes"], files["separators.bin"]["bytes"]
    assert tower_bytes(bundle.manifest) == 2 * tower + separators
    decoder = bundle.manifest["memory"]["weights"] - tower_bytes(bundle.manifest)
    assert bundle.manifest["model"]["bits_per_weight"] == round(8 * decoder / bundle.manifest["model"]["parameters"], 3)


def test_what_it_is_not_for(folder, tiny_checkpoint_folder, tmp_path):
    lacks = r"recipe android-multimodal is for models with vision, which this one lacks; take .*android-cpu, "
    with pytest.raises(InputError, match=lacks) as refused:
        plan_export(tiny_checkpoint_folder, tmp_path / "out", "android-multimodal")
    assert "android-multimodal" not in str(refused.value).partition("; take ")[2]
    with pytest.raises(InputError, match=r"context 512: recipe android-multimodal takes 1024 to \d+"):
        plan_export(folder, tmp_path / "out", "android-multimodal", 512, method="rtn")
