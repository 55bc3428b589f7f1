"use strict";
// Colours the tokens by the chosen score, draws the backbone, reads tokens out. State stands in the address (#score=...).
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.querySelector("form.controls");
const articles = [...document.querySelectorAll("article")];
const tokens = articles.map((a) => [...a.querySelectorAll(".t.reasoning")]);
const number = (v) => (v === null ? "undefined" : Number(v.toPrecision(3)).toString());
const FIXED = { saliency: [0, 1] };
const SIGNED = new Set(["effect", "direct"]);

function chosen() {
  const read = new FormData(form);
  return { score: read.get("score"), level: read.get("level"), backbone: read.get("backbone") === "on" };
}

// One value a reasoning token: its own, or its sentence's.
function values(explanation, score, level) {
  if (level === "token") return explanation.scores[score];
  const out = explanation.scores[score].map(() => null);
  explanation.sentences.forEach(([first, last], k) => {
    for (let i = first; i <= last; i++) out[i - explanation.first] = explanation.sentence_scores[score][k];
  });
  return out;
}

// The ends of the colour scale, shared by all columns: effects from 0 on, attention profiles from their smallest value.
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
  const all = data.map((e) => values(e, score, level));
  const [low, high] = ends(all, score);
  all.forEach((column, a) => {
    column.forEach((v, i) => {
      const span = tokens[a][i];
      span.classList.toggle("undefined", v === null);
      span.classList.toggle("negative", v !== null && SIGNED.has(score) && v < -0.02 * high);
      const share = v === null ? 0 : Math.min(1, Math.abs(v - low) / (high - low || 1));
      const hue = SIGNED.has(score) && v < 0 ? "--orange" : "--blue";
      span.style.backgroundColor = v === null ? "" : `rgba(var(${hue}), ${(0.75 * share).toFixed(3)})`;
    });
  });
  const kind = data[0].kinds[score];
  document.querySelectorAll(".what").forEach((p) => (p.textContent = `${kind.label}: ${kind.meaning}.`));
  document.querySelectorAll(".legend .low").forEach((e) => (e.textContent = number(low)));
  document.querySelectorAll(".legend .high").forEach((e) => (e.textContent = `${number(high)} ${kind.unit}`));
  document.querySelectorAll("table.top").forEach((t) => t.classList.toggle("hidden", t.dataset.score !== score));
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
const at = articles.map(() => -1);
function say(a) {
  const status = articles[a].querySelector(".status");
  if (at[a] < 0) return;
  const { score, level } = chosen();
  const column = values(data[a], score, level);
  const v = column[at[a]];
  const rank = v === null ? 0 : 1 + new Set(column.filter((w) => w !== null && w > v)).size;
  const kind = data[0].kinds[score];
  const word = tokens[a][at[a]].textContent.trim() || "space";
  const place = v === null ? "" : `, rank ${rank}`;
  status.textContent = `${level === "token" ? "token" : "sentence of"} “${word}”: ${kind.label} ${number(v)} ${kind.unit}${place}`;
}

function choose(a, i) {
  if (at[a] >= 0) {
    tokens[a][at[a]].classList.remove("chosen");
    tokens[a][at[a]].setAttribute("aria-selected", "false");
  }
  at[a] = Math.max(0, Math.min(tokens[a].length - 1, i));
  const span = tokens[a][at[a]];
  span.classList.add("chosen");
  span.setAttribute("aria-selected", "true");
  articles[a].querySelector(".reasoning-list").setAttribute("aria-activedescendant", span.id);
  span.scrollIntoView({ block: "nearest" });
  say(a);
}

articles.forEach((article, a) => {
  const text = article.querySelector(".reasoning-list");
  text.addEventListener("click", (event) => {
    const i = tokens[a].indexOf(event.target);
    if (i >= 0) choose(a, i);
  });
  text.addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: 1, End: -1 }[event.key];
    if (way === undefined) return;
    event.preventDefault();
    let next = { Home: 0, End: tokens[a].length - 1 }[event.key] ?? at[a] + way;
    while (tokens[a][next] && !tokens[a][next].textContent.trim()) next += way; // white space is no stop
    if (tokens[a][next]) choose(a, next);
  });
});

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
