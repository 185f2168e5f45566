"""The documentation: links, pages, commands, and the notebooks, which run."""

import json
import pathlib
import re

import matplotlib
import pytest
from small_models import generated_texts, random_model
from small_run import ROOT

PAGES = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = ("notebook", "movie_reviews_notebook")
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
    assert pages - {"index"} | {f"tutorials/{name}" for name in NOTEBOOKS} == set(listed)


def cells(name: str) -> list[dict]:
    notebook = json.loads((ROOT / f"docs/tutorials/{name}.ipynb").read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_cells(name: str, **parameters: str) -> dict:
    """The names that a notebook leaves, run from top to bottom with parameters of ours."""
    matplotlib.use("agg")
    first, *rest = cells(name)
    assert first["metadata"]["tags"] == ["parameters"]
    names: dict = dict(parameters)
    for cell in rest:
        exec("".join(cell["source"]), names)
    return names


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_has_its_pictures(name):
    """As a reader finds it: with text and pictures of a run, and no error."""
    outputs = [output for cell in cells(name) for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not any(output["output_type"] == "error" for output in outputs)


@pytest.mark.slow
def test_the_notebook_runs(pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_cells("notebook", MODEL=str(pretrained), RUN=str(tmp_path / "run"))
    assert names["vectors"].shape == (60, 32)
    assert len(names["training"]) == 20
    assert names["results"]["step"] == 20
    assert pathlib.Path(tmp_path / "run/hf/model.safetensors").exists()


@pytest.mark.slow
def test_the_notebook_of_movie_reviews_runs(tmp_path):
    model = random_model(tmp_path / "model", "text_classification", ["neg", "pos"], 0.3, seed=4)[0]
    texts = generated_texts(30, 5)
    rows = [f"{text},{'pos' if i % 2 else 'neg'}" for i, text in enumerate(texts)]
    (tmp_path / "dev.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    names = run_cells("movie_reviews_notebook", MODEL=str(model), REVIEWS=str(tmp_path / "dev.csv"))
    right, wrong = (names["said"][i]["prediction"] == names["rows"][i]["label"]
                    for i in names["chosen"])  # fmt: skip
    assert right and not wrong
    assert names["checks"]["texts"] == 2 and names["calibration"]["examples"] == 30
