"""The documentation: links, pages, commands, and the notebook, which runs."""

import json
import pathlib
import re

import matplotlib
import pytest
from small_run import ROOT

PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_pages_that_the_code_names_are_there():
    sources = (
        path
        for folder in ("bert_jax", "data_prep", "configs", "launch", "benchmarks", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh", ".toml", ".md")
    )
    named = {
        (path, name)
        for path in [*sources, *TEXTS, ROOT / "Makefile"]
        for name in re.findall(r"\bdocs/[\w/]+\.(?:md|png)", path.read_text())
    }
    assert named
    missing = sorted(f"{path}: {name}" for path, name in named if not (ROOT / name).exists())
    assert not missing


def test_each_page_is_in_the_site_s_index():
    listed = re.findall(r"^([\w/]+)$", (ROOT / "docs/index.md").read_text(), re.MULTILINE)
    pages = {str(path.relative_to(ROOT / "docs").with_suffix("")) for path in PAGES}
    assert pages - {"index"} | {"tutorials/notebook"} == set(listed)


def cells() -> list[dict]:
    notebook = json.loads((ROOT / "docs/tutorials/notebook.ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_has_its_pictures():
    """As a reader finds it: with text and pictures of a run, and no error."""
    outputs = [output for cell in cells() for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not any(output["output_type"] == "error" for output in outputs)


@pytest.mark.slow
def test_the_notebook_runs(pretrained, tmp_path, monkeypatch):
    """Its cells from top to bottom, with a model and a place of its own."""
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    parameters, *rest = cells()
    assert parameters["metadata"]["tags"] == ["parameters"]
    names = {"MODEL": str(pretrained), "RUN": str(tmp_path / "run")}
    for cell in rest:
        exec("".join(cell["source"]), names)
    assert names["vectors"].shape == (60, 32)
    assert len(names["training"]) == 20
    assert names["results"]["step"] == 20
    assert pathlib.Path(tmp_path / "run/hf/model.safetensors").exists()
