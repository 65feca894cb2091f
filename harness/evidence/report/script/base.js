// The parts that all views share: the blocks of the page, elements, words, links.
// Guest output gets into the page by textContent alone; nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";
const LARGEST = 64 * 1024 * 1024;   // bytes of an unpacked block: a report may come from anywhere
const SIGNS = { passed: "✓", product: "✕", test: "◆", timeout: "◷", infra: "▲", flaky: "≈", known: "●",
  skipped: "–", interrupted: "‖" };
const WORST = ["product", "test", "timeout", "infra", "interrupted", "flaky", "known", "skipped", "passed"];
const QUIET = ["passed", "skipped"];

// Escape sequences of terminals (ECMA-48, and the strings of xterm), which the player acts on, are left out
// of text; other control characters, and those that reorder text, are shown as a sign.
const ESCAPES = /\x1b(?:\[[0-?]*[ -\/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -\/]*[0-~])/g;
const CONTROLS = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const harmless = text => text.replace(CONTROLS, "\ufffd");

const $ = id => document.getElementById(id);

// h("a.plain", {href: "#"}, "text", node, null): an element. Functions are listeners.
function h(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  return fill(document.createElement(tag), attributes, classes, children);
}

function s(name, attributes = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  return fill(document.createElementNS(SVG, tag), attributes, classes, children);
}

function fill(element, attributes, classes, children) {
  if (classes.length) element.setAttribute("class", classes.join(" "));
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false)
      element.setAttribute(name, value === true ? "" : harmless(String(value)));
  }
  return add(element, ...children);
}

// Appends nodes and texts; what is missing is left out.
function add(element, ...children) {
  element.append(...children.flat(2).filter(child => child !== null && child !== undefined)
    .map(child => child instanceof Node ? child : harmless(String(child))));
  return element;
}

// --- blocks -------------------------------------------------------------------------------------

async function unpack(name) {
  const octets = Uint8Array.from(atob($("block-" + name).textContent), char => char.charCodeAt(0));
  const stream = new Blob([octets]).stream().pipeThrough(new DecompressionStream("deflate"));
  const parts = [];
  let size = 0;
  for (const reader = stream.getReader();;) {
    const { done, value } = await reader.read();
    if (done) break;
    size += value.length;
    if (size > LARGEST) throw new Error(`the block ${name} is too large`);
    parts.push(value);
  }
  return new Blob(parts).text();
}

let sharedLines = null;

// The evidence of a test; harness/evidence/report/blocks.py says how its texts are stored.
async function detailOf(test) {
  sharedLines ??= unpack("lines").then(JSON.parse);
  const [detail, shared] = [JSON.parse(await unpack(test.block)), await sharedLines];
  for (const log of detail.logs) log.text = decodeText(log.text, shared);
  return detail;
}

function decodeText({ lines, stamps }, shared) {
  let number = 0, stamp = 0, next = 0;
  return lines.map(line => {
    if (typeof line === "number") line = shared[number += line];
    if (line[0] === "\0") {
      stamp += stamps[next++];
      const micros = String(stamp % 1e6).padStart(6, "0");
      return `[${String(Math.floor(stamp / 1e6)).padStart(5)}.${micros}] ${line.slice(1)}`;
    }
    return line[0] === "\x01" ? line.slice(1) : line;
  }).join("\n");
}

// --- words --------------------------------------------------------------------------------------

const rank = name => WORST.indexOf(name);
const labelOf = test => test.verdict || test.outcome || "interrupted";
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

function verdict(name, count) {
  const known = SIGNS[name] ? name : "unknown";
  return h(`span.v.${known}`, { "data-sign": SIGNS[name] ?? "✕" }, count === undefined ? name : `${count} ${name}`);
}

function duration(seconds) {
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const whole = Math.round(seconds); // 119.6 s are 2 min 0 s, not 1 min 60 s
  return seconds < 5400 ? `${Math.floor(whole / 60)} min ${whole % 60} s`
    : `${(seconds / 3600).toFixed(1)} h`;
}

function clock(epoch) {
  const date = new Date(epoch * 1000);
  return Number.isNaN(date.getTime()) ? "" : date.toISOString().slice(11, 19);
}

const short = (text, most) => text.length > most ? text.slice(0, most - 1) + "…" : text;
const reasonOf = test => (test.reason || "").replace(/^harness\.errors\./, "");

function imageOf(run) {
  const image = run.image;
  return image?.name ? `${image.name} ${image.version ?? ""} (${image.variant ?? ""})` : "";
}

// The entry of known.yaml that a failure matches. Its tracker is text: the page leads nowhere by itself.
function knownOf({ known }) {
  if (!known) return "";
  return `Known failure: ${known.tracker}, ${known.owner}, ${known.expired ? "expired" : "expires"} ${known.expires}`;
}

// A test's name without its file, and without the architecture that a run of several puts in it.
function nameOf(test, run) {
  const name = test.id.split("::").slice(1).join("::") || test.id;
  return Object.keys(run.arches ?? {}).length > 1 ? withoutArch(name, test.arch) : name;
}

function withoutArch(name, arch) {
  return name.replace(`[${arch}]`, "").replace(`-${arch}]`, "]").replace(`[${arch}-`, "[");
}

// --- links --------------------------------------------------------------------------------------

function linkTo(entry, from, to) {
  const parts = new URLSearchParams({ test: entry.test.id });
  if (entry.ambiguous) {
    parts.set("arch", entry.test.arch ?? "");
    parts.set("run", entry.run.name);
    if (entry.test.worker) parts.set("worker", entry.test.worker);
  }
  if (from !== undefined) parts.set("t", from.toFixed(3));
  if (to !== undefined) parts.set("to", to.toFixed(3));
  return "#" + parts;
}

function copyButton(text, what) {
  const button = h("button", { type: "button", "aria-label": `Copy ${what}`, click: async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.previousSibling);   // a page from a file may not copy
      button.textContent = "Press Ctrl+C";
    }
  } }, "Copy");
  return button;
}

function paste(text, what) {
  return h("div.card.paste", {}, h("code", { tabindex: 0, role: "region", "aria-label": what }, text), copyButton(text, what));
}
