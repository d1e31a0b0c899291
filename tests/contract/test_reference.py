"""`make docs`: the API reference is written without a warning, and has what a reader looks for."""

from __future__ import annotations

import importlib.util

import pytest
from tracked import ROOT

pytest.importorskip("pdoc", reason="pdoc is not installed: pip install 'phi3mobile[docs]'")


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages' folder, and the modules that they are of."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None and spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    out = tmp_path_factory.mktemp("docs")
    return out, reference.write(out, source=False)


def test_every_public_package_has_pages(pages):
    out, modules = pages
    for name in ("", ".session", ".text", ".engines", ".models", ".retrieval", ".export", ".bundle", ".errors"):
        assert f"phi3mobile{name}" in modules
    assert all((out / f"{module.replace('.', '/')}.html").is_file() for module in modules) and (out / "index.html").is_file()
    assert not [module for module in modules if module.startswith(("phi3mobile.bench", "phi3mobile.training"))]


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("session/session", "Session.generate"),
        ("session/sampling", "Sampling"),
        ("text/vocabularies", "load_tokenizer"),
        ("models/loading", "load_model"),
        ("retrieval", "Library"),
        ("export/build", "export"),
        ("errors", "InputError"),
    ],
)
def test_names_are_found(pages, page, name):
    assert f'id="{name}"' in (pages[0] / "phi3mobile" / f"{page}.html").read_text()
