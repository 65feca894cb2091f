// Reads the index, and shows what the address asks for: #test=ID&t=SECONDS, with &to= for a span, and
// &arch=, &run= where several tests have one name.

async function begin() {
  const index = JSON.parse(await unpack("index"));
  const entries = [];
  const columns = new Map();
  const sole = index.runs.length === 1;
  for (const run of index.runs) {
    for (const test of run.tests) {
      // A test that was skipped at once has no architecture; in a run of one it would have had that.
      const arches = Object.keys(run.arches ?? {});
      const column = [imageOf(run), test.arch || (arches.length === 1 ? arches[0] : ""), sole ? "" : run.name].filter(Boolean).join(", ") || "no image";
      columns.set(column, true);
      const label = labelOf(test);
      const suite = test.id.split("::")[0];
      entries.push({ run, test, column, label, suite, name: nameOf(test, run),
        words: [test.id, column, label, test.step, test.reason].join(" ").toLowerCase() });
    }
  }
  const same = new Map();
  for (const entry of entries) same.set(entry.test.id, (same.get(entry.test.id) ?? 0) + 1);
  for (const entry of entries) entry.ambiguous = same.get(entry.test.id) > 1;
  const report = { runs: index.runs, entries, columns: [...columns.keys()].sort() };
  $("head").replaceChildren(...heading(report));
  document.title = `Report: ${report.runs.map(run => run.name).join(", ").slice(0, 120)}`;
  addEventListener("hashchange", () => route(report));
  addEventListener("keydown", event => {
    if (event.key === "Escape") shown?.select(null);
    if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) {
      const search = document.querySelector("main input[type=search]");
      if (search) { event.preventDefault(); search.focus(); }
    }
  });
  await route(report, true);
}

function heading({ runs, entries }) {
  const sole = runs.length === 1 ? runs[0] : null;
  const bad = entries.filter(entry => !["passed", "skipped", "known", "flaky"].includes(entry.label)).length;
  const title = `${bad ? `${bad} of ${plural(entries.length, "test")} failed` : `${plural(entries.length, "test")}, no failure`}`;
  const images = [...new Set(runs.map(imageOf))].filter(Boolean);
  const facts = [images.join(", "), sole ? `run ${sole.name}` : plural(runs.length, "run"),
    sole ? sole.began?.replace("T", " ").replace("Z", " UTC") : null, sole ? duration(sole.seconds ?? 0) : null,
    ...(sole ? Object.entries(sole.arches ?? {}).map(([arch, facts]) =>
      `${arch}: QEMU ${facts.qemu ?? "?"}, ${facts.accel ?? "?"}`) : [])];
  return [h("h1", {}, title), h("p.facts", {}, facts.filter(Boolean).map(fact => h("span", {}, fact)))];
}

let shown = null;

async function route(report, first) {
  const asked = new URLSearchParams(location.hash.slice(1));
  const main = $("main");
  const id = asked.get("test");
  try {
    const entry = id === null ? null : report.entries.find(({ test, run }) => test.id === id
      && (!asked.has("arch") || (test.arch ?? "") === asked.get("arch")) && (!asked.has("run") || run.name === asked.get("run"))
      && (!asked.has("worker") || test.worker === asked.get("worker")));
    if (id === null) {
      shown = null;
      main.replaceChildren(overview(report));
    } else if (!entry) {
      main.replaceChildren(h("p", {}, `This report has no test ${id}. `, h("a", { href: "#" }, "All scenarios")));
    } else {
      shown = await testView(entry, report);
      main.replaceChildren(shown.view);
      const [from, to] = ["t", "to"].map(name => parseFloat(asked.get(name)));
      // A moment alone is shown with what led to it.
      if (Number.isFinite(from)) shown.select(Number.isFinite(to) ? [from, to] : [Math.max(0, from - 5), from], true);
      $("test-name").focus({ preventScroll: true });
      scrollTo(0, 0);
    }
  } catch (error) {
    main.replaceChildren(h("p", { role: "alert" }, `The report cannot be shown: ${error.message}`));
  }
  if (!first && id === null) main.focus({ preventScroll: true });
  document.documentElement.dataset.ready = location.hash;
}

begin().catch(error => $("main").replaceChildren(h("p", { role: "alert" }, `The report cannot be read: ${error.message}`)));
