"use strict";
// The chat page: OpenAI's streaming API of this server, one or two models side by side. Answers are shown as text, never as HTML.

const TEXTS = {
  en: {
    model: "model", beside: "beside it", two: "two side by side", clear: "new chat", settings: "settings", system: "system message",
    temperature: "temperature", top_p: "top_p", max_tokens: "max_tokens", seed: "seed", message: "Message", send: "Send", stop: "Stop",
    hint: "Enter sends, Shift+Enter breaks the line, Esc stops.", empty: "Ask something.", stopped: "stopped", failed: "The server did not answer.",
    facts: "{tokens} tokens, {seconds} s", length: "cut off at max_tokens", no_chat: "This server's model does not chat. Its routes: {routes}",
  },
  zh: {
    model: "模型", beside: "对照", two: "并排比较", clear: "新对话", settings: "设置", system: "系统消息",
    temperature: "温度", top_p: "top_p", max_tokens: "最大词元数", seed: "随机种子", message: "消息", send: "发送", stop: "停止",
    hint: "回车发送，Shift+回车换行，Esc 停止。", empty: "请输入问题。", stopped: "已停止", failed: "服务器没有回应。",
    facts: "{tokens} 个词元，{seconds} 秒", length: "已达最大词元数，回答被截断", no_chat: "此服务器的模型不能对话。可用接口：{routes}",
  },
};
const language = (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";
const text = (key, values = {}) => TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
const element = (id) => document.getElementById(id);
const turns = [[], []]; // of each column: {role, content}
let running = [];

document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
for (const item of document.querySelectorAll("[data-text]")) item.textContent = text(item.dataset.text);
element("input").placeholder = text("message");
report(text("hint"));

function report(message, isError = false) {
  element("status").textContent = message;
  element("status").classList.toggle("error", isError);
}

function add(column, kind, content) {
  const section = element(`column-${column}`);
  for (const old of section.querySelectorAll(".empty")) old.remove();
  const item = document.createElement("div");
  item.className = kind;
  item.textContent = content;
  section.append(item);
  section.scrollTop = section.scrollHeight;
  return item;
}

function columns() {
  return element("two").checked ? [0, 1] : [0];
}

function clear() {
  stop();
  for (const column of [0, 1]) {
    turns[column] = [];
    element(`column-${column}`).replaceChildren();
    add(column, "empty", text("empty"));
  }
  element("input").focus();
}

function stop() {
  for (const controller of running) controller.abort();
}

function number(id) {
  const value = element(id).value.trim();
  return value === "" ? undefined : Number(value);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    pending += value;
    const parts = pending.split("\n\n");
    pending = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function answer(column, controller) {
  const item = add(column, "turn assistant running", "");
  const started = performance.now();
  let content = "", tokens = 0, note = "";
  try {
    const system = element("system").value.trim();
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      signal: controller.signal,
      body: JSON.stringify({
        model: element(`model-${column}`).value,
        messages: [...(system ? [{ role: "system", content: system }] : []), ...turns[column]],
        temperature: number("temperature"),
        top_p: number("top-p"),
        max_tokens: number("max-tokens"),
        seed: number("seed"),
        stream: true,
        stream_options: { include_usage: true },
      }),
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) tokens = chunk.usage.completion_tokens;
      for (const choice of chunk.choices || []) {
        content += choice.delta.content || "";
        for (const call of choice.delta.tool_calls || []) content += `\n${call.function.name}(${call.function.arguments})`;
        if (choice.finish_reason === "length") note = `, ${text("length")}`;
      }
      const section = element(`column-${column}`);
      const atEnd = section.scrollHeight - section.scrollTop - section.clientHeight < 40;
      item.textContent = content;
      if (atEnd) section.scrollTop = section.scrollHeight;
    }
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    add(column, "facts", text("facts", { tokens, seconds }) + note);
    turns[column].push({ role: "assistant", content });
  } catch (error) {
    if (error.name === "AbortError") {
      add(column, "facts", text("stopped"));
      turns[column].push({ role: "assistant", content });
    } else {
      turns[column].pop(); // the question: it was not answered
      item.classList.add("error");
      item.textContent = content + (error instanceof TypeError ? text("failed") : error.message);
    }
  } finally {
    item.classList.remove("running");
  }
}

async function send() {
  const content = element("input").value;
  if (!content.trim() || running.length) return;
  element("input").value = "";
  setRunning(columns().map(() => new AbortController()));
  for (const column of columns()) {
    turns[column].push({ role: "user", content });
    add(column, "turn user", content);
  }
  await Promise.all(columns().map((column, i) => answer(column, running[i])));
  setRunning([]);
  element("input").focus();
}

function setRunning(controllers) {
  running = controllers;
  element("send").disabled = running.length > 0;
  element("stop").disabled = running.length === 0;
  element("two").disabled = running.length > 0;
}

async function start() {
  try {
    const response = await fetch("/v1/models");
    const models = (await response.json()).data;
    for (const column of [0, 1]) {
      for (const model of models) element(`model-${column}`).add(new Option(model.id, model.id));
      element(`model-${column}`).selectedIndex = Math.min(column, models.length - 1);
    }
    if (!models[0].abilities.includes("generate")) {
      report(text("no_chat", { routes: models[0].routes.join(", ") }), true);
      element("send").disabled = element("input").disabled = true;
    }
  } catch {
    report(text("failed"), true);
  }
}

element("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
element("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (element("settings").open) element("settings").open = false;
  else stop();
});
document.addEventListener("click", (event) => { if (!element("settings").contains(event.target)) element("settings").open = false; });
element("stop").addEventListener("click", stop);
element("clear").addEventListener("click", clear);
element("two").addEventListener("change", () => {
  element("column-1").hidden = element("second").hidden = !element("two").checked;
  clear();
});
clear();
start();
