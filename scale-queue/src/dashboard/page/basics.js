// Functions shared by all parts of the page. Text is always inserted as text, never as markup.
"use strict";

const api = location.pathname.replace(/\/$/, "") + "/api/";
const element = (id) => document.getElementById(id);

// Characters that control the direction of writing. In text from users they are replaced by a
// visible code, so that they cannot reorder the text around them.
const BIDI = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const visible = (text) => String(text).replace(BIDI, (mark) => `\u27e8U+${mark.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`);

function make(tag, text, attributes = {}) {
  const node = document.createElement(tag);
  if (text !== undefined && text !== null) node.textContent = visible(text);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function button(label, action) {
  const node = make("button", label, { type: "button" });
  node.addEventListener("click", async () => {
    node.disabled = true;
    try {
      await action();
    } catch (error) {
      say(error.message, true);
    }
    node.disabled = false;
  });
  return node;
}

function say(text, bad = false) {
  element("state").textContent = text;
  element("state").classList.toggle("bad", bad);
}

async function ask(path, method = "GET", body = undefined) {
  const headers = method === "GET" ? {} : { "x-scale-queue": "dashboard" };
  const response = await fetch(api + path, { method, headers, body });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `the server answered ${response.status}`);
  return answer;
}

const number = (n) => n.toLocaleString("en");

// Time of the first failed request since the last answer of the store; null while it answers.
let failing = null;
function alive() {
  failing = null;
  element("trouble").hidden = true;
}
function trouble(text) {
  failing ??= Date.now();
  element("trouble").textContent = `${text}, since ${new Date(failing).toLocaleTimeString()}. The data shown is older.`;
  element("trouble").hidden = false;
  say("Not live", true);
}

function time(ms) {
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(1)} s`;
  if (ms < 3_600_000) return `${Math.round(ms / 60_000)} min`;
  if (ms < 172_800_000) return `${(ms / 3_600_000).toFixed(1)} h`;
  return `${Math.round(ms / 86_400_000)} days`;
}

// Time relative to now; the absolute time is the tooltip.
function moment(ms) {
  const away = ms - Date.now();
  const words = away > 0 ? `in ${time(away)}` : `${time(-away)} ago`;
  return make("time", words, { datetime: new Date(ms).toISOString(), title: new Date(ms).toLocaleString() });
}

function cells(...values) {
  return values.map(([label, value, kind]) => {
    const cell = make("td", value instanceof Node ? undefined : value, { "data-label": label });
    if (value instanceof Node) cell.append(value);
    if (kind) cell.classList.add(kind);
    return cell;
  });
}

// The current view is part of the address: `#jobs/mail/dead`, `#workers`.
const where = () => location.hash.slice(1).split("/").map(decodeURIComponent);
const address = (...parts) => "#" + parts.map(encodeURIComponent).join("/");
