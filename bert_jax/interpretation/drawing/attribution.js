// Words coloured by their scores; arrows: text and output, m: method.
const methods = data.methods;
function draw() {
  const i = state.text || 0, text = data.texts[i];
  const o = (state.output || 0) % Math.max(text.outputs.length, 1), output = text.outputs[o];
  const method = methods[state.method || 0];
  main.replaceChildren(make("p", {class: "faint"},
    `Text ${i + 1} of ${data.texts.length}. ← → text, ↑ ↓ output, m method. `
    + "Green words speak for the output, red ones against it; point at one for its score."));
  main.append(choice(methods, state.method || 0, k => { state.method = k; draw(); }));
  if (output) {
    main.append(choice(text.outputs.map(x => x.name), o, k => { state.output = k; draw(); }));
    const values = output.scores[method], most = Math.max(...values.map(Math.abs), 1e-12);
    const words = make("p", {class: "words", id: "words"});
    text.words.forEach((word, k) => words.append(make("span", {
      style: `background: rgba(var(--${values[k] >= 0 ? "for" : "against"}), `
           + `${(0.75 * Math.abs(values[k]) / most).toFixed(3)})`,
      hover: `${word}: ${number(values[k], 4)}`}, word), " "));
    main.append(words, make("p", {}, `${output.name}: probability ${number(output.probability)}. `
      + (output.r2 === undefined
        ? `Logit ${number(output.logit)}, without words ${number(output.baseline)}: integrated `
          + `gradients add up to the difference but for ${percent(output.error)}.`
        : `R² of the linear model: ${number(output.r2, 2)}.`)));
    const order = values.map((x, k) => k).sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]));
    main.append(make("h2", {}, "Strongest words"),
      table(["word", ...methods], order.slice(0, 10).map(k =>
        [text.words[k], ...methods.map(name => output.scores[name][k])])));
  } else main.append(make("p", {class: "words"}, text.words.join(" ")),
                     make("p", {}, "No output of this text is explained."));
  if (data.checks && data.checks.texts) checks();
}
function checks() {
  const {areas, curves, shares, agreement} = data.checks;
  main.append(make("h2", {}, `Is it true? Over ${data.checks.texts} outputs`),
    table(["order of words", "deletion area (lower is better)", "insertion area (higher is better)"],
      Object.entries(areas).map(([name, x]) => [name, x.deletion, x.insertion])));
  for (const kind of ["deletion", "insertion"])
    main.append(chart(Object.entries(curves).map(([name, both]) =>
      [name, shares.map((x, k) => [x, both[kind][k]])]), `share of words, ${kind}`, "probability"));
  main.append(make("h2", {}, "Agreement of the scores (rank correlation)"),
    table(["", ""], Object.entries(agreement)));
}
keys({ArrowRight: () => turn("text", 1, data.texts.length),
      ArrowLeft: () => turn("text", -1, data.texts.length),
      ArrowDown: () => turn("output", 1, data.texts[state.text || 0].outputs.length || 1),
      ArrowUp: () => turn("output", -1, data.texts[state.text || 0].outputs.length || 1),
      m: () => turn("method", 1, methods.length)});
draw();
