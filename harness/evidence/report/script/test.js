// The view of one test: its timeline, steps, logs, consoles, screens and facts.

const ROWS_SHOWN = 1500;
const BEFORE_FAILURE = 3;   // seconds of a console that the player shows before the moment of the failure

function plainLine(text) {
  const line = text.replace(ESCAPES, "").replace(/\r+$/, "");
  return harmless(line.slice(line.lastIndexOf("\r") + 1));
}

// The lines of a log with their times: a line has the time of the chunk in which it begins.
function linesOf(log) {
  const lines = [];
  let t = log.start, chunk = 0, chunkEnd = 0;
  let position = 0;
  for (const raw of log.text.split("\n")) {
    while (chunk < log.chunks.length && position >= chunkEnd) {
      t += log.chunks[chunk];
      chunkEnd += log.chunks[chunk + 1];
      chunk += 2;
    }
    const text = plainLine(raw);
    if (text) lines.push({ t: t / 1000, machine: log.machine, source: log.source, text });
    position += raw.length + 1;
  }
  return lines;
}

function rowsOf(detail) {
  const rows = [];
  for (const log of detail.logs) {
    if (log.timed === false) continue;
    const lines = linesOf(log);
    if (log.source !== "console") for (const line of lines) line.tick = true;
    for (const line of lines) rows.push(line);
  }
  for (const step of detail.steps) {
    const figures = step.name === "host" ? Object.entries(step.data ?? {})
      .filter(([, value]) => value !== "").map(([name, value]) => `${name} ${value}`) : [];
    const note = [step.data?.what, step.data?.host, ...figures].filter(Boolean).join("; ");
    rows.push({ t: step.start, machine: step.machine, source: "step", bad: isBad(step),
      text: plainLine(step.name + (step.error ? `: ${step.error}` : "") + (note ? ` (${note})` : "")) });
  }
  for (const each of detail.findings)
    rows.push({ t: each.start, machine: each.machine, source: "finding", bad: true,
      text: plainLine(`${each.what}${each.count > 1 ? `, ${each.count} times` : ""}: ${each.text}`) });
  return rows.sort((a, b) => a.t - b.t);
}

// --- the view -----------------------------------------------------------------------------------

async function testView(entry, report) {
  const { test, run } = entry;
  const view = h("article");
  const place = report.entries.indexOf(entry);
  const failing = report.entries.filter(each => !QUIET.includes(each.label));
  const [previous, next] = [-1, 1].map(way => failing[failing.indexOf(entry) + way]);
  const facts = [entry.column, test.worker && `worker ${test.worker}`, test.signature && `signature ${test.signature}`, ...Object.entries(test.seconds ?? {})
    .map(([phase, seconds]) => `${phase} ${duration(seconds)}`)];
  add(view,
    h("nav", { "aria-label": "Tests" }, h("a", { href: "#" }, "← All scenarios"),
      failing.includes(entry) && previous ? h("a", { href: linkTo(previous) }, "Previous failure") : null,
      failing.includes(entry) && next ? h("a", { href: linkTo(next) }, "Next failure") : null),
    h("h2.name", { tabindex: -1, id: "test-name", "data-place": place }, test.id),
    h("p.facts", {}, verdict(entry.label), facts.filter(Boolean).map(fact => h("span", {}, fact))),
    test.reason ? h("p.reason", {}, reasonOf(test)) : null,
    test.known ? h("p", {}, knownOf(test)) : null,
    (test.repeat ?? []).map(line => paste(line, line.startsWith("harness resurrect ") ? "the line that resurrects its machines"
      : line.startsWith("harness repro ") ? "the line that repeats it with its bundle" : "the line that repeats it")));
  const evidence = test.evidence ? h("p.soft", {}, "Evidence: ", h("code", {}, `${run.name}/${test.evidence}`)) : null;
  if (test.block === undefined) {
    add(view, evidence ?? h("p.soft", {}, "No evidence was kept."), changeOf(test), triesOf(test));
    return { view, select() {} };
  }
  const detail = await detailOf(test);
  // A command may pass as a step, and yet fail the test by its status.
  for (const step of detail.steps)
    step.failed = (test.first ?? []).some(each => each.step === step.name && each.start === step.start);
  const rows = rowsOf(detail);
  const end = Math.max(0.1, test.moment ?? 0, ...detail.steps.map(step => step.start + (step.seconds ?? 0)),
    rows.reduce((last, row) => Math.max(last, row.t), 0));
  const moment = QUIET.includes(entry.label) ? null : test.moment;
  const players = [];
  const select = (span, quietly) => {
    picture.select(span);
    logs.select(span);
    for (const player of players) player.seek(span ? span[0] : moment ?? 0);
    if (!quietly) history.replaceState(null, "", span ? linkTo(entry, ...span) : linkTo(entry));
  };
  const picture = timeline({ detail, rows, end, moment, onSelect: select });
  const logs = logView(rows, moment, end, () => select(null));
  add(view,
    section("Timeline", picture),
    h("div.split", {}, section("Steps", stepList(detail, moment, end, select)), section("Logs", logs.box)),
    consoles(detail, moment, end, players), screens(detail), files(detail), changeOf(test), triesOf(test),
    machineFacts(detail, run), evidence ?? "");
  return { view, select };
}

let sections = 0;

function section(title, ...content) {
  const id = `h-${++sections}`;
  return h("section", { "aria-labelledby": id }, h("h2", { id }, title), ...content);
}

function stepList(detail, moment, end, select) {
  const steps = detail.steps.filter(step => step.name !== "host");
  if (!steps.length) return h("p.card.empty", {}, "No step was recorded.");
  return h("ol.steps.card.scroll", {}, steps.map(step => {
    const bad = isBad(step);
    const button = h(`button${bad ? ".bad" : ""}`, { type: "button", title: step.error || null, click: () =>
      select([step.start, step.seconds === null ? end : step.start + Math.max(step.seconds, 0.001)]) },
      h("span.t", {}, step.start.toFixed(2)),
      h("span", {}, bad ? "✕ " : "", `${short(step.name, 110)} `, h("span.soft", {}, step.machine)),
      h("span.t", {}, step.seconds === null ? "never ended" : duration(step.seconds)));
    button.style.paddingLeft = `${0.4 + 0.8 * step.depth}rem`;
    return h("li", {}, button);
  }));
}

// --- logs ---------------------------------------------------------------------------------------

function logView(rows, moment, end, clear) {
  const state = { span: null, words: "", off: new Set(), at: null };
  const list = h("div.log.scroll", { tabindex: 0, role: "region", "aria-label": "Lines of all logs" });
  const status = h("span.soft", { role: "status" });
  const all = h("button.plain", { type: "button", hidden: true, click: clear }, "Show the whole time");
  const boxes = (kind, values) => values.length < 2 ? [] : values.map(value => h("label", {},
    h("input", { type: "checkbox", checked: true, change: event => {
      event.target.checked ? state.off.delete(`${kind} ${value}`) : state.off.add(`${kind} ${value}`);
      draw();
    } }), ` ${value || "test and host"}`));
  const unique = name => [...new Set(rows.map(row => row[name]))].sort();
  const search = h("input", { type: "search", "aria-label": "Search the logs", placeholder: "Search the logs",
    autocomplete: "off", input: event => { state.words = event.target.value.toLowerCase(); draw(); } });

  function draw() {
    const found = rows.filter(row => (!state.span || (row.t >= state.span[0] - 0.0005 && row.t <= state.span[1] + 0.0005))
      && !state.off.has(`source ${row.source}`) && !state.off.has(`machine ${row.machine}`)
      && (!state.words || row.text.toLowerCase().includes(state.words)));
    // Only a part of many lines is in the page: the part around the failure.
    let from = 0;
    const after = moment === null ? -1 : found.findIndex(row => row.t > moment);
    const here = after < 0 ? found.length : after;
    if (found.length > ROWS_SHOWN) from = Math.max(0, Math.min(found.length - ROWS_SHOWN, (state.at ?? here - ROWS_SHOWN / 2)));
    const to = Math.min(found.length, from + ROWS_SHOWN);
    const shift = (by, words) => h("button.plain", { type: "button", click: () => { state.at = from + by; draw(); } }, words);
    const lines = [];
    let mark = null;
    found.slice(from, to).forEach((row, index) => {
      if (moment !== null && from + index === here) lines.push(mark = here_());
      lines.push(line(row));
    });
    if (moment !== null && !mark && to === found.length && !state.span) lines.push(mark = here_());
    list.replaceChildren(...[from > 0 ? shift(-ROWS_SHOWN, `Show earlier lines (${from})`) : null, ...lines,
      to < found.length ? shift(ROWS_SHOWN, `Show later lines (${found.length - to})`) : null,
      found.length ? null : h("p.empty", {}, "No line matches.")].filter(Boolean));
    status.textContent = `${plural(found.length, "line")}`
      + (state.span ? `, ${state.span[0].toFixed(2)} to ${state.span[1].toFixed(2)} s` : "");
    all.hidden = !state.span;
    if (mark && state.at === null) list.scrollTop = mark.offsetTop - list.clientHeight * 0.7;
    else list.scrollTop = 0;
  }

  const here_ = () => h("p.here", {}, `✕ the test failed here, at ${moment.toFixed(2)} s`);
  const line = row => h(`div.${row.source}${row.bad ? ".bad" : ""}`, {}, h("span.t", {}, row.t.toFixed(3)),
    h("span.from", { title: `${row.machine} ${row.source}` }, [row.machine, row.source].filter(Boolean).join(" ")),
    h("span.text", {}, highlighted(row.text, state.words)));
  const box = h("div.card", {}, h("div.row.tools", {}, search, boxes("source", unique("source")),
    boxes("machine", unique("machine")), status, all), list);
  requestAnimationFrame(draw);
  return { box, select(span) { state.span = span; state.at = null; draw(); } };
}

function highlighted(text, words) {
  if (!words) return text;
  const parts = [];
  const lower = text.toLowerCase();
  if (lower.length !== text.length) return text;
  let from = 0;
  for (let at; (at = lower.indexOf(words, from)) >= 0; from = at + words.length)
    parts.push(text.slice(from, at), h("mark", {}, text.slice(at, at + words.length)));
  return [...parts, text.slice(from)];
}

// --- consoles -----------------------------------------------------------------------------------

let playerReady = null;

// The page's policy names the digests of both, so that nothing else can take their places.
function loadPlayer() {
  playerReady ??= Promise.all([unpack("player"), unpack("style")]).then(([code, style]) => {
    for (const [name, text] of [["style", style], ["script", code]]) {
      const element = h(name);
      element.textContent = text;   // as it is: its digest is in the policy
      document.head.append(element);
    }
    return window.AsciinemaPlayer;
  });
  return playerReady;
}

function consoles(detail, moment, end, players) {
  const logs = detail.logs.filter(log => log.source === "console" && log.timed !== false);
  if (!logs.length) return "";
  const stage = h("div.player.card", { role: "tabpanel", id: "stage" });
  const show = log => {
    for (const tab of tabs) tab.setAttribute("aria-selected", String(tab.log === log));
    play(log, stage, moment ?? end, players);
  };
  const tabs = logs.map(log => {
    const tab = h("button", { type: "button", role: "tab", "aria-controls": "stage", click: () => show(log) }, log.machine);
    tab.log = log;
    return tab;
  });
  const failed = detail.steps.filter(step => step.failed || isBad(step)).map(step => step.machine);
  const chosen = logs.find(log => failed.includes(log.machine)) ?? logs[0];
  requestAnimationFrame(() => show(chosen));
  return section("Console", h("div.row", { role: "tablist", "aria-label": "Machines" }, tabs), h("p"), stage);
}

function cast(log) {
  const [width, height] = log.size ?? [80, 24];
  const lines = [JSON.stringify({ version: 2, width, height })];
  let t = Math.max(0, log.start), position = 0;
  for (let index = 0; index < log.chunks.length; index += 2) {
    t += log.chunks[index];
    lines.push(JSON.stringify([t / 1000, "o", log.text.slice(position, position += log.chunks[index + 1])]));
  }
  return lines.join("\n");
}

async function play(log, stage, moment, players) {
  for (const player of players.splice(0)) player.dispose();
  stage.replaceChildren(h("p.soft", { role: "status" }, "Unpacking the player …"));
  try {
    const library = await loadPlayer();
    const target = h("div");
    stage.replaceChildren(target);
    const start = Math.max(0, moment - BEFORE_FAILURE);
    players.push(library.create({ data: cast(log) }, target, { startAt: start, poster: `npt:${moment}`,
      preload: true, fit: "width", controls: true, markers: [[moment, "the failure"]], theme: "asciinema" }));
  } catch (error) {
    stage.replaceChildren(h("p", {}, `The player does not run here (${error.message}). The logs have the text.`));
  }
}

// --- screens, files, facts ----------------------------------------------------------------------

function screens(detail) {
  if (!detail.screens.length) return "";
  return section("Screens", h("div.screens", {}, detail.screens.map(screen => {
    const canvas = h("canvas", { role: "img", "aria-label": `Screen of ${screen.machine}, ${screen.name}` });
    if (screen.png) draw(screen.png, canvas);
    return h("figure.card", {}, screen.png ? canvas : "Too large for the report.",
      h("figcaption", {}, `${screen.machine}/${screen.name} at ${screen.start.toFixed(1)} s`));
  })));
}

async function draw(png, canvas) {
  // A canvas needs no exception of the page's policy, which an image would.
  const octets = Uint8Array.from(atob(png), char => char.charCodeAt(0));
  const image = await createImageBitmap(new Blob([octets], { type: "image/png" }));
  [canvas.width, canvas.height] = [image.width, image.height];
  canvas.getContext("2d").drawImage(image, 0, 0);
}

const UNITS = "/failed-units.txt";

function files(detail) {
  const logs = detail.logs.filter(log => log.timed === false);
  const ofJournal = log => log.name.endsWith("/journal.txt") || log.name.endsWith(UNITS);
  const journals = logs.filter(ofJournal).sort((a, b) => b.name.endsWith(UNITS) - a.name.endsWith(UNITS));
  return [["Journal and failed units", journals], ["Files", logs.filter(log => !ofJournal(log))]]
    .filter(([, found]) => found.length)
    .map(([title, found]) => section(title, found.map(log =>
      h("details.card", { open: log.name.endsWith(UNITS) ? "" : null }, h("summary", {}, log.name),
        h("pre", { tabindex: 0 }, log.text.split("\n").map(plainLine).join("\n"))))));
}

function table(head, rows) {
  return h("div.card.scroll", {}, h("table", {}, h("thead", {}, h("tr", {}, head.map(name => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map(([name, ...cells]) => h("tr", {}, h("th", { scope: "row" }, name), cells.map(each => h("td", {}, each)))))));
}

function changeOf(test) {
  if (!test.change) return "";
  const { good, bad, facts } = test.change;
  const head = ["Fact", `last good: ${good.name}`, `first bad: ${bad.name}`];
  return section("Since it last passed", facts.length ? table(head, facts)
    : h("p", {}, `It passed in ${good.name} and first failed in ${bad.name}; image, versions and host are the same.`));
}

function triesOf(test) {
  if (!test.tries?.length) return "";
  return section("Tries", table(["Try", "Verdict", "Reason", "Evidence"], test.tries.map((each, index) =>
    [String(index + 1), verdict(each.verdict || "interrupted"), each.reason, h("code", {}, each.evidence || "none")])));
}

function machineFacts(detail, run) {
  const cells = machine => {
    const { versions, provenance: from } = machine;
    return {
      Image: from.image ? `${from.image} ${from.version} (${from.variant}), ${from.arch}` : "none",
      "Inputs of the image": from.inputs,
      Machine: [machine.machine, machine.cpu, machine.accel, machine.firmware].filter(Boolean).join(", "),
      Size: [machine.cpus && plural(machine.cpus, "CPU"), machine.memory && `${Math.round(machine.memory / 2 ** 20)} MiB`]
        .filter(Boolean).join(", "),
      Network: (machine.nics ?? []).map(nic => nic.filter(Boolean).join(" ")).join(", "),
      QEMU: versions.qemu, Firmware: versions.firmware, Harness: versions.harness, Started: machine.time,
    };
  };
  const machines = detail.machines.map(machine => [machine.name, cells(machine)]);
  const versions = Object.entries(run.versions ?? {}).map(([name, version]) => `${name} ${version}`).join(", ");
  const place = [run.host?.platform, run.host?.cpus && plural(run.host.cpus, "CPU")].filter(Boolean).join(", ");
  const host = place || versions ? h("p.soft", {}, `Host: ${[place, versions].filter(Boolean).join("; ")}`) : "";
  if (!machines.length) return section("Versions and digests", host);
  const names = Object.keys(machines[0][1]).filter(name => machines.some(([, facts]) => facts[name]));
  return section("Versions and digests", table(["Fact", ...machines.map(([name]) => name)],
    names.map(name => [name, ...machines.map(([, facts]) => h("span.mono", {}, facts[name] ?? ""))])), host);
}
