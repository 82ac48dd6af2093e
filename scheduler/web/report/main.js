// Puts the page together: heading, summary, legend, colour scheme, and who redraws when.

function drawHeading() {
  document.title = `${DATA.sweep} · saesweep report`;
  document.getElementById("title").textContent = DATA.sweep;
  const models = [...new Set(ROWS.filter(isTrial).map((row) => row.model).filter(Boolean))];
  document.getElementById("subtitle").textContent = [
    models.length ? `model ${models.join(", ")}` : "stored activations, no model",
    HOOKS.length === 1 ? HOOKS[0] : `${HOOKS.length} hooks`,
  ].filter(Boolean).join("  ·  ");
  document.getElementById("made-by").textContent = `Made by saesweep${DATA.commit ? `, commit ${DATA.commit}` : ""}. This file needs no network.`;
}

function fact(big, small, bad = false) {
  const value = element("b", { textContent: big });
  if (bad) value.className = "bad";
  return element("div", { className: "fact" }, value, element("span", { textContent: small }));
}

function drawFacts() {
  const trials = hookRows().filter(isTrial);
  const done = trials.filter((row) => row.state === "done");
  const facts = [fact(`${done.length} / ${trials.length}`, "trials done")];
  const lost = ["diverged", "failed", "stopped", "cancelled"]
    .map((name) => [name, trials.filter((row) => row.state === name).length]).filter(([, count]) => count > 0);
  if (lost.length) {
    facts.push(fact(String(lost.reduce((sum, [, count]) => sum + count, 0)), lost.map(([name, count]) => `${count} ${name}`).join(", "), true));
  }
  const metric = trials.some((row) => row.model !== null) ? METRICS.loss : METRICS.fve;
  for (const [m, label] of [[metric, metric.label.toLowerCase()], [METRICS.coverage, "board coverage"]]) {
    const best = done.filter((row) => scoreOf(row, m.key)).sort((a, b) => valueOf(b, m.key) - valueOf(a, m.key))[0];
    if (best) facts.push(fact(valueOf(best, m.key).toFixed(3), `best ${label}: ${nameOf(best)}, L0 ${fixed(valueOf(best, METRICS.l0.key), 0)}`));
  }
  const front = trials.filter((row) => row.front);
  if (front.length) {
    const count = (arch) => front.filter((row) => row.arch === arch).length;
    const leader = [...ARCHS].sort((a, b) => count(b) - count(a))[0];
    facts.push(fact(String(front.length), `on the front, ${count(leader)} of them ${leader}`));
  }
  const tokens = trials.reduce((sum, row) => sum + row.tokens, 0);
  facts.push(fact(compact(tokens), "tokens trained on, all trials"));
  document.getElementById("facts").replaceChildren(...facts);
}

function drawLegend() {
  const present = new Set(hookRows().filter(isTrial).map((row) => row.arch));
  const chips = ARCHS.filter((arch) => present.has(arch)).map((arch) => {
    const count = hookRows().filter((row) => row.arch === arch && isTrial(row)).length;
    const chip = element("button", { type: "button", className: "chip" }, markOf(arch), `${arch} `,
      element("span", { className: "muted", textContent: count }));
    chip.setAttribute("aria-pressed", String(!state.hidden.has(arch)));
    chip.addEventListener("click", () =>
      change((s) => (s.hidden.has(arch) ? s.hidden.delete(arch) : s.hidden.add(arch))));
    return chip;
  });
  document.getElementById("legend").replaceChildren(...chips);
  const widths = new Set(hookRows().map((row) => row.params.d_sae).filter(Boolean));
  document.getElementById("encoding").textContent =
    `${widths.size > 1 ? "Larger mark: wider dictionary. " : ""}Filled: on the front. Bars: 95 % interval.`;
}

function setUpHooks() {
  const select = document.getElementById("hook");
  for (const hook of HOOKS) select.append(element("option", { value: hook, textContent: hook || "stored activations" }));
  document.getElementById("hook-picker").hidden = HOOKS.length < 2;
  select.addEventListener("change", () => change((s) => {
    s.hook = select.value;
    s.picked.clear();
  }));
}

// Follows the system until the reader chooses; the choice is kept where the browser allows it.
function setUpTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("saesweep-theme"); } catch { /* a file may have no storage */ }
  const button = document.getElementById("theme");
  const apply = () => {
    const theme = chosen ?? (system.matches ? "dark" : "light");
    document.documentElement.dataset.theme = theme;
    button.textContent = theme === "dark" ? "☀ Light" : "☾ Dark";
  };
  button.addEventListener("click", () => {
    chosen = isDark() ? "light" : "dark";
    try { localStorage.setItem("saesweep-theme", chosen); } catch { /* as above */ }
    apply();
    change();
  });
  system.addEventListener("change", () => {
    apply();
    change();
  });
  apply();
}

setUpTheme();
setUpHooks();
setUpCurves();
drawHeading();
document.getElementById("filter").addEventListener("input", (event) => change((s) => { s.filter = event.target.value; }));
document.getElementById("clear").addEventListener("click", () => change((s) => {
  s.picked.clear();
  openRows.clear();
}));
for (const redraw of [drawFacts, drawLegend, drawScatters, drawCurves, drawDensities, drawTable]) onChange(redraw);
change();
