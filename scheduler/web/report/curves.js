// Learning curves: a line a trial over training tokens. The scale is that of the trials that
// finished; one that diverged leaves it at the top. What held-out rows say is a dotted line beside it.

const CURVE_LABELS = {
  loss: "loss", mse: "squared error", fve: "fraction of variance explained", l0: "L0",
  dead_fraction: "share of dead features", grad_norm: "gradient norm", lr: "learning rate",
};
const LOG_BY_NATURE = new Set(["loss", "mse", "l0", "grad_norm"]);
let curveChart = null;
let nearRow = null;

const curveRows = () => chartRows().filter((row) => row.curve && row.curve.rows.length > 0);
const xColumn = (curve) => Math.max(curve.columns.indexOf("tokens"), 0);

function setUpCurves() {
  const columns = new Set(ROWS.flatMap((row) => row.curve?.columns ?? []));
  columns.delete("step");
  columns.delete("tokens");
  const select = document.getElementById("curve-metric");
  const known = Object.keys(CURVE_LABELS).filter((name) => columns.has(name));
  for (const name of [...known, ...[...columns].filter((c) => !known.includes(c))]) {
    select.append(element("option", { value: name, textContent: CURVE_LABELS[name] ?? words(name) }));
  }
  const log = document.getElementById("curve-log");
  log.checked = LOG_BY_NATURE.has(select.value);
  select.addEventListener("change", () => {
    log.checked = LOG_BY_NATURE.has(select.value);
    drawCurves();
  });
  log.addEventListener("change", drawCurves);
  document.getElementById("curve-held-out-choice").hidden = !ROWS.some((row) => row.curve?.held_out);
  document.getElementById("curve-held-out").addEventListener("change", drawCurves);
}

function curvePoints(curve, name, log) {
  const column = curve.columns.indexOf(name);
  if (column < 0) return [];
  const x = xColumn(curve);
  return curve.rows
    .map((values) => ({ x: values[x], y: values[column] }))
    .filter((point) => Number.isFinite(point.y) && (!log || point.y > 0));
}

// From the smallest to the largest value, less the few most extreme ones.
function curveRange(lines, log) {
  const steady = lines.filter(({ row }) => row.state === "done");
  const values = (steady.length ? steady : lines).flatMap(({ data }) => data.map((point) => point.y)).sort((a, b) => a - b);
  if (values.length === 0) return {};
  const low = values[Math.floor((values.length - 1) * 0.002)], high = values[Math.floor((values.length - 1) * 0.995)];
  if (log) return logRange([low, high]);
  const pad = (high - low) * 0.06 || 1e-3;
  return { min: low - pad, max: high + pad };
}

function drawCurves() {
  curveChart?.destroy();
  curveChart = null;
  const rows = curveRows();
  const name = document.getElementById("curve-metric").value;
  const log = document.getElementById("curve-log").checked;
  const canvas = document.getElementById("curves");
  document.getElementById("curves-empty").hidden = rows.length > 0;
  canvas.parentElement.hidden = rows.length === 0;
  document.getElementById("curve-controls").hidden = rows.length === 0;
  const unfinished = rows.filter((row) => row.state !== "done").length;
  document.getElementById("curves-note").textContent = rows.length === 0 ? "" :
    `${rows.length} trials${unfinished ? `, ${unfinished} of them not finished (dashed)` : ""}. Point at a line to see which it is; click to keep it in view.`;
  if (rows.length === 0) return;

  const lines = rows.map((row) => ({ row, heldOut: false, data: curvePoints(row.curve, name, log) }));
  if (document.getElementById("curve-held-out").checked) {
    for (const row of rows) {
      const data = row.curve.held_out ? curvePoints(row.curve.held_out, name, log) : [];
      if (data.length) lines.push({ row, heldOut: true, data });
    }
  }
  const faint = Math.min(0.75, 0.22 + 12 / rows.length);
  const someone = state.picked.size > 0;
  const isNear = (row) => nearRow === row.index || state.picked.has(row.index);
  const datasets = lines.map(({ row, heldOut, data }) => ({
    row, data, heldOut, label: heldOut ? `${nameOf(row)}, held-out rows` : nameOf(row),
    // A short run has one point of held-out rows, which is no line.
    pointRadius: heldOut && data.length < 3 ? 2 : 0,
    pointBackgroundColor: colorOf(row.arch),
    pointHitRadius: 8, pointHoverRadius: 4, tension: 0,
    borderDash: heldOut ? [1, 3] : row.state === "done" ? [] : [5, 3],
    borderColor: () => withAlpha(colorOf(row.arch), isNear(row) ? 1 : someone ? faint * 0.35 : faint),
    borderWidth: () => (isNear(row) ? 3 : 1.3),
    hoverBackgroundColor: colorOf(row.arch),
    order: row.index,
  }));
  const options = sharedOptions();
  options.parsing = false;
  options.normalized = true;
  options.interaction = { mode: "nearest", intersect: false, axis: "xy" };
  options.plugins.tooltip = {
    ...options.plugins.tooltip,
    filter: (item, position) => position === 0,
    callbacks: {
      title: (items) => items[0]?.dataset.label ?? "",
      label: (item) => [
        `${CURVE_LABELS[name] ?? words(name)}  ${compact(item.parsed.y)}`, `after ${compact(item.parsed.x)} tokens`,
        ...(item.dataset.row.state === "done" ? [] : [`${item.dataset.row.state}: ${item.dataset.row.reason}`]),
      ],
    },
  };
  const xs = lines.flatMap(({ data }) => data.map((point) => point.x));
  options.scales = {
    x: { type: "linear", ...axisStyle("training tokens"), min: 0, max: Math.max(...xs) },
    y: { type: log ? "logarithmic" : "linear", ...axisStyle(CURVE_LABELS[name] ?? words(name)), ...curveRange(lines, log) },
  };
  options.scales.x.ticks.callback = compact;
  options.scales.y.ticks.callback = log ? logTick : compact;
  if (log) {
    options.scales.y.ticks.autoSkip = false;
    options.scales.y.grid.color = logGrid;
  }
  options.onHover = (event, active) => {
    const row = active.length ? datasets[active[0].datasetIndex].row.index : null;
    if (row === nearRow) return;
    nearRow = row;
    curveChart.update("none");
  };
  options.onClick = (event, active) => {
    if (active.length) togglePick(datasets[active[0].datasetIndex].row);
  };
  curveChart = new Chart(canvas, { type: "line", data: { datasets }, options });
}
