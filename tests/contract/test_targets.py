"""Every family's tiny presets on every target's recipes: exact at the target's own gate, or refused by the piece's name."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from exported import VOCAB
from tiny import PRESETS, tiny

from phi3mobile import extras
from phi3mobile.bundle import open_bundle
from phi3mobile.engines.base import BaseEngine
from phi3mobile.engines.native import native_library
from phi3mobile.engines.registry import find_engine, open_engine
from phi3mobile.errors import InputError
from phi3mobile.export import targets
from phi3mobile.export.build import export
from phi3mobile.export.plan import plan_export
from phi3mobile.export.recipe import Recipe, find_recipe, recipes
from phi3mobile.export.target import Target
from phi3mobile.export.targets import target_of
from phi3mobile.export.verify import source_of, verify
from phi3mobile.export.weights import Weights
from phi3mobile.manifest import MANIFEST
from phi3mobile.models.pieces import pieces
from phi3mobile.session.session import Session

PROMPT = np.random.default_rng(0).integers(3, VOCAB, 20).tolist()
TINY = [name for name in PRESETS if name.startswith(("tiny-", "small-tiny", "moe-tiny", "mixtral-tiny", "vision-tiny"))]
QUICK = {  # the others take minutes: make test-all
    ("tiny-gqa", "android-cpu"),
    ("small-tiny", "host"),
    ("tiny-partial", "host-kv4"),
    ("moe-tiny", "host"),
    ("mixtral-tiny", "host-fp32-kv"),
    ("tiny-gqa", "ios-gpu"),
    ("vision-tiny", "ios-gpu"),
    ("tiny-gqa", "ios-ane"),
    ("tiny-longrope", "litert"),
    ("tiny-longrope", "ios-coreai"),
}


def lacking(preset: str, recipe: str) -> list[str]:
    chosen = find_recipe(recipe)
    return sorted(set(pieces(tiny(preset))) - set(target_of(chosen).pieces(chosen)))


def is_for(preset: str, recipe: str) -> bool:
    return set(find_recipe(recipe).needs) <= set(pieces(tiny(preset)))


def divides(preset: str, recipe: str) -> bool:
    """Whether groups of columns divide the model's matrices and heads, where the recipe's programs have all its pieces."""
    try:
        find_recipe(recipe).check(tiny(preset))
    except InputError:
        return bool(lacking(preset, recipe))
    return True


PAIRS = [(preset, recipe) for recipe in recipes() for preset in TINY if is_for(preset, recipe) and divides(preset, recipe)]
REFUSED = [pair for pair in PAIRS if lacking(*pair)]
EXACT = [
    pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow, id="-".join(pair))
    for pair in PAIRS
    if pair not in REFUSED
]


def needs(recipe: str) -> None:
    """Skip where this machine can't write or run the recipe's bundles."""
    chosen = find_recipe(recipe)
    target = target_of(chosen)
    for module, package in target.packages(chosen).items():
        pytest.importorskip(module, reason=f"pip install '{package}'")
    if target.engine(chosen) == "native" and native_library() is None:
        pytest.skip("the native library is not built: make native")


@pytest.mark.parametrize(("preset", "recipe"), EXACT)
def test_a_program_computes_with_the_packed_integers(preset, recipe, checkpoint_of, bundle_of):
    needs(recipe)
    bundle, chosen = open_bundle(bundle_of(preset, recipe)), find_recipe(recipe)
    manifest, target = bundle.manifest, target_of(chosen)
    assert (manifest["engine"], manifest["weights_mapped"]) == (target.engine(chosen), target.weights_mapped(chosen))
    assert manifest["runtime"]["name"] and all(program.exists() for program in bundle.programs)
    weights, *checks, cost = verify(bundle, source_of(bundle, str(checkpoint_of(preset))), [PROMPT])
    assert isinstance(weights, Weights) and weights.compared and weights.failure == ""
    assert cost.name == "4 bit" and not cost.required and checks
    for check in checks:
        wanted = {"encode", "project"} if check.name.startswith("pictures") else {"prefill", "decode"}
        assert check.required and wanted <= set(check.stages)
        assert check.passed, (check.name, check.document())


def test_refusals_are_among_what_is_asked():
    assert {("small-tiny", "litert"), ("small-tiny-longrope", "ios-ane")} <= {*REFUSED}


@pytest.mark.parametrize(("preset", "recipe"), REFUSED)
def test_what_a_target_lacks_is_refused_by_name(preset, recipe, checkpoint_of, tmp_path):
    out, needed = tmp_path / "out", pieces(tiny(preset))
    with pytest.raises(InputError) as refused:
        plan_export(checkpoint_of(preset), out, recipe, method="rtn")
    said = ", ".join(f"{name} ({where})" for name, where in needed.items() if name in lacking(preset, recipe))
    assert str(refused.value).startswith(f"recipe {recipe} has no {said}, which this model needs; take ")
    able, *reasons = str(refused.value).partition("; take ")[2].split(" (")
    target = target_of(find_recipe(recipe))
    told = [(name, target.why_not(name)) for name in needed if name in lacking(preset, recipe)]
    assert reasons == [f"{name}: {reason})" for name, reason in told if reason]
    assert (
        able.split(", ") == [name for name in recipes() if is_for(preset, name) and not lacking(preset, name)]
        and "host" in able
    )
    assert not out.exists()


@pytest.mark.parametrize("recipe", recipes())
def test_a_recipe_states_all_that_an_export_asks(recipe):
    chosen = find_recipe(recipe)
    target = target_of(chosen)
    assert {"rmsnorm", "swiglu"} <= set(target.pieces(chosen)) and isinstance(target.weights_mapped(chosen), bool)
    assert target.space(1000) >= 2000 and all("pip" not in package for package in target.packages(chosen).values())
    if all(importlib.util.find_spec(module) for module in target.packages(chosen)):
        assert callable(find_engine(target.engine(chosen), "a bundle"))


def test_a_plan_writes_nothing(checkpoint_of, tmp_path):
    plan = plan_export(checkpoint_of("tiny-gqa"), tmp_path / "out", "host", method="rtn")
    assert (plan.context, plan.chunk, plan.method, plan.eos) == (256, 128, "rtn", [2, 0])
    assert plan.target is target_of(plan.recipe) and plan.space > 64 << 20 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "extra"), [("coremltools", "coreml"), ("litert_lm_builder", "litert"), ("coreai", "coreai")]
)
def test_a_missing_package_is_named_with_its_command(module, extra, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else find(name, *rest))
    recipe = next(r for r in recipes().values() if module in target_of(r).packages(r))
    with pytest.raises(InputError) as refused:
        Target.requires(target_of(recipe), recipe)
    assert str(refused.value).endswith(f"needs the module {module}: {extras.command(extra)}, or take another recipe")


def test_embeddings_and_hidden_states_are_refused_by_name_or_had(tiny_bundle, checkpoint_of):
    from phi3mobile.engines.eager import EagerEngine
    from phi3mobile.models.loading import load_model

    engine = open_engine(open_bundle(tiny_bundle))
    with pytest.raises(InputError, match="ExecutorchEngine takes tokens only, no embeddings; run the model with EagerEngine"):
        engine.forward_embeddings(np.zeros((2, 64), np.float32), 0)
    with pytest.raises(InputError, match="ExecutorchEngine gives logits only, no hidden states; run the model with"):
        engine.forward_hidden(np.array([1, 2]), 0)
    engine.close()

    model = load_model(checkpoint_of("tiny-gqa"))
    eager, tokens = EagerEngine(model), np.array([5, 9, 33])
    expected = eager.forward(tokens, 0)
    rows = model.model.embed_tokens.weight.detach().numpy()[tokens]
    assert np.array_equal(eager.forward_embeddings(rows, 0), expected)
    logits, hidden = eager.forward_hidden(tokens, 0)
    assert np.array_equal(logits, expected) and hidden.shape == (3, 64)
    np.testing.assert_allclose(hidden @ model.lm_head.weight.detach().numpy().T, expected, rtol=1e-4, atol=1e-4)
    for wrong in (np.zeros((3,), np.float32), np.zeros((1, 2, 64), np.float32)):
        with pytest.raises(InputError, match=r"embeddings of shape .* were given: they are \[T, hidden\]"):
            eager.forward_embeddings(wrong, 0)
    assert np.array_equal(eager.forward(tokens, 0), expected)


def test_every_engine_is_a_base_engine():
    from phi3mobile.engines import (
        android,
        apple,
        coreai,
        coreml,
        coreml_ane,
        coreml_delegate,
        eager,
        executorch,
        litert,
        native,
    )

    found = [
        value
        for module in (android, apple, coreai, coreml, coreml_ane, coreml_delegate, eager, executorch, litert, native)
        for name, value in vars(module).items()
        if name.endswith("Engine") and isinstance(value, type) and value.__module__ == module.__name__
    ]
    assert len(found) == 10
    for engine in found:
        assert issubclass(engine, BaseEngine) and not {"forward", "forward_view", "close"} & set(vars(engine))


# One file is a target


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """tests/contract/toy.py where targets are looked for."""
    folder = tmp_path / "targets"
    folder.mkdir()
    shutil.copyfile(Path(__file__).with_name("toy.py"), folder / "toy.py")
    monkeypatch.setattr(targets, "__path__", [*targets.__path__, str(folder)])
    yield
    sys.modules.pop("phi3mobile.export.targets.toy", None)
    vars(targets).pop("toy", None)


def test_one_file_makes_a_target(toy, checkpoint_of, tmp_path):
    assert find_recipe("toy").about == "arrays, for tests" and "toy" in targets.targets()
    source = checkpoint_of("tiny-window")
    bundle = open_bundle(export(source, tmp_path / "out", "toy", 96, method="rtn"))
    assert bundle.manifest["engine"] == "phi3mobile.export.targets.toy:open_toy" and bundle.info.max_chunk == 16
    assert bundle.manifest["programs"] == ["model.npz"] and bundle.manifest["runtime"]["name"] == "Toy"
    assert (tmp_path / "out" / "README").read_text() == "96 positions, 16 tokens at a time\n"
    comparisons = verify(bundle, source_of(bundle, None), [PROMPT])
    assert [comparison.name for comparison in comparisons] == ["weights", "arrays", "4 bit"]
    assert all(comparison.passed for comparison in comparisons) and comparisons[2].required == ""
    with Session(bundle) as session:
        assert "".join(session.generate([{"role": "user", "content": "the cat sat"}], max_tokens=5))


def test_a_toys_limits_and_pieces_are_checked_as_any_targets(toy, checkpoint_of, tmp_path):
    with pytest.raises(InputError, match="context 129: recipe toy takes 1 to 128"):
        export(checkpoint_of("tiny-window"), tmp_path / "out", "toy", 129, method="rtn")
    with pytest.raises(InputError, match=r"recipe toy has no longrope \(every layer\), which this model needs; take ios-cor"):
        export(checkpoint_of("tiny-longrope"), tmp_path / "out", "toy", 64, method="rtn")
    assert not (tmp_path / "out").exists()


def test_without_its_target_a_bundle_says_so(toy, checkpoint_of, tmp_path, monkeypatch):
    folder = export(checkpoint_of("tiny-window"), tmp_path / "out", "toy", 32, method="rtn")
    assert json.loads((folder / MANIFEST).read_text())["format"] == 2
    monkeypatch.setattr(targets, "__path__", targets.__path__[:-1])
    sys.modules.pop("phi3mobile.export.targets.toy", None)
    with pytest.raises(InputError, match=r"is for the engine 'phi3mobile\.export\.targets\.toy:open_toy'; this phi3mobile has"):
        Session(folder)


def test_two_targets_cant_share_a_recipes_name(toy, monkeypatch):
    monkeypatch.setattr(targets.targets()["toy"], "recipes", (Recipe(name="host", about="mine"),))
    with pytest.raises(ValueError, match="target toy has a recipe host, which another target has already"):
        recipes()
