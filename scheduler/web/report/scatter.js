// Sparsity against quality: a point a trial with its 95 % interval, the front, and the baselines as
// lines with their names on them.

const scatters = [];

function sharedOptions() {
  return {
    animation: false,
    maintainAspectRatio: false,
    layout: { padding: { top: 6, right: 10 } },
    plugins: { legend: { display: false }, tooltip: tooltipStyle() },
  };
}

function tooltipStyle() {
  return {
    backgroundColor: isDark() ? "#2b323d" : "#14181f", titleColor: "#fff", bodyColor: "#e4e8ef",
    padding: 10, cornerRadius: 8, displayColors: false, titleFont: { size: 13 }, bodyFont: { size: 12.5 },
  };
}

const axisStyle = (title) => ({
  title: { display: true, text: title, color: cssColor("--soft"), font: { size: 12.5 } },
  ticks: { color: cssColor("--soft"), font: { size: 12 } },
  grid: { color: cssColor("--grid") },
  border: { color: cssColor("--line") },
});

// 1, 2, 5, 10, ... and nothing between.
function logTick(value) {
  const lead = Number(value.toExponential().slice(0, 1));
  return Math.abs(value / 10 ** Math.floor(Math.log10(value) + 1e-9) - lead) < 1e-9 && [1, 2, 5].includes(lead) ? compact(value) : "";
}

const logGrid = ({ tick }) => (tick && logTick(tick.value) ? cssColor("--grid") : "transparent");

function logRange(values) {
  const low = Math.min(...values), high = Math.max(...values);
  const pad = Math.max((high / low) ** 0.06, 1.12);
  return { min: low / pad, max: high * pad };
}

// The range of the points, with their intervals, so that a baseline far away does not flatten them.
function valueRange(rows, key) {
  let low = Infinity, high = -Infinity;
  for (const row of rows) {
    const score = scoreOf(row, key);
    low = Math.min(low, score.low ?? score.value);
    high = Math.max(high, score.high ?? score.value);
  }
  const pad = Math.max((high - low) * 0.08, 1e-3);
  return { min: low - pad, max: high + pad };
}

// Radius says width: the widest dictionary has the largest mark.
function radiusOf(row) {
  const widths = [...new Set(hookRows().map((r) => r.params.d_sae).filter(Boolean))].sort((a, b) => a - b);
  const rank = widths.indexOf(row.params.d_sae);
  return rank < 0 || widths.length < 2 ? 5 : 4 + (3.2 * rank) / (widths.length - 1);
}

const intervalBars = {
  id: "intervalBars",
  beforeDatasetsDraw(chart) {
    const { ctx, scales, chartArea } = chart;
    const crowded = chart.data.datasets.reduce((sum, set) => sum + (set.points ? set.data.length : 0), 0) > 160;
    ctx.save();
    ctx.beginPath();
    ctx.rect(chartArea.left, chartArea.top, chartArea.width, chartArea.height);
    ctx.clip();
    for (const set of chart.data.datasets) {
      if (!set.points) continue;
      for (const point of set.data) {
        const marked = point.front || state.picked.has(point.row.index);
        if (crowded && !marked) continue;
        ctx.strokeStyle = withAlpha(colorOf(point.row.arch), marked ? 0.75 : 0.35);
        ctx.lineWidth = marked ? 1.6 : 1;
        ctx.beginPath();
        if (point.score.low !== null) {
          ctx.moveTo(scales.x.getPixelForValue(point.x), scales.y.getPixelForValue(point.score.low));
          ctx.lineTo(scales.x.getPixelForValue(point.x), scales.y.getPixelForValue(point.score.high));
        }
        if (point.l0.low !== null && point.l0.low > 0) {
          ctx.moveTo(scales.x.getPixelForValue(point.l0.low), scales.y.getPixelForValue(point.y));
          ctx.lineTo(scales.x.getPixelForValue(point.l0.high), scales.y.getPixelForValue(point.y));
        }
        ctx.stroke();
      }
    }
    ctx.restore();
  },
};

// Baselines: a dashed line with its name in the right margin; one outside of the range is named at
// the edge it lies beyond. Names never overlap: each keeps its distance from its neighbours. On a
// telephone the margin would take half of the chart: there the names stand below it.
const phone = matchMedia("(max-width: 560px)");
phone.addEventListener("change", () => change());
const LABEL_FONT = "11.5px system-ui, sans-serif";
const LABEL_GAP = 15;
const baselinesOf = (key) => hookRows().filter((row) => !isTrial(row) && scoreOf(row, key))
  .map((row) => ({ name: nameOf(row), value: valueOf(row, key) })).sort((a, b) => b.value - a.value);
const baselineText = ({ name, value }) => `${name} ${value.toFixed(3)}`;

const baselineLines = {
  id: "baselineLines",
  beforeDatasetsDraw(chart) {
    const { ctx, scales, chartArea } = chart;
    const labels = chart.options.plugins.baselineLines.baselines
      .map((baseline) => {
        const beyond = baseline.value > scales.y.max ? " ↑" : baseline.value < scales.y.min ? " ↓" : "";
        const line = Math.min(Math.max(scales.y.getPixelForValue(baseline.value), chartArea.top), chartArea.bottom);
        return { text: baselineText(baseline) + beyond, inside: beyond === "", line, at: line };
      });
    for (let i = 1; i < labels.length; ++i) labels[i].at = Math.max(labels[i].at, labels[i - 1].at + LABEL_GAP);
    for (let i = labels.length - 1, limit = chartArea.bottom; i >= 0; --i, limit -= LABEL_GAP) {
      labels[i].at = Math.min(labels[i].at, limit);
    }
    ctx.save();
    ctx.font = LABEL_FONT;
    ctx.textBaseline = "middle";
    for (const label of labels) {
      if (label.inside) {
        ctx.strokeStyle = withAlpha(isDark() ? "#98a2b1" : "#5a6472", 0.7);
        ctx.setLineDash([5, 4]);
        ctx.beginPath();
        ctx.moveTo(chartArea.left, label.line);
        ctx.lineTo(chartArea.right, label.line);
        ctx.stroke();
        ctx.setLineDash([]);
        if (phone.matches) continue;
        ctx.beginPath();
        ctx.moveTo(chartArea.right, label.line);
        ctx.lineTo(chartArea.right + 8, label.at);
        ctx.stroke();
      }
      if (phone.matches) continue;
      ctx.fillStyle = cssColor("--soft");
      ctx.fillText(label.text, chartArea.right + 11, label.at);
    }
    ctx.restore();
  },
};

function labelMargin(baselines) {
  if (baselines.length === 0 || phone.matches) return 12;
  const ctx = document.createElement("canvas").getContext("2d");
  ctx.font = LABEL_FONT;
  return 14 + Math.max(...baselines.map((baseline) => ctx.measureText(`${baselineText(baseline)} ↓`).width));
}

function drawScatter(canvas, metric) {
  const all = hookRows();
  const scored = all.filter((row) => isTrial(row) && valueOf(row, METRICS.l0.key) > 0 && scoreOf(row, metric.key));
  const shown = new Set(chartRows().map((row) => row.index));
  const front = frontOf(all, metric.key);
  const onFront = new Set(front.map((row) => row.index));
  const datasets = ARCHS.filter((arch) => !state.hidden.has(arch)).map((arch) => ({
    label: arch,
    points: true,
    data: scored.filter((row) => row.arch === arch && shown.has(row.index)).map((row) => ({
      x: valueOf(row, METRICS.l0.key), y: valueOf(row, metric.key), row, front: onFront.has(row.index),
      score: scoreOf(row, metric.key), l0: scoreOf(row, METRICS.l0.key),
    })),
    pointStyle: styleOf(arch).shape,
    radius: ({ raw }) => (raw ? radiusOf(raw.row) : 5),
    hoverRadius: ({ raw }) => (raw ? radiusOf(raw.row) + 2 : 7),
    backgroundColor: ({ raw }) => withAlpha(colorOf(arch), raw?.front ? 0.95 : 0.3),
    borderColor: ({ raw }) => (raw && state.picked.has(raw.row.index) ? cssColor("--ink") : colorOf(arch)),
    borderWidth: ({ raw }) => (raw && state.picked.has(raw.row.index) ? 2.6 : 1.2),
  }));
  datasets.push({
    type: "line", label: "front", order: 1, pointRadius: 0, pointHitRadius: 0, borderWidth: 1.6,
    borderColor: withAlpha(isDark() ? "#e8ebf0" : "#14181f", 0.5),
    data: front.map((row) => ({ x: valueOf(row, METRICS.l0.key), y: valueOf(row, metric.key) })),
  });
  const baselines = baselinesOf(metric.key);
  const options = sharedOptions();
  options.plugins.baselineLines = { baselines };
  options.layout.padding.right = labelMargin(baselines);
  options.plugins.tooltip = {
    ...options.plugins.tooltip,
    filter: (item) => item.dataset.points,
    callbacks: {
      title: (items) => (items.length ? nameOf(items[0].raw.row) : ""),
      label: ({ raw }) => [
        `L0  ${intervalText(raw.l0, 1)}`, `${metric.label}  ${intervalText(raw.score)}`,
        ...(raw.front ? ["on the front"] : []), ...(raw.row.tied ? ["tied with the row above it"] : []),
      ],
    },
  };
  options.scales = {
    x: { type: "logarithmic", ...axisStyle(METRICS.l0.axis), ...logRange(scored.map((row) => valueOf(row, METRICS.l0.key))) },
    y: { ...axisStyle(metric.axis), ...valueRange(scored, metric.key) },
  };
  options.scales.x.ticks.callback = logTick;
  options.scales.x.ticks.maxRotation = 0;
  options.scales.x.ticks.autoSkip = false;
  options.scales.x.grid.color = logGrid;
  options.scales.y.ticks.callback = (value, i, ticks) => (i === 0 || i === ticks.length - 1 ? "" : compact(value));
  options.onClick = (event, active) => {
    const hit = active.map((a) => datasets[a.datasetIndex].data[a.index]?.row).find(Boolean);
    if (hit) togglePick(hit);
  };
  options.onHover = (event, active) => {
    event.native.target.style.cursor = active.length ? "pointer" : "default";
  };
  return new Chart(canvas, { type: "scatter", data: { datasets }, options, plugins: [intervalBars, baselineLines] });
}

function drawScatters() {
  for (const chart of scatters.splice(0)) chart.destroy();
  const holder = document.getElementById("scatters");
  holder.replaceChildren();
  const all = hookRows();
  const first = all.some((row) => row.model !== null) ? METRICS.loss : METRICS.fve;
  const others = [METRICS.coverage, METRICS.reconstruction, METRICS.fve].filter((m) => m !== first);
  for (const metric of [first, ...others]) {
    const scored = all.filter((row) => isTrial(row) && valueOf(row, METRICS.l0.key) > 0 && scoreOf(row, metric.key));
    if (scored.length === 0 && metric !== first) continue;
    const heading = element("div", {}, element("h2", { textContent: `${metric.label} at a given sparsity` }),
      element("p", { className: "muted", textContent: noteOf(metric, scored.length) }));
    const card = element("section", { className: "card" }, element("div", { className: "card-head" }, heading));
    holder.append(card);
    if (scored.length === 0) {
      card.append(element("p", { className: "empty", textContent: `No trial has ${metric.label.toLowerCase()} and L0 yet.` }));
      continue;
    }
    const canvas = element("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${metric.label} against L0 of ${scored.length} trials; the table below holds the numbers.`);
    card.append(element("div", { className: "plot" }, canvas));
    const baselines = baselinesOf(metric.key);
    if (phone.matches && baselines.length) {
      card.append(element("p", { className: "muted",
        textContent: `Dashed, where in range: ${baselines.map(baselineText).join(", ")}.` }));
    }
    scatters.push(drawScatter(canvas, metric));
  }
  // An even number of small charts fills the rows; a last one alone takes the width.
  const cards = holder.children;
  if (cards.length > 1 && cards.length % 2 === 0) cards[cards.length - 1].style.gridColumn = "1 / -1";
}

function noteOf(metric, count) {
  const front = frontOf(hookRows(), metric.key);
  if (front.length === 0) return "";
  const best = front[front.length - 1];
  return `Up and to the left is better. Best: ${intervalText(scoreOf(best, metric.key), 3)} at L0 ${fixed(valueOf(best, METRICS.l0.key), 1)} (${nameOf(best)}); ${front.length} of ${count} trials on the front.`;
}
