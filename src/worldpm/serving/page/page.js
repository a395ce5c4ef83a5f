"use strict";

const EXAMPLES = [
  {
    name: "Bread: a useful answer, a brush-off",
    prompt: "How long should I bake a loaf of white bread?",
    answers: [
      "Bake it at 220 C for about 35 to 40 minutes. It is done when it sounds hollow if you tap" +
        " its bottom.",
      "This was asked before. Please use the search.",
    ],
  },
  {
    name: "Sleep: plain words, or the same with style",
    prompt: "What helps against bad sleep?",
    answers: [
      "Go to bed at the same time every night, keep the room dark and cool, and drink no coffee" +
        " after noon.",
      "## Better sleep\n\n- **Same time** every night\n- **Dark, cool** room\n" +
        "- **No coffee** after noon",
    ],
  },
  {
    name: "A sum: right, wrong, none",
    prompt: "What is 17 times 6?",
    answers: ["17 times 6 is 102.", "17 times 6 is 112.", "It depends on how you look at it."],
  },
];
const NAMES = "ABCDEFGHIJKLMNOP";
const FEATURES = {
  length: "Length, tokens",
  headers: "Headers",
  lists: "List items",
  bold: "Bold",
  code: "Code blocks",
  links: "Links",
};
const NO_LIMIT = 1e9;
const MARKED_WORDS = 3;
const STATUS_UNAUTHORIZED = 401;
const STATUS_NOT_HERE = 501;

/* The running comparison. A newer one aborts it, and its late replies are ignored. */
let running = new AbortController();

/* An error reply of the server, or a missing reply. */
class Failure extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const $ = id => document.getElementById(id);

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/* Never show 0 % or 100 %, because a probability rounds to 100 % long before it is 1. */
function percent(p) {
  if (p > 0.995) return "over 99 %";
  if (p < 0.005) return "under 1 %";
  return `${Math.round(100 * p)} %`;
}

function signed(value) {
  return `${value < 0 ? "" : "+"}${value.toFixed(3)}`;
}

/* "A", "A and B", "A, B and C", in the order of the form. */
function list(indices) {
  const names = indices.map(i => NAMES[i]).sort();
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/* ---- The form ---- */

function areas() {
  return [...document.querySelectorAll("#answers textarea")];
}

function addAnswer(text = "") {
  if (areas().length >= NAMES.length) return;
  const block = element("div");
  const head = element("div", undefined, {class: "head"});
  const remove = element("button", "Remove", {type: "button", class: "small"});
  const area = element("textarea", undefined, {required: ""});
  remove.onclick = () => removeAnswer(block);
  area.value = text;
  head.append(element("label"), remove);
  block.append(head, area);
  $("answers").append(block);
  nameAnswers();
}

function removeAnswer(block) {
  const index = areas().indexOf(block.querySelector("textarea"));
  block.remove();
  nameAnswers();
  // Without this, keyboard users would lose their position with the removed button
  areas()[Math.min(index, areas().length - 1)].focus();
}

function nameAnswers() {
  const all = areas();
  all.forEach((area, i) => {
    const label = area.parentElement.querySelector("label");
    const remove = area.parentElement.querySelector("button");
    area.id = `answer-${i}`;
    label.htmlFor = area.id;
    label.textContent = `Answer ${NAMES[i]}`;
    remove.hidden = all.length <= 2;
    remove.setAttribute("aria-label", `Remove answer ${NAMES[i]}`);
  });
  $("add").disabled = all.length >= NAMES.length;
}

function load(example = {prompt: "", answers: ["", ""]}) {
  running.abort();
  clear();
  $("prompt").value = example.prompt;
  $("answers").replaceChildren();
  example.answers.forEach(text => addAnswer(text));
}

/* The settings of the form; undefined if all fields are empty, so that the API key's apply. */
function settings() {
  const given = {};
  const [shortest, longest] = [$("shortest").value, $("longest").value];
  if ($("strictness").value) given.strictness = Number($("strictness").value);
  if (shortest || longest)
    given.ranges = {length: [Number(shortest || 0), Number(longest || NO_LIMIT)]};

  const weights = Object.keys(FEATURES).filter(name => $(`weight-${name}`).value);
  if (weights.length)
    given.weights = Object.fromEntries(
      weights.map(name => [name, Number($(`weight-${name}`).value)]));
  return Object.keys(given).length ? given : undefined;
}

/* ---- The server ---- */

async function ask(route, body, signal) {
  const headers = {"content-type": "application/json"};
  if ($("key").value) headers.authorization = `Bearer ${$("key").value}`;
  let reply, content;
  try {
    reply = await fetch(route, {method: "POST", headers, body: JSON.stringify(body), signal});
    // A proxy's error is often not JSON
    content = await reply.json().catch(() => ({}));
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Failure("The server did not answer. Check that it is running, then try again.");
  }
  signal.throwIfAborted();
  if (!reply.ok) throw new Failure(messageOf(reply, content), reply.status);
  return content;
}

function messageOf(reply, content) {
  const error = content.error;
  return (error && error.message) || `The server answered ${reply.status} ${reply.statusText}.`;
}

/* ---- The results ---- */

/* The parts of a reply that the page shows; if weights are set, the odds and ties under them. */
function viewOf(reply) {
  const {style, averages, confidence} = reply;
  const isWeighted = Object.keys(style.terms).length > 0;
  return {
    isWeighted,
    probabilities: isWeighted ? style.with_settings : reply.probabilities,
    averages: isWeighted ? averages.with_settings : averages.without_settings,
    canTell: isWeighted ? style.can_tell_with_settings : confidence.can_tell,
    inside: reply.ranking.filter(i => !style.outside[i].length),
    outside: reply.ranking.filter(i => style.outside[i].length),
  };
}

function headline(view, level) {
  const {inside, outside, probabilities, canTell} = view;
  const [best, ...rivals] = inside;
  if (!inside.length) return "All answers are outside the allowed ranges";
  if (!rivals.length) return `Only answer ${NAMES[best]} is inside the allowed ranges`;

  const tied = rivals.filter(j => probabilities[best][j] === 0.5);
  const unsure = canTell ? rivals.filter(j => !canTell[best][j]) : tied;
  const under = view.isWeighted || outside.length ? " under these settings" : "";
  if (tied.length && tied.length === unsure.length)
    return `Answers ${list([best, ...tied])} tie${under}`;
  if (unsure.length)
    return `Can't tell answers ${list([best, ...unsure])} apart at a level of ${percent(level)}`
      + under;

  // Weights can form a cycle: the best on average may lose to one of the others
  const above = rivals.filter(j => probabilities[best][j] < 0.5);
  if (above.length)
    return `Answer ${NAMES[best]} is best on average, but ${list(above)} is preferred to it`;
  return `Answer ${NAMES[best]} is ${canTell ? "preferred" : "ahead"}${under}`;
}

/* The reliability of the headline, and its settings. */
function why(reply, view) {
  const {temperature, source} = reply.confidence;
  const sentences = [];
  if (temperature) sentences.push(`Probabilities are calibrated on ${source}.`);
  else sentences.push("Probabilities are not calibrated: the server has no judged pairs for this"
    + " model.");
  if (!view.canTell && temperature)
    sentences.push("There are too few judged pairs to report “can't tell” at a level of"
      + ` ${percent(reply.confidence.level)}.`);
  if (view.isWeighted) sentences.push("Weights of style are added to the odds.");
  return [...sentences, ...settingsInUse(reply.settings)].join(" ");
}

function settingsInUse({weights, ranges}) {
  const odds = Object.entries(weights).map(([name, weight]) => `${name} ${weight}`);
  const allowed = Object.entries(ranges).map(([name, [low, high]]) =>
    `${name} ${low}${high >= NO_LIMIT ? " or more" : ` to ${high}`}`);
  const sentences = [];
  if (odds.length) sentences.push(`Log odds: ${odds.join(", ")}.`);
  if (allowed.length) sentences.push(`Allowed: ${allowed.join(", ")}.`);
  return sentences;
}

function show(texts, reply) {
  const view = viewOf(reply);
  $("headline").textContent = headline(view, reply.confidence.level);
  $("why").textContent = why(reply, view);

  const cards = view.inside.map((i, place) => card(texts[i], reply, view, i, place + 1));
  if (view.inside.length && view.outside.length)
    cards.push(element("p", "Outside the allowed ranges, and therefore ranked after the others:",
      {class: "muted", id: "outside"}));
  view.outside.forEach((i, place) =>
    cards.push(card(texts[i], reply, view, i, view.inside.length + place + 1)));
  $("ranking").replaceChildren(...cards);
  showStyle(reply);
  $("results").hidden = false;
}

function card(text, reply, view, i, place) {
  const isOutside = view.outside.includes(i);
  const made = element("article", undefined,
    {class: isOutside ? "answer outside" : "answer", "data-answer": NAMES[i]});
  const head = element("div", undefined, {class: "head"});
  head.append(
    element("h3", `${place}. Answer ${NAMES[i]}`),
    element("span", `reward ${reply.rewards[i].toFixed(3)}`, {class: "muted"}));
  made.append(head, bar(view.averages[i]), verdict(reply, view, i));
  made.append(element("p", text, {class: "tokens", "data-tokens": i}));
  return made;
}

/* The text below has the same information, so screen readers skip the bar. */
function bar(p) {
  const outer = element("div", undefined, {class: "bar", "aria-hidden": "true"});
  const inner = element("span");
  inner.style.width = `${100 * p}%`;
  outer.append(inner);
  return outer;
}

function verdict(reply, view, i) {
  const line = element("div", undefined, {class: "row"});
  const others = reply.ranking.filter(j => j !== i);
  const over = others.length > 1 ? "over the others, on average" : `over ${NAMES[others[0]]}`;
  line.append(element("span", `${percent(view.averages[i])} likely to be preferred ${over}`));

  const unsure = others.filter(j => view.canTell && !view.canTell[i][j]);
  const badges = [...reply.style.outside[i]];
  if (unsure.length) badges.unshift(`can't tell from ${list(unsure)}`);
  if (reply.truncated[i]) badges.push("cut to the model's limit");
  line.append(...badges.map(badge => element("span", badge, {class: "badge"})));
  return line;
}

function showStyle(reply) {
  const {counts, terms} = reply.style;
  const row = (name, averages) => [name, ...averages.map(percent)];
  const rows = Object.entries(FEATURES).map(
    ([key, name]) => [name, ...counts.map(count => count[key])]);
  const {without_settings, at_equal_style, as_in_calibration, with_settings} = reply.averages;
  rows.push(row("Likely to be preferred", without_settings));
  if (at_equal_style) rows.push(row("At equal style", at_equal_style));
  if (as_in_calibration) rows.push(row("With the judges' weights of style", as_in_calibration));
  if (Object.keys(terms).length) rows.push(row("With the weights above", with_settings));

  const head = element("thead"), body = element("tbody");
  head.append(tableRow(["", ...reply.rewards.map((_, i) => NAMES[i])], "th", "col"));
  body.append(...rows.map(cells => tableRow(cells, "td", "row")));
  $("style").replaceChildren(head, body);
}

function tableRow([first, ...rest], tag, scope) {
  const made = element("tr");
  // The empty corner is not a heading
  made.append(first ? element("th", first, {scope}) : element("td"));
  made.append(...rest.map(cell => element(tag, cell, tag === "th" ? {scope} : {})));
  return made;
}

/* ---- The explanation ---- */

async function explain(body, signal) {
  $("explanation").textContent = "Looking for the words that count most …";
  try {
    const reply = await ask("v1/explain", {...body, sentences: false}, signal);
    reply.responses.forEach((response, i) =>
      document.querySelector(`[data-tokens="${i}"]`).replaceWith(heat(response.tokens.response)));
    $("explanation").replaceChildren(
      "Marked words count ", element("span", "for", {class: "key for"}), " or ",
      element("span", "against", {class: "key against"}),
      " an answer. The marks are integrated gradients of its reward, from a baseline in which all"
      + " words are blank.");
  } catch (error) {
    if (signal.aborted) return;
    // With --upstream or --replicas the weights are elsewhere, which is not an error
    $("explanation").textContent = error.status === STATUS_NOT_HERE
      ? "This server does not explain rewards: the model runs in another process."
      : `The rewards cannot be explained: ${error.message}`;
  }
}

/* The answer with coloured tokens, then the strongest tokens as text, for people who cannot see
   or distinguish the colours. */
function heat(tokens) {
  const made = element("div");
  const text = element("p", undefined, {class: "tokens"});
  const most = Math.max(...tokens.map(([, value]) => Math.abs(value)), Number.MIN_VALUE);
  for (const [token, value] of tokens) {
    const span = element("span", token, {title: `${signed(value)} logits`});
    const share = (0.75 * Math.abs(value) / most).toFixed(2);
    span.style.background = `rgb(var(--${value >= 0 ? "for" : "against"}) / ${share})`;
    text.append(span);
  }
  made.append(text);
  const words = [strongest(tokens, 1, "For"), strongest(tokens, -1, "Against")].filter(Boolean);
  made.append(...words.map(line => element("small", line, {class: "strongest"})));
  return made;
}

function strongest(tokens, sign, name) {
  const words = tokens
    .filter(([token, value]) => token.trim() && sign * value > 0)
    .sort(([, a], [, b]) => sign * (b - a))
    .slice(0, MARKED_WORDS)
    .map(([token, value]) => `“${token.trim()}” ${signed(value)}`);
  return words.length ? `${name}: ${words.join(", ")}` : "";
}

/* ---- A comparison ---- */

function clear() {
  $("results").hidden = true;
  $("error").hidden = true;
  $("error").textContent = "";
  $("status").textContent = "";
  $("explanation").textContent = "";
  delete document.body.dataset.done;
}

function showError(error) {
  clear();
  let message = error.message;
  if (error.status === STATUS_UNAUTHORIZED) {
    $("access").open = true;
    message += "\nEnter the key under “API key”.";
  }
  $("error").hidden = false;
  $("error").textContent = message;
  $("error").scrollIntoView({block: "nearest"});
}

async function compare() {
  running.abort();
  running = new AbortController();
  const signal = running.signal;
  const body = {prompt: $("prompt").value, responses: areas().map(area => area.value)};
  if ($("cut").checked) body.cut = true;
  const focused = document.activeElement;

  clear();
  $("status").textContent = "Comparing …";
  try {
    const reply = await ask("v1/rewards", {...body, settings: settings()}, signal);
    $("status").textContent = "";
    show(body.responses, reply);
    // Do not move the focus if the user has gone to another field
    if (document.activeElement === focused) $("headline").focus();
    await explain(body, signal);
    if (!signal.aborted) document.body.dataset.done = "true";
  } catch (error) {
    if (!signal.aborted) showError(error);
  }
}

/* ---- Start ---- */

async function showModel() {
  const reply = await fetch("version").catch(() => null);
  if (!reply || !reply.ok) return;
  const {model, version} = await reply.json();
  $("model").textContent = `Scored by ${model}, release ${version}.`;
}

function addWeights() {
  for (const name of Object.keys(FEATURES)) {
    const field = element("div");
    field.append(
      element("label", FEATURES[name].split(",")[0], {for: `weight-${name}`}),
      element("input", undefined, {
        id: `weight-${name}`, type: "number", min: -100, max: 100, step: "any", placeholder: 0,
      }));
    $("weights").append(field);
  }
}

function start() {
  addWeights();
  EXAMPLES.forEach((example, i) =>
    $("example").append(element("option", example.name, {value: i})));
  $("example").onchange = () => load(EXAMPLES[$("example").value]);
  $("add").onclick = () => {
    addAnswer();
    areas().at(-1).focus();
  };
  $("form").onsubmit = event => {
    event.preventDefault();
    compare();
  };
  // Open the details, because the browser cannot show an invalid field in closed ones
  $("form").addEventListener("invalid", ({target}) => {
    const folded = target.closest("details");
    if (folded) folded.open = true;
  }, true);
  document.addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
  });
  // Browsers restore the fields of an earlier visit, which would not match the example
  $("form").reset();
  $("key").value = "";
  $("example").value = "0";
  load(EXAMPLES[0]);
  showModel();
  if (location.hash === "#compare") compare();
}

start();
