// Checkpoints one after the other: what each says, and how far it is from the last one by layer.
const count = data.checkpoints.length;
function draw() {
  const at = state.at || 0, to = state.to ? "previous" : "last", point = data.checkpoints[at];
  const slider = make("input", {type: "range", min: 0, max: count - 1, value: at, id: "slider",
    "aria-label": "checkpoint"});
  slider.oninput = () => { state.at = Number(slider.value); draw(); };
  const layers = point.cka.last.length - 1, share = k => layers ? k / layers : 0;
  const known = data.checkpoints.some(x => x.right !== null);
  const series = value => data.checkpoints.map((x, i) => [i / (count - 1), value(x)]);
  const curves = [["says what the last one says", series(x => x.as_last)]];
  if (known) curves.push(["probability of what stood there", series(x => x.right)]);
  main.replaceChildren(
    make("p", {class: "faint"}, "← → checkpoints, ↑ ↓ texts, p compares with the previous "
      + "checkpoint instead of the last."),
    make("div", {}, slider, make("strong", {}, ` ${point.name}`), ` (${at + 1} of ${count})`),
    make("h2", {}, "All checkpoints"),
    chart(curves, "first to last checkpoint", "share"),
    make("h2", {}, `Compared with the ${to} one`),
    choice(["the last", "the previous"], state.to || 0, i => { state.to = i; draw(); }),
    chart([["similarity of states (CKA)", point.cka[to].map((x, k) => [share(k), x])],
           ["divergence of attention (bits)", point.attention[to].map((x, k) =>
             [share(k + 1), x])]],
          `embeddings to layer ${layers}`, "0 to 1"));
  if (point.texts.length) main.append(...predictions(point));
  document.getElementById("slider").focus({preventScroll: true});
}

function predictions(point) {
  const number = state.text || 0, last = data.checkpoints[count - 1];
  return [make("h2", {}, `Text ${number + 1} of ${data.texts.length}`),
    make("p", {}, data.texts[number].join(" ")),
    table(["of", "says", "probability", "the last one says"], point.texts[number].map((x, i) =>
      [x.of, x.prediction, x.probability === null ? "–" : percent(x.probability),
       last.texts[number][i].prediction]))];
}

keys({ArrowRight: () => turn("at", 1, count), ArrowLeft: () => turn("at", -1, count),
      ArrowDown: () => turn("text", 1, data.texts.length),
      ArrowUp: () => turn("text", -1, data.texts.length), p: () => turn("to", 1, 2)});
draw();
