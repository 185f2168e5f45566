// Accuracy of a probe of each layer beside its control, and the logit lens; arrows: texts.
function draw() {
  const last = data.layers.length - 1, share = k => last ? k / last : 0;
  const curve = (name, value) => [name, data.layers.map((x, k) => [share(k), value(x)])];
  main.replaceChildren(
    make("p", {class: "faint"}, `${data.file}, tested on ${data.test}: `
      + `${data.train_examples} and ${data.test_examples} examples, ${data.labels.length} labels. `
      + "A linear probe of each layer; the control has a random label for every word: what the "
      + "probe learns of it, it learns by heart."),
    make("h2", {}, "Linear probes"),
    chart([curve("accuracy", x => x.accuracy), curve("control", x => x.control),
           ["commonest label", [[0, data.majority], [1, data.majority]]]],
          `share of the ${last} layers`, "accuracy"),
    table(["layer", "accuracy", "control", "selectivity"], data.layers.map((x, k) =>
      [k ? String(k) : "embeddings", x.accuracy, x.control, x.selectivity])));
  if (data.lens && data.lens.texts.length) main.append(...lens(data.lens));
}

function lens(found) {
  const text = found.texts[state.text || 0];
  const parts = [make("h2", {}, "Logit lens"), make("p", {class: "faint"},
    "What the MLM head says at each masked word if the model ends after that layer; green: what "
    + `stood there. ← → text ${(state.text || 0) + 1} of ${found.texts.length}.`)];
  if (found.layers.length) parts.push(table(["layer", "right", "mean log probability of the word"],
    found.layers.map((x, k) => [String(k + 1), percent(x.hits), x.log_prob])));
  const rows = text.asked.map(asked => make("tr", {}, make("th", {}, text.words[asked.word]),
    ...asked.layers.map((x, k) => make("td", {
      style: `background: rgba(var(${x.right !== null && x.right === x.probability
        ? "--for" : "--ink"}), ${0.5 * x.probability})`,
      hover: `layer ${k + 1}: ${x.token} ${percent(x.probability)}`
        + (x.right === null ? "" : `; ${text.words[asked.word]} ${percent(x.right)}`),
    }, x.token))));
  parts.push(make("div", {class: "wide", id: "lens"}, make("table", {}, make("tr", {},
    make("th", {}, "word"), ...text.asked[0].layers.map((_, k) => make("th", {}, String(k + 1)))),
    ...rows)));
  return parts;
}

const shown = data.lens ? data.lens.texts.length : 0;
keys(shown ? {ArrowRight: () => turn("text", 1, shown), ArrowLeft: () => turn("text", -1, shown)}
           : {});
draw();
