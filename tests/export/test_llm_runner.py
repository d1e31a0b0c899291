"""Bundles in ExecuTorch's own text runner, as docs/executorch-runners.md says; in a process of its own: it logs to stdout."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_parity_ladder import GOLDEN, REPEAT

from phi3mobile.bundle import open_bundle
from phi3mobile.engines.native import native_library

pytest.importorskip("executorch.extension.llm.runner", reason="this ExecuTorch has no Python bindings of its LLM runners")

PHI3 = Path(__file__).parents[3] / "shared" / "data" / "phi3-tokenizer" / "tokenizer.json"
RUN = """
import json, sys
program, tokenizer, *prompts = sys.argv[1:]
if not program.startswith("bare:"):
    from executorch.extension.llm.custom_ops import custom_ops
    from executorch.kernels import quantized
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
for prompt in prompts:
    runner = TextLLMRunner(program.removeprefix("bare:"), tokenizer)
    pieces = []
    runner.generate(prompt, GenerationConfig(echo=False, max_new_tokens=48, temperature=0.0), pieces.append)
    print("@@" + json.dumps(pieces))
"""


def ran(bundle, prompts, bare: bool = False) -> subprocess.CompletedProcess:
    program = f"{'bare:' if bare else ''}{bundle.program}"
    command = [sys.executable, "-c", RUN, program, str(bundle.folder / "tokenizer.json"), *prompts]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_runner_says_what_our_session_says(demo_bundle):
    bundle = open_bundle(demo_bundle)
    prompts = [bundle.chat.render([{"role": "user", "content": REPEAT + sentence}]) for sentence in GOLDEN]
    done = ran(bundle, prompts)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line[2:]) for line in done.stdout.splitlines() if line.startswith("@@")]
    assert ["".join(pieces[:-1]) for pieces in answers] == list(GOLDEN)
    assert {pieces[-1] for pieces in answers} == {"<|im_end|>"}


def test_without_the_imports_the_missing_operators_are_named(demo_bundle):
    done = ran(open_bundle(demo_bundle), ["Hello"], bare=True)
    assert done.returncode != 0 and "Missing operator: [" in done.stdout + done.stderr
    assert "llama::custom_sdpa.out" in done.stdout + done.stderr


@pytest.mark.skipif(native_library() is None, reason="the native library is not built (make native)")
def test_our_own_kernels_are_not_there(bundle_of):
    done = ran(open_bundle(bundle_of("tiny-gqa", "host")), ["Hello"])
    assert done.returncode != 0 and "Backend Phi3mobileBackend is not registered" in done.stdout + done.stderr


@pytest.mark.skipif(not PHI3.is_file(), reason="Phi-3's vocabulary is not at hand")
def test_phi_3s_tags_need_no_line_ends_there():
    """Their tokenizer does not know rstrip: with the template's line ends it makes other ids."""
    tokenizers = pytest.importorskip("tokenizers")
    cpp = pytest.importorskip("pytorch_tokenizers").CppHFTokenizer()
    cpp.load(str(PHI3))
    right = tokenizers.Tokenizer.from_file(str(PHI3)).encode(
        "<|user|>\nHello you<|end|>\n<|assistant|>\n", add_special_tokens=False
    )
    assert cpp.encode("<|user|>Hello you<|end|><|assistant|>", 0, 0) == right.ids
    assert cpp.encode("<|user|>\nHello you<|end|>\n<|assistant|>\n", 0, 0) != right.ids
