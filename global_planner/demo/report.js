"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const narrow = window.matchMedia("(max-width: 640px)").matches;
const dark = window.matchMedia("screen and (prefers-color-scheme: dark)").matches;
const ink = dark ? "#e4e9f0" : "#1b2430";
const grid = dark ? "#2c3644" : "#e6eaf0";
// On a dark page black lines would be invisible, and the darkest hues nearly so.
const lighter = { "#000000": "#e4e9f0", "#0072b2": "#56b4e9", "#004c7a": "#3d93cc", "#8f3f00": "#c9793a", "#00523b": "#2f9c7b", "#7a3a5e": "#b5719a", "#566274": "#a3afbf", "#a8200d": "#ff6b54" };
function shown(value) {
  if (typeof value === "string") return lighter[value] || value;
  if (Array.isArray(value) || value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, shown(inner)]));
}
// Legends stand above their plots: one of several rows makes the whole taller, not the plot smaller.
function legendRows(figure, width) {
  const names = figure.data.filter(line => line.showlegend !== false).map(line => line.name.length);
  if (figure.layout.showlegend === false || names.length < 2) return 0;
  const across = Math.max(1, Math.floor((width - 62) / (46 + 6.6 * Math.max(...names))));
  return Math.ceil(names.length / across);
}
for (const figure of figures) {
  const place = document.getElementById(figure.id);
  if (narrow) {
    // Labels beside points would cover each other and the axis: the legend names them.
    const labelled = figure.data.filter(line => line.mode === "markers+text");
    for (const line of labelled) line.mode = "markers";
    if (labelled.length) figure.layout.showlegend = true;
  }
  const more = legendRows(figure, place.clientWidth) - 2;
  if (more > 0) place.style.height = Math.max(place.clientHeight + 19 * more, 38 * (more + 2) + 60) + "px";
  const layout = Object.assign({
    font: { family: "system-ui, -apple-system, Segoe UI, DejaVu Sans, sans-serif", size: 12, color: ink },
    margin: { l: 48, r: 14, t: 8, b: 40 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hovermode: "x unified",
    hoverlabel: { namelength: -1, bgcolor: dark ? "#252e3a" : "#ffffff", font: { color: ink } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
  }, figure.layout);
  layout.xaxis = Object.assign({ title: { text: "model minutes", standoff: 6 }, gridcolor: grid, zeroline: false, ticksuffix: "" }, figure.layout.xaxis);
  layout.yaxis = Object.assign({ gridcolor: grid, rangemode: "tozero", zerolinecolor: dark ? "#566274" : "#b8c0cc", automargin: true }, figure.layout.yaxis);
  if (narrow) layout.legend.font = { size: 10 };
  Plotly.newPlot(figure.id, dark ? figure.data.map(shown) : figure.data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
}
const withDecisions = document.getElementById("decisions") !== null;
const rows = Array.from(document.querySelectorAll("#decisions tbody tr"));
const pool = document.getElementById("pool");
const kind = document.getElementById("kind");
function filter() {
  let shown = 0;
  for (const row of rows) {
    row.hidden = (pool.value !== "" && row.dataset.pool !== pool.value) || (kind.value !== "" && row.dataset.kind !== kind.value);
    shown += row.hidden ? 0 : 1;
  }
  document.getElementById("shown").textContent = shown + " of " + rows.length;
}
if (withDecisions) {
  pool.addEventListener("change", filter);
  kind.addEventListener("change", filter);
  filter();
}
