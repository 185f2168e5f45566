"""The pages that `explain` writes: one HTML file each, which needs no network.

A page holds its data as JSON and a script that draws them, NAME.js beside this file; texts reach
the page as text alone. `page.js` and `page.css` are what all pages share.
"""

import html
import importlib.resources
import json
from typing import Any

from etils import epath

from bert_jax import files
from bert_jax.cli import UserError
from bert_jax.interpretation.drawing import pictures

SUFFIXES = (".html", ".json", ".png")
_SCRIPTS = {"lime": "attribution"}  # kinds that another one's script draws
# Nothing may be loaded from anywhere.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def check(output: str) -> None:
    """Raises UserError for a file that is no page, JSON or picture, before anything is computed."""
    suffix = epath.Path(output).suffix
    if suffix not in SUFFIXES:
        raise UserError(f"--output={output}: expected a file that ends in {', '.join(SUFFIXES)}")
    if suffix == ".png":
        pictures.check()


def write(output: str, data: dict[str, Any]) -> None:
    """Writes what a function of `bert_jax.explain` returned, by the file's suffix."""
    suffix = epath.Path(output).suffix
    if suffix == ".html":
        files.write_whole(output, page(data))
    elif suffix == ".json":
        files.write_whole(output, json.dumps(data, ensure_ascii=False) + "\n")
    else:
        files.write_whole(output, pictures.draw(data))


def page(data: dict[str, Any]) -> str:
    """The page of `data`, whose "kind" names the script that draws them."""
    script = _SCRIPTS.get(data["kind"], data["kind"])
    title = html.escape(f"{data['kind']}: {data['model']}")
    # In a script element "<" could end it, whatever the quotes around it.
    content = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{title}</title><style>{_asset('page.css')}</style>\n"
        f'<body><h1>{title}</h1><main></main><div id="hover" hidden></div>\n'
        f'<script type="application/json" id="data">{content}</script>\n'
        f"<script>{_asset('page.js')}\n{_asset(script + '.js')}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return (importlib.resources.files(__package__) / name).read_text(encoding="utf-8")
