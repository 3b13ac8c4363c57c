"use strict";

/* Draws the facts. The state is a class, a score threshold (in hundredths), and what of the images
   is shown; every change draws all sections anew. Lists over classes end with all classes. */

const facts = JSON.parse(document.getElementById("facts").textContent);
const ALL = facts.classes.length;
const NAMES = [...facts.classes, "All classes"];
const { first: FIRST, last: LAST } = facts.thresholds;
const MOST_CONFUSED = 12; // classes in the confusion matrix of a set that has more
const SVG = "http://www.w3.org/2000/svg";

const state = {
  class: ALL,
  level: facts.best[ALL],
  lists: new Set(["worst", "best"]),
  kinds: new Set(["correct", "false", "missed"]),
  sort: { column: 0, descending: false },
};

/* Elements */

const byId = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children); // text stays text
  return element;
}

const el = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

function setRows(table, head, body) {
  const element = byId(table);
  element.tHead.replaceChildren(head);
  element.tBodies[0].replaceChildren(...body);
}

const column = (name) => el("th", { scope: "col" }, name);
const rowHead = (...content) => el("th", { scope: "row" }, ...content);
const cell = (text, attributes = {}) => el("td", attributes, text);

/* Numbers */

const UNKNOWN = "\u2013";
const perCent = (value) => (value === null ? UNKNOWN : value.toFixed(1));
const share = (value) => (value === null ? UNKNOWN : value.toFixed(2));
const whole = (value) => value.toLocaleString("en");
const asScore = (level) => (level / 100).toFixed(2);
const ratio = (part, total) => (total ? part / total : null);

function measure(correct, wrong, boxes) {
  return {
    correct,
    wrong,
    missed: boxes - correct,
    precision: ratio(correct, correct + wrong),
    recall: ratio(correct, boxes),
    f1: ratio(2 * correct, correct + wrong + boxes),
  };
}

function atThreshold(label, level) {
  const { correct, false: wrong } = facts.thresholds;
  return measure(correct[label][level - FIRST], wrong[label][level - FIRST], facts.boxes[label]);
}

/* Header and filters */

function describe() {
  const shown = facts.pictures.length;
  byId("about").append(
    `${whole(facts.images)} images, ${whole(facts.boxes[ALL])} objects of ${ALL} classes, ` +
      `${whole(facts.detections)} detections. The curves and every AP use all detections; the ` +
      `score threshold starts at ${asScore(FIRST)}; detections below it, and all but ${shown} of ` +
      "the images, were left out of this page.",
  );
  byId("images-note").append(
    `By F1 at IoU 0.5 over all classes and score ${asScore(facts.best[ALL])}, ` +
      `where F1 of all classes is best; ${shown} of ${whole(facts.images)} images are shown. ` +
      "Boxes follow the class and the score threshold.",
  );
}

function setClass(label) {
  state.class = label;
  byId("classes").querySelector(`input[value="${label}"]`).checked = true;
  draw();
}

function setLevel(level) {
  state.level = level;
  byId("threshold").value = level;
  draw();
}

function buildFilters() {
  const order = [ALL, ...facts.classes.keys()];
  byId("classes").append(
    ...order.map((label) =>
      el(
        "label",
        { title: NAMES[label] },
        el("input", { type: "radio", name: "class", value: label, autocomplete: "off" }),
        el("span", {}, NAMES[label]),
      ),
    ),
  );
  byId("classes").addEventListener("change", (event) => setClass(Number(event.target.value)));
  const slider = byId("threshold");
  Object.assign(slider, { min: FIRST, max: LAST, step: 1, autocomplete: "off" });
  slider.addEventListener("input", () => setLevel(Number(slider.value)));
  byId("use-best").addEventListener("click", () => setLevel(facts.best[state.class]));
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
}

function drawFilters() {
  const { precision, recall, f1 } = atThreshold(state.class, state.level);
  const best = asScore(facts.best[state.class]);
  byId("threshold-value").textContent = asScore(state.level);
  byId("threshold").setAttribute("aria-valuetext", asScore(state.level));
  byId("use-best").textContent = `Best F1: ${best}`;
  const measured = `precision ${share(precision)}, recall ${share(recall)}, F1 ${share(f1)}`;
  byId("status").textContent = `${NAMES[state.class]}: ${measured}`;
}

/* Summary */

function drawCards() {
  const label = state.class;
  const { precision, recall, f1 } = atThreshold(label, state.level);
  const score = `score ${asScore(state.level)} or more`;
  const cards = [
    ["AP", perCent(facts.ap[label]), "Mean over IoU 0.5 to 0.95, COCO's main number"],
    ["AP50", perCent(facts.ap50[label]), "A box counts when it roughly fits: IoU 0.5"],
    ["AP75", perCent(facts.ap75[label]), "A box counts when it fits well: IoU 0.75"],
    ["Precision", share(precision), `Share of detections that are right, ${score}`],
    ["Recall", share(recall), `Share of objects that are found, ${score}`],
    ["F1", share(f1), "Harmonic mean of precision and recall"],
  ];
  byId("cards").replaceChildren(
    ...cards.map(([name, value, meaning]) =>
      el(
        "div",
        {},
        el("dt", {}, name),
        el("dd", { class: "value" }, value),
        el("dd", { class: "meaning" }, meaning),
      ),
    ),
  );
}

/* AP per class */

const AP_COLUMNS = [
  ["Class", (label) => label, (label) => label],
  ["Objects", (label) => facts.boxes[label], whole],
  ["AP", (label) => facts.ap[label], perCent],
  ["AP50", (label) => facts.ap50[label], perCent],
  ["AP75", (label) => facts.ap75[label], perCent],
  ["Small", (label) => facts.sizes[0].ap[label], perCent],
  ["Medium", (label) => facts.sizes[1].ap[label], perCent],
  ["Large", (label) => facts.sizes[2].ap[label], perCent],
];

function sortBy(number) {
  const again = state.sort.column === number;
  state.sort = { column: number, descending: again ? !state.sort.descending : number > 0 };
  draw();
  byId("ap-table").tHead.querySelectorAll("button")[number].focus();
}

function sortedClasses() {
  const value = AP_COLUMNS[state.sort.column][1];
  const sign = state.sort.descending ? -1 : 1;
  const key = (label) => value(label) ?? -1; // what is unknown counts as least
  return [...facts.classes.keys()].sort((a, b) => sign * (key(a) - key(b)) || a - b);
}

function apHead() {
  const { column: sorted, descending } = state.sort;
  const heads = AP_COLUMNS.map(([name], number) => {
    const here = number === sorted;
    const order = descending ? "descending" : "ascending";
    const arrow = here ? (descending ? " \u2193" : " \u2191") : "";
    return el(
      "th",
      { scope: "col", "aria-sort": here ? order : null },
      el("button", { type: "button", onclick: () => sortBy(number) }, name + arrow),
    );
  });
  return el("tr", {}, ...heads);
}

function apRow(label) {
  const onclick = () => chooseInTable(label);
  const choose = el("button", { type: "button", onclick }, NAMES[label]);
  const values = AP_COLUMNS.slice(1).map(([, value, format]) => cell(format(value(label))));
  return el("tr", rowStyle(label), rowHead(choose), ...values);
}

function chooseInTable(label) {
  setClass(label);
  byId("ap-table").querySelector(`[data-class="${label}"] button`).focus();
}

function rowStyle(label) {
  const chosen = label === state.class ? "chosen" : "";
  return { class: `${chosen} ${label === ALL ? "total" : ""}`.trim() || null, "data-class": label };
}

function drawApTable() {
  setRows("ap-table", apHead(), [ALL, ...sortedClasses()].map(apRow));
}

/* Charts */

const FRAME = { left: 44, top: 10, width: 400, height: 270 };
const toX = (value) => FRAME.left + FRAME.width * value;
const toY = (value) => FRAME.top + FRAME.height * (1 - value);

function axes(xName, yName) {
  const parts = [];
  for (const value of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
    const [x, y] = [toX(value), toY(value)];
    parts.push(
      svg("path", { class: "grid", d: `M${toX(0)} ${y}H${toX(1)}M${x} ${toY(0)}V${toY(1)}` }),
      svg("text", { x, y: toY(0) + 17, "text-anchor": "middle" }, value.toFixed(1)),
      svg("text", { x: toX(0) - 6, y: y + 4, "text-anchor": "end" }, value.toFixed(1)),
    );
  }
  const [middle, height] = [toX(0.5), toY(0.5)];
  const turned = `rotate(-90 11 ${height})`;
  parts.push(
    svg("text", { x: middle, y: toY(0) + 35, "text-anchor": "middle" }, xName),
    svg("text", { x: 11, y: height, "text-anchor": "middle", transform: turned }, yName),
  );
  return parts;
}

function line(points, style) {
  const known = points.filter(([, y]) => y !== null);
  const d = known.map(([x, y], i) => `${i ? "L" : "M"}${toX(x).toFixed(1)} ${toY(y).toFixed(1)}`);
  return svg("path", { class: `line ${style}`, d: d.join("") });
}

function legend(entries) {
  const items = entries.map(([style, text]) => {
    const key = svg("path", { class: `line ${style}`, d: "M0 5H40" });
    return el("li", {}, svg("svg", { viewBox: "0 0 40 10", "aria-hidden": "true" }, key), text);
  });
  return el("ul", { class: "legend" }, ...items);
}

function drawChart(id, label, parts, entries) {
  const size = `0 0 ${FRAME.left + FRAME.width + 16} ${FRAME.top + FRAME.height + 42}`;
  const picture = svg("svg", { viewBox: size, role: "img", "aria-label": label }, ...parts);
  byId(id).replaceChildren(picture, legend(entries));
}

const overRecall = (curve) => curve.map((precision, i) => [i / 100, precision]);

function drawCurves() {
  const label = state.class;
  const { 50: rough, 75: fine } = facts.curves;
  const others = [...facts.classes.keys()].filter((other) => other !== label);
  drawChart(
    "curves",
    `Precision over recall of ${NAMES[label]}: AP50 ${perCent(facts.ap50[label])}, ` +
      `AP75 ${perCent(facts.ap75[label])}`,
    [
      ...axes("recall", "precision"),
      ...others.map((other) => line(overRecall(rough[other]), "other")),
      line(overRecall(rough[label]), ""),
      line(overRecall(fine[label]), "second"),
    ],
    [
      ["", `${NAMES[label]}, IoU 0.5`],
      ["second", `${NAMES[label]}, IoU 0.75`],
      ["other", label === ALL ? "each class, IoU 0.5" : "the other classes, IoU 0.5"],
    ],
  );
}

/* Score threshold */

function drawThresholdChart() {
  const label = state.class;
  const levels = Array.from({ length: LAST - FIRST + 1 }, (_, i) => FIRST + i);
  const over = (name) => levels.map((level) => [level / 100, atThreshold(label, level)[name]]);
  const best = facts.best[label];
  const top = atThreshold(label, best).f1;
  const now = toX(state.level / 100);
  const mark = { class: "mark", cx: toX(best / 100), cy: toY(top ?? 0), r: 5 };
  drawChart(
    "threshold-chart",
    `Precision, recall and F1 of ${NAMES[label]} over the score threshold; ` +
      `F1 is best at ${asScore(best)}`,
    [
      ...axes("score threshold", "precision, recall, F1"),
      line(over("precision"), "second"),
      line(over("recall"), "third"),
      line(over("f1"), ""),
      svg("path", { class: "now", d: `M${now} ${toY(0)}V${toY(1)}` }),
      ...(top === null ? [] : [svg("circle", mark)]),
    ],
    [
      ["", `F1, best ${share(top)} at ${asScore(best)} (circle)`],
      ["second", "precision"],
      ["third", "recall"],
      ["now", "the threshold"],
    ],
  );
}

function thresholdRow(label) {
  const { precision, recall, f1, correct, wrong, missed } = atThreshold(label, state.level);
  return el(
    "tr",
    rowStyle(label),
    rowHead(NAMES[label]),
    ...[precision, recall, f1].map((value) => cell(share(value))),
    ...[correct, wrong, missed].map((value) => cell(whole(value))),
    cell(asScore(facts.best[label])),
  );
}

function drawThresholdTable() {
  const heads = ["Class", "Precision", "Recall", "F1", "Correct", "False", "Missed", "Best at"];
  const labels = [ALL, ...facts.classes.keys()];
  setRows("threshold-table", el("tr", {}, ...heads.map(column)), labels.map(thresholdRow));
}

/* Confusion: row ALL is background, column ALL is missed */

function confusionMatrix() {
  const matrix = Array.from({ length: ALL + 1 }, () => new Array(ALL + 1).fill(0));
  const missed = facts.boxes.slice(0, ALL);
  for (const [truth, said, level, times] of facts.confusion) {
    if (level < state.level) continue;
    matrix[truth][said] += times;
    if (truth < ALL) missed[truth] -= times;
  }
  missed.forEach((number, label) => (matrix[label][ALL] = number));
  return matrix;
}

/* The chosen class, and those that are confused most: with it, or with any. */
function confusedClasses(matrix) {
  const labels = [...facts.classes.keys()];
  const chosen = state.class;
  const mixed = (label) =>
    chosen === ALL
      ? labels.reduce((sum, o) => sum + (o === label ? 0 : matrix[label][o] + matrix[o][label]), 0)
      : label === chosen
        ? Infinity
        : matrix[label][chosen] + matrix[chosen][label];
  const order = labels.map((label) => [mixed(label), label]).sort(([a], [b]) => b - a);
  return order.slice(0, MOST_CONFUSED).map(([, label]) => label).sort((a, b) => a - b);
}

function confusionCell(matrix, truth, said) {
  if (truth === ALL && said === ALL) return cell("");
  const number = matrix[truth][said];
  const total = matrix[truth].reduce((sum, value) => sum + value, 0);
  const involved = [truth, said].includes(state.class) || state.class === ALL;
  const style = `${truth === said ? "hit" : ""} ${involved ? "" : "dim"}`.trim();
  const square = cell(whole(number), { class: style || null });
  shade(square, total ? number / total : 0, truth === said ? "--heat" : "--wrong");
  return square;
}

function shade(element, part, color = "--heat") {
  element.style.background = `rgb(var(${color}) / ${(0.5 * part).toFixed(3)})`;
}

function drawConfusion() {
  const matrix = confusionMatrix();
  const shown = confusedClasses(matrix);
  const heads = ["Object \\ said", ...shown.map((label) => NAMES[label]), "missed"].map(column);
  const rows = [...shown, ALL].map((truth) =>
    el(
      "tr",
      {},
      rowHead(truth === ALL ? "background" : NAMES[truth]),
      ...[...shown, ALL].map((said) => confusionCell(matrix, truth, said)),
    ),
  );
  setRows("confusion-table", el("tr", {}, ...heads), rows);
  const left = ALL - shown.length;
  byId("confusion-note").textContent =
    "Shading: share of the row. An object that a detection of another class takes is not free " +
    "for its own class any more, so numbers may differ a little from those above." +
    (left ? ` Left out: ${left} of ${ALL} classes, those that are confused least.` : "");
}

/* Size, shape, place */

function drawParts(id, names, parts) {
  const head = ["", "Objects", "AP", ""].map((name) => (name ? column(name) : el("td")));
  const rows = parts.map((part, i) => {
    const ap = part.ap[state.class];
    const bar = el("span", { class: "bar" });
    bar.style.width = `${ap ?? 0}%`;
    const cells = [cell(whole(part.boxes[state.class])), cell(perCent(ap))];
    return el("tr", {}, rowHead(names[i]), ...cells, cell(bar, { class: "wide" }));
  });
  setRows(id, el("tr", {}, ...head), rows);
}

function drawPlaces() {
  const [rows, columns] = [["top", "middle", "bottom"], ["left", "centre", "right"]];
  const square = (part) => {
    const ap = part.ap[state.class];
    const inside = cell(el("strong", {}, perCent(ap)));
    inside.append(`${whole(part.boxes[state.class])} obj.`);
    shade(inside, (ap ?? 0) / 100);
    return inside;
  };
  setRows(
    "place-table",
    el("tr", {}, el("td"), ...columns.map(column)),
    rows.map((name, i) =>
      el("tr", {}, rowHead(name), ...facts.places.slice(3 * i, 3 * i + 3).map(square)),
    ),
  );
}

/* Images */

function buildPicture(picture) {
  const { width, height } = picture;
  const title = `${picture.list} ${picture.rank}: ${picture.name}`;
  const image = { href: `data:image/jpeg;base64,${picture.jpeg}`, width, height };
  const overlay = svg("g");
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img" },
    ...(picture.jpeg ? [svg("image", image)] : []),
    overlay,
  );
  const caption = el("div");
  const enlarge = el("button", { type: "button", "aria-pressed": "false" }, "Enlarge");
  const figure = el(
    "figure",
    {},
    drawing,
    el("figcaption", {}, el("div", { class: "row" }, el("strong", {}, title), enlarge), caption),
  );
  enlarge.addEventListener("click", () => {
    enlarge.setAttribute("aria-pressed", figure.classList.toggle("large"));
  });
  byId("pictures").append(figure);
  return { ...picture, figure, drawing, overlay, caption };
}

const ofClass = ([, , , , label]) => state.class === ALL || label === state.class;

/* Boxes by what became of them: [kind, box, text]. */
function outcomes(picture) {
  const detections = picture.detections.filter((d) => ofClass(d) && d[5] >= state.level);
  const found = new Set(detections.map((d) => d[6]));
  const said = (d) => `${NAMES[d[4]]} ${asScore(d[5])}`;
  return [
    ...picture.objects
      .map((box, i) => [found.has(i) ? "found" : "missed", box, NAMES[box[4]]])
      .filter(([, box]) => ofClass(box)),
    ...detections.map((d) => [d[6] < 0 ? "false" : "correct", d, said(d)]),
  ];
}

function drawBox(kind, [x, y, width, height], text, size) {
  const place = { x, y, width, height };
  const label = { x: x + size / 4, y: Math.max(y - size / 3, size), "font-size": size };
  return [
    svg("rect", { class: "box under", ...place }),
    svg("rect", { class: `box over ${kind}`, ...place }, svg("title", {}, `${text} (${kind})`)),
    svg("text", { class: kind, ...label, "stroke-width": size / 5 }, text),
  ];
}

function drawPicture(picture) {
  const boxes = outcomes(picture);
  const shows = picture.objects.some(ofClass) || boxes.length > 0;
  picture.figure.hidden = !(shows && state.lists.has(picture.list));
  if (picture.figure.hidden) return;
  const size = Math.max(picture.width, picture.height) / 38;
  const drawn = boxes.filter(([kind]) => state.kinds.has(kind));
  const parts = drawn.map((box) => drawBox(...box, size));
  const layer = (number) => parts.map((part) => part[number]);
  picture.overlay.replaceChildren(...layer(0), ...layer(1), ...layer(2)); // text above all boxes
  const number = (kind) => boxes.filter(([other]) => other === kind).length;
  const [correct, wrong, missed] = ["correct", "false", "missed"].map(number);
  const { f1 } = measure(correct, wrong, correct + missed);
  const text = `${correct} correct, ${wrong} false, ${missed} missed, F1 ${share(f1)}`;
  const unread = picture.jpeg ? "" : "The image could not be read. ";
  picture.caption.textContent = unread + text;
  picture.drawing.setAttribute("aria-label", `${picture.name}: ${text}`);
}

function drawPictures() {
  cards.forEach(drawPicture);
  byId("no-pictures").hidden = cards.some(({ figure }) => !figure.hidden);
}

function buildToggles(attribute, chosen) {
  for (const button of document.querySelectorAll(`button[data-${attribute}]`)) {
    const value = button.dataset[attribute];
    button.addEventListener("click", () => {
      if (!chosen.delete(value)) chosen.add(value);
      button.setAttribute("aria-pressed", chosen.has(value));
      drawPictures();
    });
  }
}

/* All of it */

function draw() {
  drawFilters();
  drawCards();
  drawApTable();
  drawCurves();
  drawThresholdChart();
  drawThresholdTable();
  drawConfusion();
  drawParts("size-table", ["small", "medium", "large"], facts.sizes);
  drawParts("ratio-table", ["wide, < 0.71", "square", "tall, > 1.41"], facts.ratios);
  drawPlaces();
  drawPictures();
}

describe();
buildFilters();
buildToggles("list", state.lists);
buildToggles("kind", state.kinds);
const cards = facts.pictures.map(buildPicture);
setClass(ALL);
setLevel(state.level);
