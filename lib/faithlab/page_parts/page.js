"use strict";
// Colours the tokens by the chosen score, draws the backbone, reads tokens out. State stands in the address (#score=...).
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.querySelector("form.controls");
const articles = [...document.querySelectorAll("article")];
// What can be coloured: the reasoning, and the question where the prompt holds it; of each its scores and elements.
const parts = data.map((e, a) =>
  [{ of: "question", ...e.in_question }, { ...e, of: "reasoning" }]
    .filter((part) => part.first !== null)
    .map((part) => ({
      ...part,
      list: articles[a].querySelector(`.${part.of}-list`),
      tokens: [...articles[a].querySelectorAll(`.t.${part.of}`)],
    })));
const number = (v) => (v === null ? "undefined" : Number(v.toPrecision(3)).toString());
const FIXED = { saliency: [0, 1] };
const SIGNED = new Set(["effect", "direct"]);

function chosen() {
  const read = new FormData(form);
  return { score: read.get("score"), level: read.get("level"), backbone: read.get("backbone") === "on" };
}

// One value a token of the part: its own, or its sentence's. Nothing where the score is not measured of the part.
function values(part, score, level) {
  if (!(score in part.scores)) return null;
  if (level === "token") return part.scores[score];
  const out = part.scores[score].map(() => null);
  part.sentences.forEach(([first, last], k) => {
    for (let i = first; i <= last; i++) out[i - part.first] = part.sentence_scores[score][k];
  });
  return out;
}

// The ends of the colour scale, shared by all columns and parts: effects from 0 on, attention profiles from their smallest value.
function ends(all, score) {
  if (FIXED[score]) return FIXED[score];
  const known = all.flat().filter((v) => v !== null);
  if (!known.length) return [0, 1];
  const high = known.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
  // An effect below a nat is small, however large it is among its neighbours: it must not look large.
  return SIGNED.has(score) ? [0, Math.max(1, high)] : [known.reduce((m, v) => Math.min(m, v)), high];
}

function paint() {
  const { score, level, backbone } = chosen();
  const all = parts.flat().map((part) => [part, values(part, score, level)]);
  const [low, high] = ends(all.map(([, column]) => column || []), score);
  for (const [part, column] of all) {
    part.tokens.forEach((span, i) => {
      const v = column && column[i];
      const known = v !== null;
      span.classList.toggle("undefined", column !== null && !known);
      span.classList.toggle("negative", known && SIGNED.has(score) && v < -0.02 * high);
      const share = known ? Math.min(1, Math.abs(v - low) / (high - low || 1)) : 0;
      const hue = SIGNED.has(score) && v < 0 ? "--orange" : "--blue";
      span.style.backgroundColor = known ? `rgba(var(${hue}), ${(0.75 * share).toFixed(3)})` : "";
    });
  }
  const kind = data[0].kinds[score];
  const of = kind.asked ? "Of question and reasoning." : "Of the reasoning only: it is not measured of the question, which stays without colour.";
  articles.forEach((article, a) => {
    const asked = parts[a].length > 1 ? of : "";
    article.querySelector(".what").textContent = `${kind.label}: ${kind.meaning}. ${asked}`;
  });
  document.querySelectorAll(".legend .low").forEach((e) => (e.textContent = number(low)));
  document.querySelectorAll(".legend .high").forEach((e) => (e.textContent = `${number(high)} ${kind.unit}`));
  document.querySelectorAll(".legend .signed").forEach((e) => e.classList.toggle("hidden", !SIGNED.has(score)));
  document.querySelectorAll("table.top").forEach((t) =>
    t.classList.toggle("hidden", t.dataset.score !== score || t.dataset.level !== level));
  document.querySelectorAll(".tops").forEach((e) => (e.textContent = `Strongest ${level}s`));
  articles.forEach((_, a) => arcs(a, backbone));
  articles.forEach((_, a) => say(a));
  history.replaceState(null, "", `#score=${score}&level=${level}&backbone=${backbone ? 1 : 0}`);
}

function arcs(a, show) {
  const svg = articles[a].querySelector(".arcs");
  svg.replaceChildren();
  if (!show) return;
  const box = articles[a].querySelector(".text").getBoundingClientRect();
  const most = data[a].edges.length ? data[a].edges[0][2] : 1;
  const rests = [...articles[a].querySelectorAll(".rest")];
  const rest = (i) => rests.find((r) => Number(r.dataset.first) <= i && i <= Number(r.dataset.last));
  const place = (i) => articles[a].querySelector(`[data-i="${i}"]`) || rest(i);
  for (const [source, target, flow] of data[a].edges) {
    const [from, to] = [place(source), place(target)].map((e) => e && e.getClientRects()[0]);
    if (!from || !to) continue;
    const [x1, y1] = [from.left + from.width / 2 - box.left, from.top - box.top + 3];
    const [x2, y2] = [to.left + to.width / 2 - box.left, to.top - box.top + 3];
    const lift = Math.min(26, 6 + 0.2 * Math.hypot(x2 - x1, y2 - y1));
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", `M${x1},${y1} Q${(x1 + x2) / 2},${Math.min(y1, y2) - lift} ${x2},${y2}`);
    path.setAttribute("stroke-width", (0.6 + (4 * flow) / most).toFixed(2));
    svg.append(path);
  }
}

// The token under the cursor or the arrow keys, in words; the status line is read out by screen readers.
const at = articles.map(() => null);
function say(a) {
  const status = articles[a].querySelector(".status");
  if (!at[a]) return;
  const { part, i } = at[a];
  const { score, level } = chosen();
  const column = values(part, score, level);
  const kind = data[0].kinds[score];
  const [first, last] = (level === "sentence" && sentence(part, i)) || [i, i];
  const read = part.tokens.slice(first, last + 1).map((t) => t.textContent).join("").trim();
  const token = `${level} “${read || "space"}” of the ${part.of}`;
  if (column === null) {
    status.textContent = `${token}: ${kind.label} is not measured of the ${part.of}`;
    return;
  }
  const v = column[i];
  const size = (w) => (SIGNED.has(score) ? Math.abs(w) : w); // as the tables rank them
  const rank = v === null ? 0 : 1 + new Set(column.filter((w) => w !== null && size(w) > size(v)).map(size)).size;
  const place = v === null ? "" : `, rank ${rank} in the ${part.of}`;
  status.textContent = `${token}: ${kind.label} ${number(v)} ${kind.unit}${place}`;
}

// The first and last token of the sentence that a token stands in.
function sentence(part, i) {
  const found = part.sentences.find(([first, last]) => first <= part.first + i && part.first + i <= last);
  return found && found.map((p) => p - part.first);
}

// Where an arrow leads from token i: to the next that is not white space, or at the level of sentences to the next one's first.
function step(part, i, way) {
  if (chosen().level === "sentence") {
    const starts = part.sentences.map(([first]) => first - part.first);
    const here = part.sentences.findLastIndex(([first]) => first - part.first <= i);
    return starts[i < 0 ? 0 : i < part.tokens.length ? here + way : here];
  }
  let next = i + way;
  while (part.tokens[next] && !part.tokens[next].textContent.trim()) next += way;
  return next;
}

function choose(a, part, i) {
  if (at[a]) {
    const before = at[a].part.tokens[at[a].i];
    before.classList.remove("chosen");
    before.setAttribute("aria-selected", "false");
    at[a].part.list.removeAttribute("aria-activedescendant");
  }
  at[a] = { part, i };
  const span = part.tokens[i];
  span.classList.add("chosen");
  span.setAttribute("aria-selected", "true");
  part.list.setAttribute("aria-activedescendant", span.id);
  span.scrollIntoView({ block: "nearest" });
  say(a);
}

parts.forEach((some, a) => some.forEach((part) => {
  part.list.addEventListener("click", (event) => {
    const i = part.tokens.indexOf(event.target);
    if (i >= 0) choose(a, part, i);
  });
  part.list.addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: 1, End: -1 }[event.key];
    if (way === undefined) return;
    event.preventDefault();
    const here = at[a] && at[a].part === part ? at[a].i : -1;
    const next = step(part, { Home: -1, End: part.tokens.length }[event.key] ?? here, way);
    if (part.tokens[next]) choose(a, part, next);
  });
}));

const wanted = new URLSearchParams(location.hash.slice(1));
for (const name of ["score", "level"]) {
  const radio = form.querySelector(`input[name="${name}"][value="${CSS.escape(wanted.get(name) || "")}"]`);
  if (radio) radio.checked = true;
}
if (wanted.has("backbone")) form.querySelector('[name="backbone"]').checked = wanted.get("backbone") === "1";
form.addEventListener("input", paint);
let waiting = 0;
window.addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => articles.forEach((_, a) => arcs(a, chosen().backbone)), 150);
});
paint();
