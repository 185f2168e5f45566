"""The site, which `make docs` writes to docs/_build/html, without a network."""

import ast
import pathlib
import re
import sys

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bert_jax import config  # noqa: E402  (from this tree, whichever is installed)

project = "bert_jax"
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",  # MyST Markdown and notebooks
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "bert_jax"
html_show_sphinx = False
html_show_copyright = False

myst_enable_extensions = ["deflist", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # a test runs the notebook, and it is kept with its output
suppress_warnings = ["myst.header"]  # README's parts begin at level 2

default_role = "literal"  # docstrings write `name` in Markdown's way
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
# Shown by their names; nothing of them is needed to read the signatures.
autodoc_type_aliases = {"epath.PathLike": "PathLike"}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
copybutton_prompt_text = "$ "


def indented_code_is_literal(app, what, name, obj, options, lines: list[str]) -> None:
    """Marks the indented examples of docstrings as code, as Markdown has it."""
    in_section = False
    for i, line in enumerate(lines):
        if line and not line.startswith((" ", ":", "..")):
            in_section = bool(re.fullmatch(r"\w+:", line))
        begins = line.startswith("    ") and i and not lines[i - 1].strip()
        if begins and not in_section:
            before = next((k for k in range(i - 1, -1, -1) if lines[k].strip()), None)
            if before is not None and not lines[before].startswith(("    ", ":", "..")):
                lines[i - 1 : i] = ["", "::", ""]
                indented_code_is_literal(app, what, name, obj, options, lines)
                return


class ConfigFields(SphinxDirective):
    """The fields of recipes with their meaning and default, from the recipes' comments.

    ```{config-fields} bert_base
    ```
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        source = self.arguments[0]
        meanings = config.explanations(source)
        items = []
        for name, value in config.leaves(config.load(source)):
            term = nodes.term("", "", nodes.literal("", f"config.{name}"))
            meaning = nodes.paragraph("", meanings.get(name, ""))
            meaning += [nodes.Text(" Default: "), nodes.literal("", repr(value))]
            items.append(nodes.definition_list_item("", term, nodes.definition("", meaning)))
        return [nodes.definition_list("", *items)]


class Recipes(SphinxDirective):
    """The recipes by name, with the first line of their files."""

    def run(self) -> list[nodes.Node]:
        items = []
        for name in config.names():
            text = ast.get_docstring(ast.parse((config.RECIPES / f"{name}.py").read_text())) or ""
            item = nodes.paragraph("", "", nodes.literal("", name), nodes.Text(": "))
            item += nodes.Text(text.split("\n\n")[0].replace("\n", " "))
            items.append(nodes.list_item("", item))
        return [nodes.bullet_list("", *items)]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", indented_code_is_literal)
    app.add_directive("config-fields", ConfigFields)
    app.add_directive("recipes", Recipes)
