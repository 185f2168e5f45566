// Reliability diagrams, and the most confident mistakes; arrows: before and after.
function draw() {
  const names = data.after ? ["before", "after"] : ["before"];
  const name = names[state.which || 0], found = data[name];
  main.replaceChildren(make("p", {class: "faint"},
    `${data.file}: ${found.examples} examples. On the diagonal probabilities are to be believed; `
    + "below it the model is too sure. ← → before and after the temperature."));
  if (data.after) main.append(choice(["as it is",
    `temperature ${number(data.temperature)}, fitted on ${data.fit}`], state.which || 0,
    i => { state.which = i; draw(); }));
  main.append(
    table(["", "accuracy", "log loss", "expected calibration error"],
      names.map(x => [x, data[x].accuracy, data[x].log_loss, data[x].ece])),
    chart([["accuracy in each bin", found.bins.map(x => [x.confidence, x.accuracy])]],
      "probability of the prediction", "accuracy", 1, true),
    make("h2", {}, "Bins"),
    table(["probability", "examples", "mean probability", "accuracy"], found.bins.map(x =>
      [`${number(x.low, 2)} – ${number(x.high, 2)}`, String(x.count), x.confidence, x.accuracy])),
    make("h2", {}, "Most confident mistakes"),
    table(["text", "label", "prediction", "probability"],
      data.mistakes.map(x => [x.text, x.label, x.prediction, x.probability])));
}
keys({ArrowRight: () => turn("which", 1, data.after ? 2 : 1),
      ArrowLeft: () => turn("which", -1, data.after ? 2 : 1)});
draw();
