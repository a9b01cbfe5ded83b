"use strict";
// The review page: two answers side by side, without names. What is shown is text, never HTML; every vote is sent at once.

const TEXTS = {
  en: {
    other: "中文", welcome: "You will see a prompt and two answers. Say which one is better; nobody knows which model wrote it. You can stop at any time and go on later under the same name.",
    name: "Your name", begin: "Begin", first: "Answer 1", second: "Answer 2", left: "1 is better", right: "2 is better", tie: "equally good", both_bad: "both are bad",
    more: "Reasons and comment", comment: "Comment", back: "back", next: "next", hint: "Keys: 1, 2, 0 equally good, b both bad, ← →", finished: "All is judged.",
    thanks: "Thank you. Everything is saved; you can close this page.", reveal: "Show the results", failed: "Not saved: the server does not answer. Try again.",
    saved: "saved", count: "{done} of {total} judged", judge: "judge: {name}", accuracy: "accuracy", completeness: "completeness", tone: "tone", safety: "safety",
    user: "user", system: "system", assistant: "assistant", tool: "tool", unset: "–", empty: "(empty answer)",
    head: ["first", "second", "prompts", "first wins", "ties", "second wins", "share of the first [95 %]", "p (sign test)"],
    facts: "Judges: {judges}; votes: {votes}; agreement (Krippendorff's alpha): {alpha}; the left side won {left}.", none: "not known",
  },
  zh: {
    other: "English", welcome: "您会看到一个提示和两个回答，请指出哪个更好；没有人知道回答出自哪个模型。可以随时停下，以后用同一个名字继续。",
    name: "您的名字", begin: "开始", first: "回答 1", second: "回答 2", left: "1 更好", right: "2 更好", tie: "一样好", both_bad: "都不好",
    more: "理由与评语", comment: "评语", back: "上一个", next: "下一个", hint: "按键：1、2、0 一样好、b 都不好、← →", finished: "全部评完。",
    thanks: "谢谢。所有评判都已保存，可以关闭此页。", reveal: "查看结果", failed: "未保存：服务器没有回应，请重试。",
    saved: "已保存", count: "已评 {done} / {total}", judge: "评判者：{name}", accuracy: "准确", completeness: "完整", tone: "语气", safety: "安全",
    user: "用户", system: "系统", assistant: "助手", tool: "工具", unset: "–", empty: "（空回答）",
    head: ["模型一", "模型二", "提示数", "模型一胜", "平", "模型二胜", "模型一得分率 [95 %]", "p（符号检验）"],
    facts: "评判者：{judges}；票数：{votes}；一致性（Krippendorff α）：{alpha}；左侧胜 {left}。", none: "未知",
  },
};
let language = (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";
let judge = "";
let item = null;
let shownAt = 0;
let sending = false;

const element = (id) => document.getElementById(id);
const text = (key, values = {}) => TEXTS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);

function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const x of document.querySelectorAll("[data-text]")) x.textContent = text(x.dataset.text);
  element("language").textContent = text("other");
  element("language").lang = language === "zh" ? "en" : "zh-CN";
  element("who").textContent = judge ? text("judge", { name: judge }) : "";
  if (item) count(item.done, item.total);
}

function report(message, isError = false) {
  element("status").textContent = message;
  element("status").classList.toggle("error", isError);
}

function count(done, total) {
  element("bar").max = Math.max(total, 1);
  element("bar").value = done;
  element("count").textContent = text("count", { done, total });
}

async function ask(path, options) {
  const response = await fetch(path, options);
  if (!response.ok) throw new Error(response.status);
  return response.json();
}

async function show(position) {
  const query = new URLSearchParams({ judge });
  if (position !== undefined) query.set("position", position);
  try {
    item = await ask(`item?${query}`);
  } catch {
    report(text("failed"), true);
    return;
  }
  element("start").hidden = true;
  element("end").hidden = true;
  element("item").hidden = false;
  element("prompt").replaceChildren(...item.messages.map(turn));
  for (const side of ["left", "right"]) {
    element(side).textContent = item[side] || text("empty");
    element(side).scrollTop = 0;
  }
  element("rubrics").replaceChildren(...item.rubrics.map(rubric));
  element("comment").value = item.vote ? item.vote.comment : "";
  element("back").disabled = item.position === 0;
  element("next").disabled = item.position + 1 >= item.total;
  mark(item.vote ? item.vote.verdict : "");
  translate();
  window.scrollTo(0, 0);
  shownAt = performance.now();
}

function turn(message) {
  const block = document.createElement("div");
  block.className = `turn ${message.role === "user" ? "user" : "other"}`;
  const role = document.createElement("span");
  role.className = "role";
  role.dataset.text = message.role in TEXTS.en ? message.role : "user";
  const content = document.createElement("div");
  content.textContent = message.content;
  block.append(role, content);
  return block;
}

function rubric(name) {
  const label = document.createElement("label");
  const title = document.createElement("span");
  title.dataset.text = name;
  const select = document.createElement("select");
  select.dataset.rubric = name;
  for (const value of ["unset", "left", "right", "tie", "both_bad"]) {
    const option = document.createElement("option");
    option.value = value;
    option.dataset.text = value;
    select.append(option);
  }
  select.value = (item.vote && item.vote.rubrics[name]) || "unset";
  select.addEventListener("change", again);
  label.append(title, select);
  return label;
}

function mark(verdict) {
  for (const x of document.querySelectorAll("[data-verdict]")) x.setAttribute("aria-pressed", String(x.dataset.verdict === verdict));
}

async function send(verdict) {
  const rubrics = {};
  for (const x of document.querySelectorAll("[data-rubric]")) if (x.value !== "unset") rubrics[x.dataset.rubric] = x.value;
  const body = { id: item.id, judge, verdict, rubrics, comment: element("comment").value, seconds: (performance.now() - shownAt) / 1000 };
  const answer = await ask("votes", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  item.vote = body;
  item.done = answer.done;
  count(answer.done, answer.total);
  report(text("saved"));
}

async function vote(verdict) {
  if (!item || sending) return;
  sending = true;
  try {
    const isNew = !item.vote;
    await send(verdict);
    mark(verdict);
    if (item.done >= item.total && (isNew || item.position + 1 >= item.total)) finish();
    else if (isNew) await show();
    else if (item.position + 1 < item.total) await show(item.position + 1);
  } catch {
    report(text("failed"), true);
  } finally {
    sending = false;
  }
}

async function again() { // a reason or a comment that comes after the verdict is saved as well
  if (!item || !item.vote) return;
  try {
    await send(item.vote.verdict);
  } catch {
    report(text("failed"), true);
  }
}

function finish() {
  element("item").hidden = true;
  element("end").hidden = false;
}

async function reveal() {
  let found;
  try {
    found = await ask(`results?${new URLSearchParams({ judge })}`);
  } catch {
    report(text("failed"), true);
    return;
  }
  const row = (cells, tag) => {
    const line = document.createElement("tr");
    for (const cell of cells) {
      const x = document.createElement(tag);
      x.textContent = cell;
      line.append(x);
    }
    return line;
  };
  const percent = (x) => `${(100 * x).toFixed(0)} %`;
  const interval = (x) => (x.n ? `${percent(x.value)} [${(100 * x.low).toFixed(0)}, ${(100 * x.high).toFixed(0)}]` : text("none"));
  const lines = found.pairs.map((x) => [x.first, x.second, x.prompts, x.first_wins, x.ties, x.second_wins, interval(x.share), x.p < 0.001 ? "< 0.001" : x.p.toFixed(3)]);
  element("results").replaceChildren(row(TEXTS[language].head, "th"), ...lines.map((x) => row(x, "td")));
  element("results").hidden = false;
  const votes = Object.values(found.judges).reduce((a, b) => a + b, 0);
  const alpha = found.alpha === null ? text("none") : found.alpha.toFixed(2);
  element("facts").textContent = text("facts", { judges: Object.keys(found.judges).length, votes, alpha, left: interval(found.left) });
}

element("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  report("");
  translate();
  if (!element("results").hidden) reveal();
});
element("start").addEventListener("submit", async (event) => {
  event.preventDefault();
  judge = element("judge").value.trim();
  if (!judge) return;
  await show();
  if (item && item.done >= item.total) finish();
});
for (const x of document.querySelectorAll("[data-verdict]")) x.addEventListener("click", () => vote(x.dataset.verdict));
element("back").addEventListener("click", () => show(item.position - 1));
element("next").addEventListener("click", () => show(item.position + 1));
element("comment").addEventListener("change", again);
element("reveal").addEventListener("click", reveal);
document.addEventListener("keydown", (event) => {
  if (element("item").hidden || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (["INPUT", "TEXTAREA", "SELECT"].includes(event.target.tagName)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const verdict = { 1: "left", 2: "right", 0: "tie", b: "both_bad", B: "both_bad" }[event.key];
  if (verdict) {
    event.preventDefault();
    vote(verdict);
  } else if (event.key === "ArrowLeft" && item.position > 0) show(item.position - 1);
  else if (event.key === "ArrowRight" && item.position + 1 < item.total) show(item.position + 1);
});
translate();
element("judge").focus();
