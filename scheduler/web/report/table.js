// The leaderboard as a table: sorted by a click on a heading, filtered by words or conditions; a
// click on a row picks it for the charts and opens what else is known about it.

const COLUMNS = [
  { id: "rank", title: "", left: true, value: (row) => row.index, cell: (row) => [
    element("span", { className: "star", textContent: row.front ? "★" : "", title: "on the front" }),
    element("span", { textContent: row.tied ? " ~" : "", title: "interval overlaps that of the row above in the ranking" })] },
  { id: "number", title: "#", value: (row) => row.number, cell: (row) => row.number ?? "" },
  { id: "trial", title: "Trial", left: true, value: (row) => row.trial ?? row.baseline, cell: (row) => (isTrial(row) ? element("code", { textContent: row.trial }) : "baseline") },
  { id: "arch", title: "Architecture", left: true, value: (row) => (isTrial(row) ? row.arch : row.baseline), cell: (row) => (isTrial(row) ? [markOf(row.arch), row.arch] : words(row.baseline)) },
  { id: "d_sae", title: "d_sae", value: (row) => row.params.d_sae ?? null, cell: (row) => row.params.d_sae ?? "" },
  { id: "sparsity", title: "Sparsity", left: true, value: (row) => row.params.k ?? row.params.l1 ?? row.params.l0_target ?? null, cell: sparsityOf },
  { id: "seed", title: "Seed", value: (row) => row.seed, cell: (row) => (isTrial(row) ? row.seed ?? "" : "") },
  { id: "l0", title: "L0", metric: METRICS.l0, digits: 1 },
  { id: "loss", title: "Loss recovered", metric: METRICS.loss, interval: true, digits: 4, down: true },
  { id: "fve", title: "FVE", metric: METRICS.fve, interval: !ROWS.some((row) => row.model !== null), digits: 3, down: true },
  { id: "spread", title: "± seeds", value: (row) => row.spread?.deviation ?? null, cell: (row) => (row.spread?.seeds > 1 ? element("span", { textContent: row.spread.deviation.toFixed(4), title: `mean ${row.spread.mean.toFixed(4)} over ${row.spread.seeds} seeds` }) : "") },
  { id: "coverage", title: "Coverage", metric: METRICS.coverage, digits: 3, down: true },
  { id: "reconstruction", title: "Reconstr.", metric: METRICS.reconstruction, digits: 3, down: true },
  { id: "dead", title: "Dead", metric: METRICS.dead, digits: 3 },
  { id: "state", title: "State", left: true, value: (row) => row.state, cell: (row) => element("span", { className: `state ${row.state}`, textContent: row.state, title: row.reason ?? "" }) },
].map((column) => (column.metric ? {
  ...column,
  value: (row) => valueOf(row, column.metric.key),
  cell: (row) => {
    const score = scoreOf(row, column.metric.key);
    if (!score) return "";
    const parts = [score.value.toFixed(column.digits)];
    if (column.interval && score.low !== null) {
      parts.push(element("span", { className: "interval", textContent: ` ± ${((score.high - score.low) / 2).toFixed(column.digits)}` }));
    }
    return parts;
  },
} : column));

// A column that no row fills says nothing.
const shownColumns = COLUMNS.filter((column) => ["rank", "state"].includes(column.id) ||
  ROWS.some((row) => (column.id === "spread" ? row.spread?.seeds > 1 : column.value(row) !== null && column.value(row) !== undefined)));
const openRows = new Set();

function drawHead() {
  const cells = shownColumns.map((column) => {
    const button = element("button", { type: "button", textContent: column.title || "Rank", onclick: () => sortBy(column) });
    const cell = element("th", { className: column.left ? "left" : "", scope: "col" }, button);
    const sorted = state.sort?.column === column;
    cell.setAttribute("aria-sort", sorted ? (state.sort.ascending ? "ascending" : "descending") : "none");
    return cell;
  });
  document.querySelector("#board thead").replaceChildren(element("tr", {}, ...cells));
}

function sortBy(column) {
  change((s) => {
    if (column.id === "rank") s.sort = null;
    else if (s.sort?.column === column) s.sort = { column, ascending: !s.sort.ascending };
    else s.sort = { column, ascending: !column.down };
  });
}

function tableRows() {
  const passes = filterOf(state.filter);
  const rows = hookRows().filter((row) => isShown(row) && passes(row));
  if (!state.sort) return rows;
  const { column, ascending } = state.sort;
  const isAbsent = (value) => value === null || value === undefined;
  return [...rows].sort((a, b) => {
    const x = column.value(a), y = column.value(b);
    if (isAbsent(x) || isAbsent(y)) return isAbsent(x) - isAbsent(y);
    const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return ascending ? order : -order;
  });
}

function detailsOf(row) {
  const list = (pairs) => element("dl", {}, ...pairs.map(([name, value]) =>
    element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value }))));
  const text = (value) => (typeof value === "object" && value !== null ? JSON.stringify(value) : compact(value));
  const cell = element("td", { colSpan: shownColumns.length });
  if (row.reason) cell.append(element("p", { className: "reason", textContent: `${row.state}: ${row.reason}` }));
  cell.append(list([
    ["model", row.model ?? "none"], ["hook", row.hook || "stored activations"], ["tokens", row.tokens.toLocaleString("en")],
    ...Object.entries(row.params).map(([name, value]) => [name, text(value)]),
    ...Object.entries(row.details ?? {}).map(([name, value]) => [name, text(value)])]));
  const scores = Object.entries(row.scores);
  if (scores.length) {
    cell.append(element("h4", { textContent: "Scores" }),
      list(scores.map(([name, score]) => [name, score.low === null ? text(score.value) : `${text(score.value)}  [${text(score.low)}, ${text(score.high)}]`])));
  }
  return element("tr", { className: "details" }, cell);
}

function drawTable() {
  drawHead();
  const rows = tableRows();
  const body = document.createDocumentFragment();
  for (const row of rows) {
    const line = element("tr", { className: `row${isTrial(row) ? "" : " baseline"}${state.picked.has(row.index) ? " picked" : ""}` },
      ...shownColumns.map((column) => {
        const content = column.cell(row);
        return element("td", { className: column.left ? "left" : "" }, ...(Array.isArray(content) ? content : [content]));
      }));
    line.tabIndex = 0;
    line.setAttribute("aria-expanded", String(openRows.has(row.index)));
    const open = () => {
      if (openRows.has(row.index)) openRows.delete(row.index);
      else openRows.add(row.index);
      if (isTrial(row)) togglePick(row);
      else drawTable();
    };
    line.addEventListener("click", open);
    line.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      open();
    });
    body.append(line);
    if (openRows.has(row.index)) body.append(detailsOf(row));
  }
  document.querySelector("#board tbody").replaceChildren(body);
  document.getElementById("table-empty").hidden = rows.length > 0;
  document.getElementById("clear").hidden = state.picked.size === 0;
  const total = hookRows().length;
  document.getElementById("table-note").textContent =
    `${rows.length === total ? total : `${rows.length} of ${total}`} rows${state.sort ? "" : ", best first"}. Click a row for everything about it.`;
}
