// The rows, the words for them, and how numbers are written. Text from the data reaches the page
// through textContent only.

const DATA = JSON.parse(document.getElementById("data").textContent);
const ROWS = DATA.rows.map((row, index) => ({ ...row, index }));

const METRICS = {
  l0: { key: "core.l0", label: "L0", axis: "L0: active features per token" },
  loss: { key: "core.ce_loss_score", label: "Loss recovered", axis: "loss recovered (1 is perfect)" },
  fve: { key: "recon.fve", label: "Variance explained", axis: "fraction of variance explained" },
  coverage: { key: "board.cov_occurring", label: "Board coverage", axis: "board coverage (mean best F1)" },
  reconstruction: { key: "board.rec_micro", label: "Board reconstruction", axis: "board reconstruction (F1)" },
  dead: { key: "recon.dead_fraction", label: "Dead features", axis: "share of features that never fired" },
};

const scoreOf = (row, key) => {
  const score = row.scores[key];
  return score && Number.isFinite(score.value) ? score : null;
};
const valueOf = (row, key) => scoreOf(row, key)?.value ?? null;
const isTrial = (row) => row.baseline === null;
const qualityOf = (row) => (row.model === null || row.arch?.endsWith("crosscoder") ? METRICS.fve : METRICS.loss);

// The knob that sets how sparse a trial is: "k=16".
function sparsityOf(row) {
  for (const key of ["k", "l1", "l0_target", "l0_coefficient"]) {
    if (row.params[key] !== undefined) return `${key}=${compact(row.params[key])}`;
  }
  return "";
}

// "#17 topk 1024 k=16"; the seed where it tells trials apart.
const SEVERAL_SEEDS = new Set(ROWS.filter((row) => row.baseline === null).map((row) => row.seed)).size > 1;
function nameOf(row) {
  if (!isTrial(row)) return row.params.d_sae ? `${words(row.baseline)} ${row.params.d_sae}` : words(row.baseline);
  const number = row.number === null ? "" : `#${row.number} `;
  const seed = row.seed === null || !SEVERAL_SEEDS ? "" : `seed ${row.seed}`;
  return [`${number}${row.arch}`, row.params.d_sae, sparsityOf(row), seed].filter(Boolean).join(" ");
}

const words = (name) => name.replaceAll("_", " ");

// Four significant digits at most, without trailing noise.
function compact(value) {
  if (value === null || value === undefined || value === "") return "";
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return "";
  const size = Math.abs(value);
  if (size >= 1e9) return `${trim(value / 1e9)}G`;
  if (size >= 1e6) return `${trim(value / 1e6)}M`;
  if (size >= 1e5) return `${trim(value / 1e3)}k`;
  if (size !== 0 && size < 1e-3) return value.toExponential(1).replace("e-", "e−");
  return trim(value);
}
const trim = (value) => String(Number(value.toPrecision(4)));
const fixed = (value, digits) => (value === null ? "" : value.toFixed(digits));

// ".9812 ± .0021"
function intervalText(score, digits = 4) {
  if (!score) return "";
  const value = score.value.toFixed(digits);
  return score.low === null ? value : `${value} ± ${((score.high - score.low) / 2).toFixed(digits)}`;
}

// Rows that no other beats in both L0 (low) and `key` (high), in order of L0.
function frontOf(rows, key) {
  const sorted = rows
    .filter((row) => isTrial(row) && row.state === "done" && valueOf(row, METRICS.l0.key) !== null && valueOf(row, key) !== null)
    .sort((a, b) => valueOf(a, METRICS.l0.key) - valueOf(b, METRICS.l0.key) || valueOf(b, key) - valueOf(a, key));
  let best = -Infinity;
  return sorted.filter((row) => {
    if (valueOf(row, key) <= best) return false;
    best = valueOf(row, key);
    return true;
  });
}

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}
