// How often features fire: a small histogram for each picked trial, or for the front if none is
// picked, all on one scale so that they can be compared.

const MOST_DENSITIES = 12;
const densityCharts = [];

const hasDensity = (row) => row.density && row.density.counts.length > 0;

function densityRows() {
  const rows = chartRows().filter(hasDensity);
  const picked = rows.filter((row) => state.picked.has(row.index));
  if (picked.length) return picked.slice(0, MOST_DENSITIES);
  const front = rows.filter((row) => row.front).sort((a, b) => valueOf(a, METRICS.l0.key) - valueOf(b, METRICS.l0.key));
  const chosen = front.length ? front : rows;
  if (chosen.length <= 8) return chosen;
  // Spread over the front, its ends included.
  return Array.from({ length: 8 }, (_, i) => chosen[Math.round((i * (chosen.length - 1)) / 7)]);
}

function drawDensities() {
  for (const chart of densityCharts.splice(0)) chart.destroy();
  const holder = document.getElementById("densities");
  holder.replaceChildren();
  const rows = densityRows();
  document.getElementById("density-empty").hidden = rows.length > 0;
  const picked = rows.some((row) => state.picked.has(row.index));
  document.getElementById("density-note").textContent = rows.length === 0 ? "" :
    `Features by the share of tokens they fire on. ${picked ? "The trials you picked." : "Trials of the front, from sparse to dense; pick others in the charts or the table."}`;
  const shares = rows.map((row) => {
    const total = row.density.counts.reduce((sum, n) => sum + n, 0) + row.density.never;
    return { row, total, values: row.density.counts.map((n) => (total ? n / total : 0)) };
  });
  const top = roundUp(Math.max(...shares.flatMap(({ values }) => values), 1e-3));
  for (const { row, total, values } of shares) {
    const never = total ? row.density.never / total : 0;
    const canvas = element("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Histogram of feature densities of ${nameOf(row)}`);
    holder.append(element("div", { className: "multiple" },
      element("h3", {}, markOf(row.arch), element("span", { textContent: nameOf(row) })),
      element("p", { className: "muted", textContent: `${compact(total)} features, ${compact(Math.round(1000 * never) / 10)} % never fired` }),
      element("div", { className: "plot" }, canvas)));
    densityCharts.push(drawDensity(canvas, row, values, top));
  }
}

function drawDensity(canvas, row, values, top) {
  const edges = row.density.log10_edges;
  const options = sharedOptions();
  options.parsing = false;
  options.layout = { padding: 0 };
  options.interaction = { mode: "index", intersect: false };
  options.plugins.tooltip = {
    ...options.plugins.tooltip,
    callbacks: {
      title: (items) => {
        const i = items[0].dataIndex;
        return `on ${percent(10 ** edges[i])} to ${percent(10 ** edges[i + 1])} of tokens`;
      },
      label: (item) => `${compact(100 * item.parsed.y)} % of features`,
    },
  };
  options.scales = {
    x: { type: "linear", ...axisStyle(""), min: edges[0], max: edges[edges.length - 1], offset: false },
    y: { ...axisStyle(""), min: 0, max: top },
  };
  for (const axis of [options.scales.x, options.scales.y]) {
    axis.title.display = false;
    axis.ticks.font = { size: 10.5 };
  }
  options.scales.x.grid.display = false;
  options.scales.x.ticks.stepSize = 2;
  options.scales.x.ticks.maxRotation = 0;
  options.scales.x.ticks.callback = (power) => percent(10 ** power);
  options.scales.y.ticks.stepSize = top / 2;
  options.scales.y.ticks.callback = (value) => `${compact(100 * value)} %`;
  return new Chart(canvas, {
    type: "bar",
    data: {
      datasets: [{
        data: values.map((y, i) => ({ x: (edges[i] + edges[i + 1]) / 2, y })),
        backgroundColor: colorOf(row.arch), barPercentage: 1, categoryPercentage: 0.94,
      }],
    },
    options,
  });
}

// To a round number whose half is round too.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 3, 4, 6, 8, 10].find((step) => step * power >= value * 0.999);
}

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
function percent(share) {
  const value = share * 100;
  if (value >= 0.009) return `${Number(value.toPrecision(2))} %`;
  return `10⁻${SUPERSCRIPTS[Math.round(-Math.log10(value))]} %`;
}
