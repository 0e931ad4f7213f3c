"use strict";
const $ = (what, where = document) => [...where.querySelectorAll(what)];
const root = document.documentElement, tip = document.getElementById("tip");

document.getElementById("theme").onclick = () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};

// One run at a time, by the address, so that going back works.
const show = first => {
  let run = null;
  try { run = location.hash.startsWith("#run=") ? decodeURIComponent(location.hash.slice(5)) : null; } catch { /* no such run */ }
  const article = run !== null && $("article.run").find(a => a.dataset.run === run);
  for (const a of $("article.run")) a.hidden = a !== article;
  document.getElementById("overview").hidden = Boolean(article);
  if (!first && (article || location.hash === "#overview")) { scrollTo(0, 0); (article || document.getElementById("main")).focus({ preventScroll: true }); }
};
addEventListener("hashchange", () => show(false));
show(true);

const table = document.getElementById("table"), body = table.tBodies[0], heads = $("thead th", table);
heads.forEach((head, column) => head.firstElementChild.onclick = () => {
  const up = head.getAttribute("aria-sort") === "descending";
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[column].dataset.sort ?? row.cells[column].textContent;
  const numeric = body.rows[0]?.cells[column].dataset.sort !== undefined;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    // Without a number: last, whichever way.
    if (numeric && (x === "" || y === "")) return (x === "") - (y === "");
    return (numeric ? x - y : x.localeCompare(y, "en", { numeric: true })) * (up ? 1 : -1);
  });
  body.append(...rows);
});

document.getElementById("filter").oninput = event => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of body.rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
    shown += !row.hidden;
  }
  document.getElementById("shown").textContent = `${shown} of ${body.rows.length} runs`;
};

for (const button of $("#legend button")) button.onclick = () => {
  const on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", on);
  for (const series of $("#overview g.series")) if (series.dataset.run === button.dataset.run) series.style.display = on ? "" : "none";
};

const points = chart => $("g.series", chart).filter(s => s.style.display !== "none" && s.dataset.points).flatMap(s =>
  s.dataset.points.split(";").map(text => { const [x, y, ...words] = text.split(","); return { x: +x, y: +y, words: `${s.dataset.name}: ${words.join(",")}` }; }));
const say = (svg, point) => {
  const at = new DOMPoint(point.x, point.y).matrixTransform(svg.getScreenCTM());
  tip.textContent = point.words;
  tip.hidden = false;
  tip.style.left = `${Math.max(4, Math.min(at.x + 12, innerWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${Math.max(4, at.y - tip.offsetHeight - 10)}px`;
};
for (const chart of $(".chart")) {
  const svg = chart.firstElementChild;
  let index = -1;
  chart.onpointermove = event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const far = p => Math.hypot(p.x - at.x, p.y - at.y);
    const near = points(chart).reduce((best, p) => (best === null || far(p) < far(best) ? p : best), null);
    if (near && far(near) < 40) say(svg, near); else tip.hidden = true;
  };
  chart.onpointerleave = chart.onblur = () => { tip.hidden = true; };
  chart.onkeydown = event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const all = points(chart);
    if (event.key === "Escape") tip.hidden = true;
    if (!step || !all.length) return;
    event.preventDefault();
    index = (index + step + all.length) % all.length;
    say(svg, all[index]);
  };
}
