// The timeline of a test: a lane for each machine, on one clock, in seconds since the test's start.
// It is a picture for the pointer; the list of steps beside the logs has the same for the keyboard.

const PRESSED = "the host is under pressure";
const CALM = "the host is calm again";
const LANE = { label: 18, step: 19, strip: 9, gap: 10 };
const DEEPEST = 3;

const isBad = step => step.failed || step.outcome !== "passed" && step.outcome !== "running";

// The spans in which the host was under pressure.
function pressureOf(steps, end) {
  const spans = [];
  let since = null;
  for (const step of steps) {
    if (step.name === PRESSED) since ??= step.start;
    if (step.name === CALM && since !== null) {
      spans.push([since, step.start]);
      since = null;
    }
  }
  if (since !== null) spans.push([since, end]);
  return spans;
}

function lanesOf(detail, rows) {
  const names = [...new Set([...detail.machines.map(each => each.name), ...detail.steps.map(step => step.machine),
    ...detail.findings.map(each => each.machine), ...rows.map(row => row.machine)])];
  return names.sort((a, b) => (a === "") - (b === "") || (a < b ? -1 : 1)).map(name => ({
    name,
    steps: detail.steps.filter(step => step.machine === name && !["host", PRESSED, CALM].includes(step.name)),
    findings: detail.findings.filter(each => each.machine === name),
    rows: rows.filter(row => row.machine === name),
  })).filter(lane => lane.steps.length || lane.findings.length || lane.rows.length);
}

function timeline({ detail, rows, end, moment, onSelect }) {
  const lanes = lanesOf(detail, rows);
  const pressure = pressureOf(detail.steps, end);
  const picture = s("svg", { role: "img", "aria-label":
    `Timeline of ${plural(lanes.length, "lane")} over ${duration(end)}; the list of steps has the same as text` });
  const box = h("div.card.time-line", {}, picture, legend(pressure.length));
  let width = 0, selected = null;
  const left = 2;
  const x = t => left + (width - 2 * left) * Math.max(0, Math.min(1, t / end));
  const time = event => {
    const place = picture.getBoundingClientRect();
    return Math.max(0, Math.min(end, end * (event.clientX - place.left - left) / (width - 2 * left)));
  };

  function draw() {
    width = picture.clientWidth || 800;
    const parts = axis(end, width, x);
    let y = 22;
    for (const lane of lanes) {
      parts.push(s("text", { x: left, y: y + 12, "font-weight": 600 }, lane.name || "test and host"));
      y += LANE.label;
      const depth = Math.min(DEEPEST, Math.max(-1, ...lane.steps.map(step => step.depth)));
      for (const step of lane.steps) parts.push(...stepBar(step, y, x, end));
      y += LANE.step * (depth + 1);
      parts.push(...strips(lane, y, x, width, end));
      y += LANE.strip * 2 + LANE.gap;
    }
    for (const [from, to] of pressure)
      parts.unshift(s("rect.pressure", { x: x(from), y: 16, width: Math.max(2, x(to) - x(from)), height: y - 20 },
        s("title", {}, "the host was under pressure")));
    if (moment !== null) parts.push(s("line.moment", { x1: x(moment), x2: x(moment), y1: 14, y2: y - 4 }));
    if (selected) parts.push(s("rect.span", { x: x(selected[0]), y: 14,
      width: Math.max(1, x(selected[1]) - x(selected[0])), height: y - 18 }));
    picture.setAttribute("viewBox", `0 0 ${width} ${y}`);
    picture.setAttribute("height", y);
    picture.replaceChildren(...parts);
  }

  let pressed = null;
  picture.addEventListener("pointerdown", event => {
    pressed = { at: time(event), x: event.clientX, step: event.target.step };
    picture.setPointerCapture(event.pointerId);
  });
  picture.addEventListener("pointermove", event => {
    if (!pressed || Math.abs(event.clientX - pressed.x) < 4) return;
    const now = time(event);
    selected = [Math.min(now, pressed.at), Math.max(now, pressed.at)];
    draw();
  });
  picture.addEventListener("pointerup", event => {
    if (!pressed) return;
    if (Math.abs(event.clientX - pressed.x) >= 4) onSelect(selected);
    else if (pressed.step) onSelect([pressed.step.start, pressed.step.start + (pressed.step.seconds ?? end)]);
    else onSelect(null);
    pressed = null;
  });
  new ResizeObserver(() => { if (picture.clientWidth !== width) draw(); }).observe(picture);
  box.select = span => { selected = span; draw(); };
  requestAnimationFrame(draw);
  return box;
}

function axis(end, width, x) {
  const most = Math.max(2, Math.floor(width / 110));
  const pace = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200]
    .find(each => end / each <= most) ?? end;
  const parts = [];
  for (let t = 0; t <= end + 1e-9; t += pace)
    parts.push(s("line.grid", { x1: x(t), x2: x(t), y1: 14, y2: 10000 }),
      s("text.axis", { x: x(t), y: 10, "text-anchor": t === 0 ? "start" : x(t) > width - 20 ? "end" : "middle" },
        `${Number(t.toFixed(1))} s`));
  return parts;
}

function stepBar(step, top, x, end) {
  const y = top + LANE.step * Math.min(step.depth, DEEPEST);
  const from = x(step.start), to = x(step.seconds === null ? end : step.start + step.seconds);
  const kind = isBad(step) ? ".bad" : step.outcome === "running" ? ".run" : "";
  const bar = s(`rect.step${kind}`, { x: from, y, width: Math.max(2, to - from), height: LANE.step - 4, rx: 2 },
    s("title", {}, `${step.name}: ${step.outcome}, ${duration(step.seconds ?? end - step.start)}`));
  bar.step = step;
  const sign = isBad(step) ? "✕ " : "";
  const room = Math.floor((to - from - 8) / 6.2);
  if (room >= 4) return [bar, s(`text.label${kind}`, { x: from + 4, y: y + 11 }, short(sign + step.name, room))];
  if (!sign) return [bar];
  return [bar, to - from >= 12
    ? s(`text.label${kind}`, { x: (from + to) / 2, y: y + 11, "text-anchor": "middle" }, "✕")
    : s(`text.label${kind}.beside`, { x: Math.max(9, from - 3), y: y + 11, "text-anchor": "end" }, "✕")];
}

// Two strips below the steps of a lane: how much the console said, and the events of all else.
function strips(lane, y, x, width, end) {
  const parts = [];
  const buckets = new Array(Math.max(1, Math.floor(width / 3))).fill(0);
  for (const row of lane.rows) {
    if (row.source === "console") {
      buckets[Math.max(0, Math.min(buckets.length - 1, Math.floor(buckets.length * row.t / end)))]++;
    } else if (row.tick) {
      parts.push(s("line.tick", { x1: x(row.t), x2: x(row.t), y1: y + LANE.strip + 2, y2: y + 2 * LANE.strip },
        s("title", {}, `${row.source}: ${short(row.text, 120)}`)));
    }
  }
  const highest = Math.max(...buckets);
  buckets.forEach((count, index) => {
    if (!count) return;
    const height = 1 + (LANE.strip - 1) * Math.sqrt(count / highest);
    parts.push(s("rect.console", { x: index * width / buckets.length, y: y + LANE.strip - height, width: 2, height }));
  });
  for (const each of lane.findings)
    parts.push(s("path.finding", { d: `M${x(each.start)} ${y - 2}l5 9h-10z` },
      s("title", {}, `${each.what}: ${short(each.text, 160)}`)));
  return parts;
}

function legend(pressed) {
  const key = (name, shape) => h("span", {}, shape, ` ${name}`);
  const mark = (...children) => s("svg", { width: 14, height: 10, "aria-hidden": "true" }, ...children);
  return h("div.legend", {},
    key("step", mark(s("rect.step", { x: 0, y: 1, width: 13, height: 8, rx: 2 }))),
    key("failed", mark(s("rect.step.bad", { x: 1, y: 1, width: 12, height: 8, rx: 2 }))),
    key("console output", mark(...[2, 6, 10].map(at => s("rect.console", { x: at, y: 9 - at / 2, width: 2, height: at / 2 + 1 })))),
    key("QMP, SSH, server, network", mark(s("line.tick", { x1: 5, x2: 5, y1: 1, y2: 9 }))),
    key("finding", mark(s("path.finding", { d: "M6 0l5 9h-10z" }))),
    pressed ? key("host under pressure", mark(s("rect.pressure", { x: 0, y: 0, width: 14, height: 10 }))) : null,
    h("span", {}, "Drag, or choose a step, to filter the logs."));
}
