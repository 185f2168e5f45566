// All heads at a glance, and one of them as lines or as a heat map.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.levels), x => x.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
const special = token => /^(\[(CLS|SEP|PAD)\]|<\/?s>|<pad>)$/.test(token);
const ink = () => getComputedStyle(document.documentElement).getPropertyValue("--ink")
  .split(",").map(Number);
const current = () => data.texts[state.text || 0];
// Probability in bytes of one head, query before key.
function head(layer, number) {
  const size = current().tokens.length ** 2;
  const start = (layer * data.heads + number) * size;
  return current().bytes.subarray(start, start + size);
}

// A head as an image of at most `side` points: the largest probability of each square.
function image(levels, length, side) {
  const n = Math.min(length, side), canvas = make("canvas", {width: n, height: n});
  const context = canvas.getContext("2d"), pixels = context.createImageData(n, n), [r, g, b] = ink();
  for (let q = 0; q < length; q++) for (let k = 0; k < length; k++) {
    const at = 4 * (Math.floor(q * n / length) * n + Math.floor(k * n / length));
    const level = Math.round(255 * Math.sqrt(levels[q * length + k] / 255));
    if (level > pixels.data[at + 3]) pixels.data.set([r, g, b, level], at);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// Drawn once for each text: at 512 tokens there are millions of points.
function glance() {
  const text = current();
  if (!text.grid) {
    text.grid = make("div", {id: "heads", class: "wide", style:
      `display: grid; grid-template-columns: repeat(${data.heads}, minmax(36px, 72px)); gap: 3px`});
    for (let l = 0; l < data.layers; l++) for (let h = 0; h < data.heads; h++) {
      const canvas = image(head(l, h), text.tokens.length, 64);
      canvas.style = "width: 100%; image-rendering: pixelated; border: 1px solid var(--line)";
      tell(canvas, `layer ${l + 1}, head ${h + 1}: ${data.descriptions[l][h]}`);
      canvas.addEventListener("click", () => { state.layer = l; state.head = h; draw(); });
      text.grid.append(canvas);
    }
  }
  const chosen = (state.layer || 0) * data.heads + (state.head || 0);
  [...text.grid.children].forEach((x, i) => { x.className = i === chosen ? "chosen" : ""; });
  return text.grid;
}

function heat(levels, tokens) {
  const n = tokens.length, canvas = image(levels, n, n), side = Math.min(640, Math.max(n * 14, 200));
  canvas.id = "heat";
  canvas.style = `width: ${side}px; max-width: 100%; image-rendering: pixelated; `
               + "border: 1px solid var(--line)";
  canvas.addEventListener("mousemove", event => {
    const box = canvas.getBoundingClientRect();
    const at = (x, size) => Math.min(n - 1, Math.max(0, Math.floor(x / size * n)));
    const k = at(event.clientX - box.left, box.width), q = at(event.clientY - box.top, box.height);
    point(event, `${tokens[q]} → ${tokens[k]}: ${number(levels[q * n + k] / 255, 2)}`);
  });
  canvas.addEventListener("mouseleave", () => { hover.hidden = true; });
  return make("div", {}, make("p", {class: "faint"}, "Rows attend to columns."), canvas);
}

function lines(levels, tokens, segments) {
  const n = tokens.length, step = 18, [left, right] = [150, 400];
  const svg = make("svg", {id: "lines", width: 560, height: n * step + 10,
                           viewBox: `0 0 560 ${n * step + 10}`});
  const only = state.token;
  for (let q = 0; q < n; q++) for (let k = 0; k < n; k++) {
    const share = levels[q * n + k] / 255;
    if (share < (only === q ? 0.004 : n > 128 ? 0.1 : 0.03) || (only !== undefined && only !== q))
      continue;
    const colour = segments[k] ? "var(--against)" : "var(--ink)";
    svg.append(make("line", {x1: left, y1: q * step + 9, x2: right, y2: k * step + 9,
      style: `stroke: rgb(${colour}); stroke-width: ${0.5 + 2.5 * share}; opacity: ${share ** 0.7}`,
      hover: `${tokens[q]} → ${tokens[k]}: ${number(share, 2)}`}));
  }
  tokens.forEach((token, i) => {
    const of = {y: i * step + 13, style: `cursor: pointer; ${special(token) ? "opacity: .5" : ""}`};
    const from = make("text", {...of, x: left - 6, "text-anchor": "end"}, token);
    if (only === i) from.setAttribute("font-weight", "bold");
    from.addEventListener("click", () => { state.token = only === i ? undefined : i; draw(); });
    svg.append(from, make("text", {...of, x: right + 6,
      opacity: only === undefined ? 1 : 0.25 + 0.75 * Math.sqrt(levels[only * n + i] / 255)}, token));
  });
  return svg;
}

async function draw() {
  const text = current();
  if (!text.bytes) text.bytes = await unpack(text);
  const l = state.layer || 0, h = state.head || 0, levels = head(l, h);
  main.replaceChildren(
    make("p", {class: "faint"}, "← → head, ↑ ↓ layer, v lines or heat map, n p one token's view, "
      + "Escape all tokens, t text. Blue: to the first segment, red: to the second. Probabilities "
      + `in steps of 1/255; those below ${number(data.cut)} are 0.`),
    choice(data.texts.map((x, i) => `text ${i + 1}`), state.text || 0,
           i => { state.text = i; state.token = undefined; draw(); }),
    glance(),
    make("h2", {}, `Layer ${l + 1}, head ${h + 1}: ${data.descriptions[l][h]}`),
    table(data.patterns, [data.shares[l][h]]),
    state.heat ? heat(levels, text.tokens) : lines(levels, text.tokens, text.segments));
  document.body.dataset.drawn = Number(document.body.dataset.drawn || 0) + 1;
}
const step = by => {
  const n = current().tokens.length;
  state.token = ((state.token ?? (by > 0 ? -1 : 0)) + by + n) % n;
};
keys({ArrowRight: () => turn("head", 1, data.heads), ArrowLeft: () => turn("head", -1, data.heads),
      ArrowDown: () => turn("layer", 1, data.layers), ArrowUp: () => turn("layer", -1, data.layers),
      v: () => { state.heat = !state.heat; }, n: () => step(1), p: () => step(-1),
      Escape: () => { state.token = undefined; },
      t: () => { turn("text", 1, data.texts.length); state.token = undefined; }});
draw();
