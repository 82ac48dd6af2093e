// What the reader has chosen: hook, hidden architectures, picked rows, filter, order. Everything on
// the page is drawn from this and nothing else.

const ARCHS = [...new Set(ROWS.filter(isTrial).map((row) => row.arch))].sort();
const HOOKS = [...new Set(ROWS.map((row) => row.hook))];

const state = {
  hook: HOOKS[0] ?? "",
  hidden: new Set(),
  picked: new Set(),
  filter: "",
  sort: null, // {column, ascending}; null: the ranking of the leaderboard
};

const redraws = [];
const onChange = (redraw) => redraws.push(redraw);
function change(edit) {
  if (edit) edit(state);
  for (const redraw of redraws) redraw();
}

const hookRows = () => ROWS.filter((row) => row.hook === state.hook);
const isShown = (row) => !isTrial(row) || !state.hidden.has(row.arch);
// Trials of the hook that pass legend and filter: what the charts draw.
function chartRows() {
  const passes = filterOf(state.filter);
  return hookRows().filter((row) => isTrial(row) && isShown(row) && passes(row));
}

const FIELD_NAMES = {
  l0: METRICS.l0.key, loss_recovered: METRICS.loss.key, fve: METRICS.fve.key,
  coverage: METRICS.coverage.key, reconstruction: METRICS.reconstruction.key, dead: METRICS.dead.key,
};

// "l0<40 arch=topk words": every condition and every word must hold. The same comparisons as
// `saesweep leaderboard --filter`.
function filterOf(text) {
  const parts = text.trim().split(/(?:\s+and)?[\s,]+/i).filter(Boolean);
  const tests = parts.map((part) => {
    const match = /^([\w.]+)(<=|>=|!=|==|=|<|>)(.+)$/.exec(part);
    if (!match) return (row) => searchText(row).includes(part.toLowerCase());
    const [, name, relation, wanted] = match;
    return (row) => compares(fieldOf(row, FIELD_NAMES[name] ?? name), relation, wanted);
  });
  return (row) => tests.every((test) => test(row));
}

function fieldOf(row, name) {
  if (row.scores[name]) return row.scores[name].value;
  if (row.params[name] !== undefined) return row.params[name];
  return ["number", "trial", "baseline", "model", "hook", "arch", "state", "seed", "tokens", "front", "tied", "reason"]
    .includes(name) ? row[name] ?? null : null;
}

function compares(value, relation, wanted) {
  if (value === null || value === undefined) return relation === "!=";
  const scale = { k: 1e3, M: 1e6, G: 1e9 }[wanted.slice(-1)];
  const number = scale ? Number(wanted.slice(0, -1)) * scale : Number(wanted);
  const equal = typeof value === "number" ? value === number : String(value) === wanted;
  switch (relation) {
    case "<": return value < number;
    case "<=": return value <= number;
    case ">": return value > number;
    case ">=": return value >= number;
    case "!=": return !equal;
    default: return equal;
  }
}

const searchText = (row) =>
  [row.trial, row.baseline, row.arch, row.state, row.reason, nameOf(row)].filter(Boolean).join(" ").toLowerCase();

function togglePick(row) {
  change((s) => (s.picked.has(row.index) ? s.picked.delete(row.index) : s.picked.add(row.index)));
}
