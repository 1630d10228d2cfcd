// The status page: polls /status and shows it.

import {
  ago,
  badge,
  clock,
  duration,
  exact,
  h,
  icon,
  moment,
  number,
  plural,
  show,
  write,
} from "./elements.js";
import { Detail } from "./detail.js";
import { called, candidate, chosen, OUTCOMES, severity, Table } from "./models.js";

const SECONDS = 2;
const SECONDS_WHILE_LOADING = 0.5;
const MAX_SECONDS = 30;
const TIMEOUT_SECONDS = 10;
const KEY = "serving key";

const $ = (id) => document.getElementById(id);
const table = new Table($("rows"));
const detail = new Detail($("detail"), fetchWithKey, () => Boolean(sessionStorage.getItem(KEY)));
let status = null; // the last response
let shownInFull = null; // the selected model, with all its data
let failures = 0;
let paused = false;
let failedSince = null;
let timer = null;
let polling = null; // the poll in progress

class KeyRequired extends Error {}

/** Fetch from this service, with the key if there is one. */
function fetchWithKey(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  return fetch(path, { cache: "no-store", ...options, headers });
}

async function fetchJson(path) {
  const response = await fetchWithKey(path, { signal: AbortSignal.timeout(TIMEOUT_SECONDS * 1000) });
  if (response.status === 401 || response.status === 403) throw new KeyRequired((await response.json()).detail);
  if (!response.ok) throw new Error(`status ${response.status}`);
  return response.json();
}

// -- polling

/** Poll after the one in progress, which may have begun before the viewer's last action. */
function poll() {
  clearTimeout(timer);
  polling = (polling ?? Promise.resolve()).then(pollOnce);
  return polling;
}

async function pollOnce() {
  try {
    const before = status;
    status = await fetchJson("status");
    await load(selected());
    failures = 0;
    failedSince = null;
    announce(before, status);
    render();
  } catch (error) {
    if (error instanceof KeyRequired) return askForKey(error.message);
    failures += 1;
    failedSince ??= new Date();
    showFailure(error);
  }
  schedule();
}

function schedule() {
  clearTimeout(timer);
  if (paused || document.hidden) return;
  const isLoading = status?.models.some(
    (model) => model.candidate?.state === "loading" || model.state === "waking",
  );
  const seconds = isLoading ? SECONDS_WHILE_LOADING : SECONDS;
  timer = setTimeout(poll, 1000 * (failures ? Math.min(MAX_SECONDS, 2 ** failures) : seconds));
}

/** Return the model in the page's address, or the only one. */
function selected() {
  const name = decodeURI(location.hash.slice(1));
  const model = status.models.find((candidate) => called(candidate) === name);
  return model ?? (status.models.length === 1 ? status.models[0] : null);
}

/** Load all data of a model, if it may have changed. */
async function load(model) {
  if (!model) {
    shownInFull = null;
    return;
  }
  const facts = JSON.stringify([status.ticks, model]);
  if (shownInFull?.facts === facts) return;
  const { models } = await fetchJson(`status?model=${encodeURIComponent(model.name)}`);
  shownInFull = { facts, model: models.find(({ uri }) => uri === model.uri) };
}

// -- rendering

function render() {
  if (!status) return;
  $("key").hidden = true;
  $("views").hidden = false;
  $("away").hidden = true;
  document.body.classList.remove("stale");
  $("forget").hidden = !sessionStorage.getItem(KEY);
  $("docs").hidden = Boolean(sessionStorage.getItem(KEY)); // a link sends no key
  renderOverall();
  renderServiceWarnings();
  renderList();
  renderDetail();
}

function renderOverall() {
  const { models, registry, lately } = status;
  const now = new Date(status.now);
  const required = models.filter((model) => model.required);
  const down = required.filter((model) => model.state !== "live");
  const troubled = models.filter((model) => severity(model) > 1 && model.state !== "not live");
  const isReady = status.status === "ready";
  const readiness = isReady
    ? "Ready"
    : down.length === 1
      ? `Not ready: ${called(down[0])} is not live`
      : `Not ready: ${plural(down.length, "model")} are not live`;
  const attention = troubled.length
    ? [
        badge(
          "warn",
          `${plural(troubled.length, "promotion")} ${troubled.length === 1 ? "needs" : "need"} attention`,
        ),
      ]
    : [];
  show($("overall"), [readiness, troubled.length], () => [badge(isReady ? "good" : "bad", readiness), ...attention]);
  write($("service"), status.service);
  const tone = !isReady ? "bad" : troubled.length ? "warn" : "good";
  document.title = `${isReady ? (troubled.length ? "▲ Ready" : "Ready") : "✕ Not ready"} · Model serving`;
  setIcon(tone);
  const checked = registry.checked_at ? ago((now - new Date(registry.checked_at)) / 1000) : "never";
  const registryTone = registry.reachable ? "good" : registry.reachable === false ? "warn" : "busy";
  const registryWord = registry.reachable
    ? "reachable"
    : registry.reachable === false
      ? registry.state === "away"
        ? "unreachable"
        : registry.state
      : "not yet checked";
  show(
    $("figures"),
    [registry.state, checked, lately, models.length, required.length, down.length, clock(now)],
    () => [
      figure("Live", `${models.filter(({ state }) => state === "live").length} of ${models.length}`),
      figure("Requests/s", number(lately.requests)),
      figure("Failed/s", lately.failed ? badge("bad", number(lately.failed)) : "0"),
      figure("p99", duration(lately.p99)),
      figure("Registry", [
        badge(registryTone, registryWord),
        registry.checked_at
          ? h(
              "span",
              { class: "muted" },
              " ",
              moment(registry.checked_at, () => checked),
            )
          : "",
      ]),
      figure("As of", moment(status.now)),
    ],
  );
}

function figure(term, value) {
  return h("div", {}, h("dt", {}, term), h("dd", {}, value));
}

const COLOURS = { good: "#1f8a4c", warn: "#b57700", bad: "#c62f24" };
const SHAPES = {
  good: "<circle cx='8' cy='8' r='7'/>",
  warn: "<path d='M8 1 15.5 15H.5Z'/>",
  bad: "<path d='M5 1h6l4 4v6l-4 4H5l-4-4V5Z'/>",
};

function setIcon(tone) {
  const svg = `<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16' fill='${COLOURS[tone]}'>${SHAPES[tone]}</svg>`;
  const href = `data:image/svg+xml,${encodeURIComponent(svg)}`;
  const link = document.querySelector("link[rel=icon]");
  if (link.getAttribute("href") !== href) link.setAttribute("href", href);
}

/** Show what /ready reports about the service itself, in its words. */
function renderServiceWarnings() {
  const { components, keys } = status;
  show($("service-warnings"), [components, keys], () => [
    keys != null && keys !== "readable" && warning(`keys: ${keys}`),
    ...components.map(({ name, detail, state, restarts }) =>
      warning(`${name}${detail && ` ${detail}`}: ${state}, ${plural(restarts, "restart")}`),
    ),
  ]);
}

function warning(text) {
  return h("p", { class: "callout warn" }, badge("warn", text));
}

function renderList() {
  const model = shownInFull?.model;
  const listed = chosen(status.models, $("filter").value, $("sort").value);
  table.update(listed, new Date(status.now), model ? called(model) : null);
  $("none").hidden = listed.length > 0;
  document.querySelector(".tools").hidden = status.models.length < 4;
  $("views").classList.toggle("with-detail", Boolean(model));
  $("views").classList.toggle("alone", status.models.length === 1);
  $("lately").hidden = Boolean(model) || !status.changes.length;
  show($("changes"), status.changes, () => status.changes.map(change));
}

function change({ uri, version, state, since, reason }) {
  const { tone, word } = OUTCOMES[state] ?? { tone: "idle", word: state };
  const name = called({ uri });
  return h(
    "li",
    {},
    moment(since),
    badge(tone, ""),
    h(
      "span",
      {},
      h("a", { href: `#${encodeURI(name)}` }, name),
      ` version ${version ?? "–"} ${word}`,
      reason && h("span", { class: "muted reason" }, ` ${reason}`),
    ),
  );
}

function renderDetail() {
  const model = shownInFull?.model;
  $("detail").hidden = !model;
  if (!model) return;
  const others = status.models.filter(({ name }) => name === model.name);
  detail.update(model, new Date(status.now), others);
}

// -- announcements

function announce(before, after) {
  if (!before) return;
  const news = [];
  if (before.status !== after.status) news.push(`The service is ${after.status}.`);
  for (const model of after.models) {
    const was = before.models.find(({ uri }) => uri === model.uri);
    if (!was) continue;
    if (model.version && was.version !== model.version)
      news.push(`${called(model)}: version ${model.version} is live.`);
    else if (was.state !== model.state) news.push(`${called(model)} is ${model.state}.`);
    const { version, state } = model.candidate ?? {};
    const isNew = state && (was.candidate?.state !== state || was.candidate.version !== version);
    if (isNew) news.push(`${called(model)}: version ${version} ${candidate({ state }).word}.`);
  }
  if (news.length) write($("news"), news.join(" "));
}

function showFailure(error) {
  document.body.classList.add("stale");
  const since = h(
    "time",
    { datetime: failedSince.toISOString(), title: exact(failedSince) },
    clock(failedSince),
  );
  const seconds = Math.min(MAX_SECONDS, 2 ** failures);
  const why = error.name === "TimeoutError" ? "timeout" : error.message;
  $("away").replaceChildren(
    icon("bad"),
    h(
      "span",
      {},
      "No response from the service since ",
      since,
      ` (${why}). The data below is older. Next attempt in ${seconds} s.`,
    ),
  );
  $("away").hidden = false;
  document.title = "✕ No response · Model serving";
  setIcon("bad");
}

// -- the key

function askForKey(reason) {
  const had = sessionStorage.getItem(KEY);
  $("views").hidden = true;
  $("key").hidden = false;
  write($("overall"), "Locked");
  write($("refusal"), had ? reason : "");
  $("secret").setAttribute("aria-invalid", String(Boolean(had)));
  $("secret").focus();
}

$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("secret").value.trim());
  $("secret").value = "";
  poll();
});

$("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  location.reload();
});

// -- actions of the viewer

$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  document.body.classList.toggle("paused", paused);
  if (!paused) poll();
});

for (const [id, kind] of [
  ["filter", "input"],
  ["sort", "change"],
])
  $(id).addEventListener(kind, () => status && renderList());

addEventListener("hashchange", async () => {
  const before = shownInFull?.model;
  await poll();
  const model = shownInFull?.model;
  if (model && called(model) !== (before && called(before))) $("detail-title").focus();
  if (!model && before) table.link(called(before))?.focus();
});

addEventListener("online", () => paused || document.hidden || poll());

document.addEventListener("visibilitychange", () =>
  document.hidden ? clearTimeout(timer) : paused || poll(),
);

poll();
