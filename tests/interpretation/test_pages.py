"""Every kind of page in a real browser: drawn without an error, and led by keys and pointer."""

import json
import re
import shutil
import subprocess

import pytest
from small_models import generated_texts, random_model

import bert_jax
from bert_jax.interpretation.drawing import pages

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="needs chromium")]
BAD = """</script><script>document.title = "run"</script>"""
# Runs in front of the page's own script, and behind it: what it finds is left in the document.
BEFORE = """<script>const problems = [];
addEventListener("error", event => problems.push(event.message));
addEventListener("unhandledrejection", event => problems.push(String(event.reason)));
const log = console.error; console.error = (...x) => { problems.push(x.join(" ")); log(...x); };
</script>"""
AFTER = """<script>
const wait = () => new Promise(done => setTimeout(done, 300));
(async () => {
  await wait();
  const found = {problems, first: main.textContent, title: document.title, states: []};
  for (const key of KEYS) {
    document.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
    await wait();
    found.states.push({...state});
  }
  const target = document.querySelector("SELECTOR"), box = target.getBoundingClientRect();
  target.dispatchEvent(new MouseEvent("mousemove", {bubbles: true,
    clientX: box.left + 3, clientY: box.top + 3}));
  found.hover = hover.hidden ? "" : hover.textContent;
  const result = document.createElement("pre");
  result.id = "found";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
})();
</script>"""


def drive(page, tmp_path, keys, selector):
    """What a page holds after these keys, and what it shows of the element under the pointer."""
    after = AFTER.replace("KEYS", json.dumps(keys)).replace("SELECTOR", selector)
    page = page.replace("<main>", BEFORE + "<main>").replace("</body>", after + "</body>")
    path = tmp_path / "page.html"
    path.write_text(page)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--virtual-time-budget=20000", f"--user-data-dir={tmp_path}/browser"]
    dom = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=300)
    content = re.search(r'<pre id="found">(.*?)</pre>', dom.stdout, re.DOTALL)
    assert content, dom.stderr[-2000:]
    text = content[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    found = json.loads(text)
    assert found["problems"] == []
    assert found["title"] != "run"
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    made = random_model(directory, "text_classification", ["no", "yes"], 0.3, num_hidden_layers=2)
    return bert_jax.load(made[0])


TEXTS = generated_texts(3, 5)


def test_attribution(model, tmp_path):
    data = bert_jax.explain.attribution(model, TEXTS, steps=4, seeds=1)
    data["texts"][0]["words"][0] = BAD
    found = drive(pages.page(data), tmp_path, ["ArrowRight", "ArrowLeft", "m"], "#words span")
    assert BAD in found["first"]
    assert [x.get("text") for x in found["states"]] == [1, 0, 0]
    assert found["states"][-1]["method"] == 1
    assert found["hover"].startswith(BAD)


def test_attention(model, tmp_path):
    data = bert_jax.explain.attention(model, TEXTS)
    data["texts"][0]["tokens"][1] = BAD
    keys = ["ArrowRight", "ArrowDown", "n", "n", "v"]
    found = drive(pages.page(data), tmp_path, keys, "#heat")
    assert found["states"][-1] == {"head": 1, "layer": 1, "token": 1, "heat": True}
    assert found["hover"].startswith("[CLS] → [CLS]")
    assert BAD in found["first"]


def test_probabilities(model, tmp_path):
    source = tmp_path / "labelled.csv"
    rows = [f"{text},{'yes' if i else 'no'}" for i, text in enumerate(TEXTS)]
    source.write_text("\n".join(["text,label", *rows]) + "\n")
    data = bert_jax.explain.probabilities(model, str(source), fit=str(source))
    found = drive(pages.page(data), tmp_path, ["ArrowRight"], "circle")
    assert found["states"] == [{"which": 1}]
    assert "accuracy in each bin" in found["hover"]


def test_layers(tmp_path):
    workdir, _ = random_model(tmp_path / "m", "pretraining", [], 0.3, num_hidden_layers=2)
    source = tmp_path / "words.conll"
    lines = [f"{word}\t{'V' if len(word) % 2 else 'N'}" for text in TEXTS for word in text.split()]
    source.write_text("\n\n".join(lines) + "\n")
    data = bert_jax.explain.layers(bert_jax.load(workdir), str(source), tag_index=1)
    data["lens"]["texts"][0]["words"][0] = BAD
    found = drive(pages.page(data), tmp_path, ["ArrowRight"], "#lens td")
    assert BAD in found["first"] and "selectivity" in found["first"]
    assert found["states"] == [{"text": 1}]
    assert found["hover"].startswith("layer 1: ")


def test_checkpoints(tmp_path):
    models = [random_model(tmp_path / str(i), "pretraining", [], 0.3, seed=i)[0] for i in (1, 2)]
    data = bert_jax.explain.checkpoints(",".join(map(str, models)), TEXTS)
    data["texts"][0][0] = BAD
    keys = ["ArrowRight", "p", "ArrowDown"]
    found = drive(pages.page(data), tmp_path, keys, "circle")
    assert BAD in found["first"]
    assert found["states"][-1] == {"at": 1, "to": 1, "text": 1}
    assert found["hover"].startswith("says what the last one says")
