"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const main = document.querySelector("main"), hover = document.getElementById("hover");

// An element with attributes, and children that are elements or texts.
function make(name, attributes = {}, ...children) {
  const drawn = ["svg", "g", "line", "polyline", "path", "rect", "text", "circle"].includes(name);
  const node = drawn ? document.createElementNS("http://www.w3.org/2000/svg", name)
                     : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick" || key === "onchange") node[key] = value;
    else if (key === "hover") tell(node, value);
    else node.setAttribute(key, value);
  }
  node.append(...children.map(x => x instanceof Node ? x : String(x)));
  return node;
}

// Shows a text beside the pointer while it is on the element.
function tell(node, text) {
  node.addEventListener("mousemove", event => point(event, text));
  node.addEventListener("mouseleave", () => { hover.hidden = true; });
}
function point(event, text) {
  hover.textContent = text;
  hover.hidden = false;
  hover.style.left = Math.min(event.clientX + 14, innerWidth - hover.offsetWidth - 4) + "px";
  hover.style.top = Math.min(event.clientY + 14, innerHeight - hover.offsetHeight - 4) + "px";
}

const number = (x, digits = 3) => x === null || x === undefined ? "–" : Number(x).toFixed(digits);
const percent = x => (100 * x).toFixed(1) + " %";

function table(head, rows) {
  return make("div", {class: "wide"}, make("table", {},
    make("tr", {}, ...head.map(x => make("th", {}, x))),
    ...rows.map(row => make("tr", {}, ...row.map(x =>
      make("td", typeof x === "number" ? {class: "number"} : {},
           typeof x === "number" ? number(x) : x))))));
}

// A row of buttons, one of which is pressed.
function choice(names, chosen, onchoose) {
  return make("div", {}, ...names.map((name, i) => make("button",
    {"aria-pressed": i === chosen, onclick: () => onchoose(i)}, name)));
}

// Which text, output, layer, … is shown; keys change it and the page is drawn again.
const state = {};
function turn(name, by, count) { state[name] = ((state[name] || 0) + by + count) % count; }
function keys(actions) {
  document.addEventListener("keydown", event => {
    if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
    hover.hidden = true;
    draw();
  });
}

// Curves over x from 0 to 1: [[name, [[x, y], …]], …]; y runs from 0 to `top`.
function chart(curves, xlabel, ylabel, top = 1, diagonal = false) {
  const [w, h, left, bottom] = [420, 260, 50, 40];
  const at = (x, y) => [left + x * (w - left - 10), 10 + (1 - y / top) * (h - bottom - 10)];
  const colours = ["rgb(var(--ink))", "rgb(var(--for))", "rgb(var(--against))", "var(--faint)"];
  const svg = make("svg", {viewBox: `0 0 ${w} ${h + 16 * curves.length}`, width: w, role: "img"});
  for (const share of [0, 0.5, 1]) {
    const [x0, y0] = at(0, share * top), [x1] = at(1, 0), [x, y] = at(share, 0);
    svg.append(make("line", {class: "axis", x1: x0, x2: x1, y1: y0, y2: y0}),
      make("text", {x: x0 - 6, y: y0 + 4, "text-anchor": "end"}, number(share * top, 2)),
      make("text", {x, y: y + 16, "text-anchor": "middle"}, number(share, 1)));
  }
  const [x0, y0] = at(0, 0), [x1, y1] = at(1, top);
  if (diagonal) svg.append(make("line", {class: "axis", x1: x0, y1: y0, x2: x1, y2: y1}));
  svg.append(make("text", {x: (x0 + x1) / 2, y: h - 6, "text-anchor": "middle"}, xlabel),
    make("text", {x: 12, y: h / 2, transform: `rotate(-90 12 ${h / 2})`,
                  "text-anchor": "middle"}, ylabel));
  curves.forEach(([name, points], i) => {
    const colour = colours[Math.min(i, colours.length - 1)];
    svg.append(make("polyline", {style: `stroke: ${colour}; stroke-width: 2`,
      points: points.map(([x, y]) => at(x, y).join(",")).join(" ")}));
    for (const [x, y] of points) {
      const [cx, cy] = at(x, y);
      svg.append(make("circle", {cx, cy, r: 3, style: `fill: ${colour}`,
                                 hover: `${name}: ${number(x, 2)} → ${number(y)}`}));
    }
    svg.append(make("text", {x: left, y: h + 12 + 16 * i, style: `fill: ${colour}`}, "— " + name));
  });
  return svg;
}
