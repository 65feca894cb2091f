// The first view: what failed first, and the matrix of image x architecture x scenario.

const FIRST_SHOWN = 5;

function overview(report) {
  const state = { words: "", verdicts: new Set(), open: new Set() };
  const main = h("div");
  const table = h("div.card.scroll", { tabindex: 0, role: "region", "aria-label": "Table of the scenarios" });
  const status = h("p.soft", { role: "status" });
  const draw = () => {
    const shown = report.entries.filter(entry => matches(entry, state));
    table.replaceChildren(matrix(report, shown, state, draw));
    status.textContent = shown.length === report.entries.length ? ""
      : `${shown.length} of ${plural(report.entries.length, "test")} match`;
  };
  const chips = Object.entries(countsOf(report.entries)).map(([name, count]) =>
    h("button", { type: "button", "aria-pressed": "false", click: event => {
      state.verdicts.has(name) ? state.verdicts.delete(name) : state.verdicts.add(name);
      event.currentTarget.setAttribute("aria-pressed", String(state.verdicts.has(name)));
      draw();
    } }, verdict(name, count)));
  main.append(h("div.row.chips", { role: "group", "aria-label": "Show tests by verdict" }, chips));
  const first = firstFailures(report);
  if (first) main.append(first);
  const search = h("input", { type: "search", id: "filter", autocomplete: "off",
    placeholder: "name, step or reason", input: event => {
      state.words = event.target.value.toLowerCase();
      draw();
    } });
  main.append(
    h("section", { "aria-labelledby": "h-matrix" },
      h("h2", { id: "h-matrix" }, "Scenarios"),
      h("div.row", {}, h("label", { for: "filter" }, "Filter"), search, status), h("p"), table));
  draw();
  return main;
}

function countsOf(entries) {
  const counts = {};
  for (const { label } of entries) counts[label] = (counts[label] ?? 0) + 1;
  return Object.fromEntries(Object.entries(counts).sort(([a], [b]) => rank(a) - rank(b)));
}

function matches(entry, { words, verdicts }) {
  if (verdicts.size && !verdicts.has(entry.label)) return false;
  return words.split(/\s+/).every(word => entry.words.includes(word));
}

// --- what failed first --------------------------------------------------------------------------

function firstFailures(report) {
  const moments = [];
  for (const entry of report.entries) {
    const { test, run } = entry;
    if (test.clock === null || test.clock === undefined) continue;
    const began = Date.parse(run.began) / 1000;
    let machines = test.first ?? [];
    if (!machines.length && !QUIET.includes(entry.label))
      machines = [{ machine: "", step: reasonOf(test), end: test.moment }];
    for (const each of machines)
      moments.push({ entry, ...each, at: test.clock + each.end, after: test.clock + each.end - began });
  }
  if (!moments.length) return null;
  moments.sort((a, b) => a.at - b.at);
  const from = Math.min(...report.runs.map(run => Date.parse(run.began) / 1000));
  const to = Math.max(...moments.map(moment => moment.at), from + 1);
  const list = h("ol.first.card");
  const row = moment => {
    const dot = h("i");
    dot.style.left = `${Math.max(0, Math.min(100, 100 * (moment.at - from) / (to - from)))}%`;
    return h("li", {},
      h("span.time", { title: `${clock(moment.at)} UTC` }, `+${duration(Math.max(0, moment.after))}`),
      h("span", {}, moment.machine || h("span.soft", {}, "test")),
      h("span.what", {}, h("a", { href: linkTo(moment.entry, moment.end) }, short(moment.step, 160)), " ",
        h("span.soft", {}, `in ${nameOf(moment.entry.test, moment.entry.run)}`)),
      h("span.track", { "aria-hidden": "true" }, dot));
  };
  list.append(...moments.slice(0, FIRST_SHOWN).map(row));
  const section = h("section", { "aria-labelledby": "h-first" },
    h("h2", { id: "h-first" }, "First failing step of each machine"), list);
  if (moments.length > FIRST_SHOWN)
    section.append(h("button.plain", { type: "button", click: event => {
      list.append(...moments.slice(FIRST_SHOWN).map(row));
      event.currentTarget.remove();
    } }, `Show all ${moments.length}`));
  return section;
}

// --- the matrix ---------------------------------------------------------------------------------

function matrix(report, entries, state, draw) {
  if (!entries.length) return h("p.empty", {}, "No test matches.");
  const suites = new Map();
  for (const entry of entries) {
    if (!suites.has(entry.suite)) suites.set(entry.suite, []);
    suites.get(entry.suite).push(entry);
  }
  const badness = list => Math.min(...list.map(entry => rank(entry.label)));
  const ordered = [...suites].sort(([a, x], [b, y]) => badness(x) - badness(y) || (a < b ? -1 : 1));
  const filtered = state.words || state.verdicts.size;
  return h(report.columns.length === 1 ? "table.sole" : "table", {},
    h("caption.skip", {}, "Scenarios by image and architecture: the step that failed"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Scenario"),
      report.columns.map(column => h("th", { scope: "col" }, column)))),
    ordered.map(([suite, list]) => suiteBody(report, suite, list, state, draw, filtered)));
}

function suiteBody(report, suite, entries, state, draw, filtered) {
  const rows = new Map();
  for (const entry of entries) {
    if (!rows.has(entry.name)) rows.set(entry.name, []);
    rows.get(entry.name).push(entry);
  }
  const all = [...rows];
  const loud = all.filter(([, list]) => list.some(entry => !QUIET.includes(entry.label)));
  const quiet = all.length - loud.length;
  const open = filtered || state.open.has(suite);
  const toggle = quiet && !filtered ? h("button.plain", { type: "button", "aria-expanded": String(open), click: () => {
    open ? state.open.delete(suite) : state.open.add(suite);
    draw();
  } }, open ? "Hide the quiet ones" : `Show ${quiet} without a failure`) : null;
  return h("tbody", {},
    h("tr.suite", {}, h("th", { scope: "rowgroup" }, suite, " ", toggle), report.columns.map(column => {
      const counts = countsOf(entries.filter(entry => entry.column === column));
      return h("td", {}, Object.entries(counts).flatMap(([name, count]) => [verdict(name, count), " "]));
    })),
    (open ? all : loud).map(([name, list]) => h("tr", {}, h("th.mono", { scope: "row" }, name),
      report.columns.map(column => h("td.cell", {},
        list.filter(entry => entry.column === column).map(entry => cell(entry)))))));
}

function cell(entry) {
  const { test, label } = entry;
  const words = QUIET.includes(label) && !test.step ? (label === "skipped" ? reasonOf(test) : "")
    : test.step || reasonOf(test) || "no step failed";
  const link = test.block !== undefined || !QUIET.includes(label)
    ? h("a.why", { href: linkTo(entry), title: reasonOf(test) }, short(words || "evidence", 90))
    : h("span.why.soft", {}, short(words, 90));
  return h("div", {}, verdict(label), " ", link);
}
