"use strict";
const $ = (id) => document.getElementById(id);
const presets = {
  general: {temperature: 0.7, top_p: 0.95, top_k: 20, repetition_penalty: 1},
  creative: {temperature: 1, top_p: 0.95, top_k: 40, repetition_penalty: 1.05},
  tools: {temperature: 0.4, top_p: 0.95, top_k: 20, repetition_penalty: 1},
  greedy: {temperature: 0, top_p: 1, top_k: 0, repetition_penalty: 1},
};
const sliders = ["temperature", "top_p", "top_k", "repetition_penalty"];
const kept = ["preset", ...sliders, "max_tokens", "thinking", "system", "tools"];
const store = {  // storage may be switched off
  get(name) { try { return localStorage.getItem("nibble." + name); } catch { return null; } },
  set(name, value) { try { localStorage.setItem("nibble." + name, value); } catch { /* stays open */ } },
};
let messages = [];
let stopper = null;

const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

// ---- settings

function show_values() {
  const own = $("preset").value === "model";
  for (const name of sliders) {
    $(name + "-out").textContent = own ? "model's" : $(name).value;
    $(name).disabled = own;
  }
}
function choose_preset() {
  const preset = presets[$("preset").value];
  if (preset) for (const name of sliders) $(name).value = preset[name];
  show_values();
}
for (const name of kept) {
  const saved = store.get(name);
  if (saved !== null) $(name).value = saved;
  $(name).addEventListener("input", () => {
    if (name === "preset") choose_preset();
    for (const each of kept) store.set(each, $(each).value);
    show_values();
  });
}
if (store.get("temperature") === null) for (const name of sliders) $(name).value = presets.general[name];
show_values();

const is_dark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};
const label_theme = () => { $("theme").textContent = is_dark() ? "Light" : "Dark"; };
if (store.get("theme")) document.documentElement.dataset.theme = store.get("theme");
label_theme();
$("theme").addEventListener("click", () => {
  const theme = is_dark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  store.set("theme", theme);
  label_theme();
});
$("toggle-settings").addEventListener("click", () => $("settings").classList.toggle("shown"));

const headers = () => {
  const out = {"Content-Type": "application/json"};
  if ($("key").value) out.Authorization = "Bearer " + $("key").value;
  return out;
};

// ---- text: paragraphs, code, bold; never markup from the model

function inline(parent, text) {
  for (const part of text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/)) {
    if (part.startsWith("`") && part.endsWith("`") && part.length > 2) {
      parent.append(make("code", "", part.slice(1, -1)));
    } else if (part.startsWith("**") && part.endsWith("**") && part.length > 4) {
      parent.append(make("strong", "", part.slice(2, -2)));
    } else if (part) {
      parent.append(part);
    }
  }
}
function render(target, text) {
  target.replaceChildren();
  text.split(/```[^\n]*\n?/).forEach((block, i) => {
    if (i % 2) {
      const pre = make("pre");
      pre.append(make("code", "", block.replace(/\n$/, "")));
      target.append(pre);
    } else {
      for (const paragraph of block.split(/\n{2,}/)) {
        if (!paragraph.trim()) continue;
        const p = make("p");
        inline(p, paragraph.trim());
        target.append(p);
      }
    }
  });
}

// ---- a turn

function add_turn(role) {
  $("empty").hidden = true;
  const turn = make("article", "turn " + role);
  $("messages").append(turn);
  return turn;
}
function at_bottom() {
  const box = $("messages");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 80;
}

class Answer {
  constructor() {
    this.turn = add_turn("assistant");
    this.fold = make("details", "reasoning");
    this.fold.append(make("summary", "", "Thinking"), make("div"));
    this.text = make("div", "answer cursor");
    this.calls_box = make("div");
    this.meta = make("div", "meta");
    this.turn.append(this.text, this.calls_box, this.meta);
    this.content = "";
    this.reasoning = "";
    this.calls = [];
    this.start = performance.now();
    this.first = 0;
    this.count = 0;
  }
  take(delta) {
    const stick = at_bottom();
    const reasoning = delta.reasoning ?? delta.reasoning_content;
    if (reasoning) {
      if (!this.reasoning) this.turn.prepend(this.fold);
      this.reasoning += reasoning;
      this.fold.lastChild.textContent = this.reasoning;
    }
    if (delta.content) {
      if (this.reasoning && !this.content) {
        const seconds = (performance.now() - this.start) / 1000;
        this.fold.firstChild.textContent = `Thought for ${seconds.toFixed(1)} s`;
      }
      this.content += delta.content;
      render(this.text, this.content);
    }
    for (const call of delta.tool_calls ?? []) this.take_call(call);
    if (reasoning || delta.content || delta.tool_calls) {
      if (!this.first) this.first = performance.now();
      ++this.count;
    }
    if (stick) $("messages").scrollTop = $("messages").scrollHeight;
  }
  take_call(call) {
    const known = this.calls[call.index] ??= {id: "", name: "", text: "", box: null};
    if (call.id) known.id = call.id;
    if (call.function?.name) known.name += call.function.name;
    if (call.function?.arguments) known.text += call.function.arguments;
    if (!known.box) {
      known.box = make("section", "tool");
      known.box.append(make("div", "name"), make("pre"));
      this.calls_box.append(known.box);
    }
    known.box.firstChild.replaceChildren(make("small", "", "calls"), known.name);
    let shown = known.text;
    try { shown = JSON.stringify(JSON.parse(known.text), null, 2); } catch { /* not whole yet */ }
    known.box.children[1].textContent = shown;
  }
  finish(usage, reason) {
    this.text.classList.remove("cursor");
    if (this.reasoning && this.fold.firstChild.textContent === "Thinking")
      this.fold.firstChild.textContent = "Thoughts";
    const num = usage?.completion_tokens ?? this.count;
    const rest = (performance.now() - this.first) / 1000;
    const parts = [];
    if (this.first) parts.push(`first token ${Math.round(this.first - this.start)} ms`);
    if (this.first && num > 1 && rest > 0) parts.push(`${num} tokens, ${((num - 1) / rest).toFixed(1)} a second`);
    if (usage?.prompt_tokens_details?.cached_tokens) parts.push(`${usage.prompt_tokens_details.cached_tokens} cached`);
    if (reason === "length") parts.push("cut at the limit");
    if (reason === "stopped") parts.push("stopped");
    this.meta.textContent = parts.join(" \u00b7 ");
  }
  message() {
    const out = {role: "assistant", content: this.content};
    if (this.reasoning) out.reasoning = this.reasoning;
    if (this.calls.length)
      out.tool_calls = this.calls.map((c) => ({id: c.id, type: "function", function: {name: c.name, arguments: c.text}}));
    return out;
  }
  // A person plays the tool: its result goes back to the model.
  ask_for_results() {
    let missing = this.calls.length;
    const results = new Array(missing);
    this.calls.forEach((call, i) => {
      const form = make("form");
      const field = make("input");
      field.placeholder = "Result of " + call.name;
      field.setAttribute("aria-label", field.placeholder);
      const button = make("button", "primary", "Return");
      form.append(field, button);
      call.box.append(form);
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        if (!missing) return;
        results[i] = {role: "tool", tool_call_id: call.id, content: field.value};
        field.disabled = button.disabled = true;
        if (--missing === 0) { messages.push(...results); run(); }
      });
    });
  }
  fail(text) {
    this.text.classList.remove("cursor");
    this.turn.append(make("div", "error", text));
  }
}

function request_body() {
  const body = {messages: [...messages], stream: true, stream_options: {include_usage: true}};
  if ($("system").value.trim()) body.messages.unshift({role: "system", content: $("system").value});
  if ($("preset").value !== "model") for (const name of sliders) body[name] = Number($(name).value);
  if ($("max_tokens").value) body.max_tokens = Number($("max_tokens").value);
  if ($("thinking").value) body.chat_template_kwargs = {enable_thinking: $("thinking").value === "true"};
  if ($("tools").value.trim()) body.tools = JSON.parse($("tools").value);
  return body;
}

// Server-sent events of a response, as parsed JSON.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    pending += value;
    const parts = pending.split("\n\n");
    pending = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      if (data.startsWith("{")) yield JSON.parse(data);
    }
  }
}

async function run() {
  if (stopper) return;
  const answer = new Answer();
  stopper = new AbortController();
  show_running(true);
  let usage = null, reason = "";
  try {
    let body;
    try { body = JSON.stringify(request_body()); } catch (error) { throw new Error("Tools: " + error.message); }
    const response = await fetch("/v1/chat/completions", {method: "POST", headers: headers(), body, signal: stopper.signal});
    if (!response.ok) {
      const told = await response.json().catch(() => ({}));
      throw new Error(response.status === 401 ? "The server asks for an API key: type it into the settings."
        : told.error?.message ?? `The server answered ${response.status}.`);
    }
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) usage = event.usage;
      const choice = event.choices?.[0];
      if (choice?.delta) answer.take(choice.delta);
      if (choice?.finish_reason) reason = choice.finish_reason;
    }
  } catch (error) {
    if (error.name === "AbortError") reason = "stopped"; else { answer.fail(error.message); reason = "error"; }
  }
  answer.finish(usage, reason);
  if (reason !== "error") {
    messages.push(answer.message());
    if (answer.calls.length && reason !== "stopped") answer.ask_for_results();
  } else {
    messages.pop();
  }
  stopper = null;
  show_running(false);
  refresh();
}
function show_running(running) {
  $("send").textContent = running ? "Stop" : "Send";
  $("send").classList.toggle("stop", running);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (stopper) return stopper.abort();
  const text = $("prompt").value.trim();
  if (!text) return;
  $("prompt").value = "";
  $("prompt").style.height = "";
  add_turn("user").append(make("div", "bubble", text));
  messages.push({role: "user", content: text});
  $("messages").scrollTop = $("messages").scrollHeight;
  run();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!stopper) $("composer").requestSubmit();
  }
});
$("prompt").addEventListener("input", () => {
  $("prompt").style.height = "auto";
  $("prompt").style.height = $("prompt").scrollHeight + "px";
});
$("clear").addEventListener("click", () => {
  if (stopper) stopper.abort();
  messages = [];
  for (const turn of document.querySelectorAll(".turn")) turn.remove();
  $("empty").hidden = false;
  $("prompt").focus();
});

// ---- what the server says about itself

const bytes = (n) => n >= 2 ** 30 ? (n / 2 ** 30).toFixed(2) + " GiB" : (n / 2 ** 20).toFixed(1) + " MiB";
async function refresh() {
  try {
    const response = await fetch("/status.json", {headers: headers()});
    if (!response.ok) {
      if (response.status === 401) $("greeting").textContent = "This server wants an API key: type it into the settings.";
      return;
    }
    const status = await response.json();
    $("model-name").textContent = status.model ?? "";
    const facts = [["State", status.state]];
    if (status.max_model_len) facts.push(["Context", status.max_model_len.toLocaleString("en") + " tokens"]);
    if (status.resident_bytes) facts.push(["Memory", bytes(status.resident_bytes)]);
    if (status.running !== undefined) facts.push(["Running", status.running], ["Waiting", status.waiting]);
    $("facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", "", name), make("dd", "", String(value))]));
    const known = status.kv_usage !== undefined;
    $("kv-bar").hidden = $("kv-label").hidden = !known;
    if (known) $("kv").style.width = Math.round(status.kv_usage * 100) + "%";
  } catch { /* the next round tells */ }
}
$("key").addEventListener("change", refresh);
refresh();
setInterval(() => { if (!document.hidden) refresh(); }, 5000);
