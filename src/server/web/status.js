"use strict";
const $ = (id) => document.getElementById(id);
try {
  const theme = localStorage.getItem("nibble.theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* as the system says */ }
const make = (tag, text) => { const node = document.createElement(tag); node.textContent = text; return node; };
const whole = (n) => Math.round(n).toLocaleString("en");
const bytes = (n) => n >= 2 ** 30 ? (n / 2 ** 30).toFixed(2) + " GiB" : (n / 2 ** 20).toFixed(1) + " MiB";
const rates = [];
let before = null;

const rows = (id, list) => $(id).replaceChildren(...list.filter(([, value]) => value !== undefined && value !== null)
  .map(([name, value]) => { const tr = document.createElement("tr"); tr.append(make("td", name), make("td", String(value))); return tr; }));

function show(status) {
  $("model-name").textContent = status.model ?? "";
  const now = performance.now();
  let rate = 0;
  if (before && status.generated_tokens !== undefined)
    rate = Math.max(0, status.generated_tokens - before.tokens) * 1000 / (now - before.at);
  before = {tokens: status.generated_tokens ?? 0, at: now};
  rates.push(rate);
  if (rates.length > 150) rates.shift();
  const top = Math.max(10, ...rates);
  $("line").setAttribute("points", rates.map((r, i) => `${(300 - (rates.length - 1 - i) * 2).toFixed(1)},${(96 - r / top * 90).toFixed(1)}`).join(" "));
  $("line-note").textContent = `highest ${whole(Math.max(...rates))} tokens a second`;
  const hits = status.prefix_cache_queries ? Math.round(100 * status.prefix_cache_hits / status.prefix_cache_queries) + " %" : "\u2013";
  const tiles = [["State", status.state], ["Running", status.running ?? "\u2013"], ["Waiting", status.waiting ?? "\u2013"],
    ["Tokens a second", whole(rate)], ["KV cache in use", status.kv_usage === undefined ? "\u2013" : Math.round(status.kv_usage * 100) + " %"],
    ["Prefix cache hits", hits]];
  $("tiles").replaceChildren(...tiles.map(([name, value]) => {
    const tile = document.createElement("div");
    tile.className = "tile";
    tile.append(make("b", String(value)), make("span", name));
    return tile;
  }));
  rows("memory", [...Object.entries(status.memory ?? {}).map(([name, value]) => [name.replace(/_bytes$/, "").replaceAll("_", " "), bytes(value)]),
    ["resident now", status.resident_bytes && bytes(status.resident_bytes)],
    ["context", status.max_model_len && whole(status.max_model_len) + " tokens"]]);
  rows("totals", [["prompt tokens", status.prompt_tokens !== undefined ? whole(status.prompt_tokens) : undefined],
    ["generated tokens", status.generated_tokens !== undefined ? whole(status.generated_tokens) : undefined],
    ["preemptions", status.preemptions], ["up for", whole(status.uptime_s) + " s"], ["version", status.version]]);
}
async function refresh() {
  try {
    const key = $("key").value;
    const response = await fetch("/status.json", {headers: key ? {Authorization: "Bearer " + key} : {}});
    $("key-form").hidden = response.status !== 401;
    if (response.ok) show(await response.json());
  } catch {
    $("line-note").textContent = "The server does not answer.";
  }
}
$("key-form").addEventListener("submit", (event) => { event.preventDefault(); refresh(); });
refresh();
setInterval(() => { if (!document.hidden) refresh(); }, 2000);
