"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const narrow = window.matchMedia("(max-width: 640px)").matches;
for (const figure of figures) {
  const layout = Object.assign({
    font: { family: "system-ui, -apple-system, Segoe UI, DejaVu Sans, sans-serif", size: 12, color: "#1b2430" },
    margin: { l: 48, r: 14, t: 8, b: 40 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hovermode: "x unified",
    hoverlabel: { namelength: -1 },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
  }, figure.layout);
  layout.xaxis = Object.assign({ title: { text: "model minutes", standoff: 6 }, gridcolor: "#e6eaf0", zeroline: false, ticksuffix: "" }, figure.layout.xaxis);
  layout.yaxis = Object.assign({ gridcolor: "#e6eaf0", rangemode: "tozero", zerolinecolor: "#b8c0cc", automargin: true }, figure.layout.yaxis);
  if (narrow) layout.legend.font = { size: 10 };
  Plotly.newPlot(figure.id, figure.data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
}
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
pool.addEventListener("change", filter);
kind.addEventListener("change", filter);
filter();
