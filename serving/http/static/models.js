// States of models, and the table of all models.

import { ago, badge, duration, h, moment, named, number, plural, show, write } from "./elements.js";
import { sparkline } from "./chart.js";

const TONES = { live: "good", "not live": "bad", waking: "busy", asleep: "idle" };
const CANDIDATES = {
  loading: {
    tone: "busy",
    word: "is loading",
    todo: "It is loaded and verified while the live version serves; it goes live once it has passed.",
  },
  waiting: {
    tone: "warn",
    word: "is waiting",
    todo: "The service tries it again by itself. Resolve the reason if this persists.",
  },
  rejected: {
    tone: "bad",
    word: "was rejected",
    todo: "Fix the cause and promote a new version. The service retries this version after one of its tags changes, or after another promotion.",
  },
  reverted: {
    tone: "bad",
    word: "was reverted",
    todo: "The previous version serves again. Find the cause and promote a new version. The service retries this version after one of its tags changes.",
  },
};

export const OUTCOMES = {
  live: { tone: "good", word: "went live" },
  rejected: { tone: "bad", word: "was rejected" },
  waiting: { tone: "warn", word: "waits" },
  reverted: { tone: "bad", word: "was reverted" },
  superseded: { tone: "idle", word: "was superseded" },
};

/** Return the short name of a reference: without its scheme. */
export function called(model) {
  return model.uri.replace(/^models:\//, "");
}

/** Return the texts of a candidate, with or without a live version. */
export function candidate({ state }, live = null) {
  if (state === "loading" && !live)
    return {
      ...CANDIDATES.loading,
      todo: "It is loaded and verified; the model serves once it has passed.",
    };
  return CANDIDATES[state] ?? { tone: "warn", word: `is ${state}`, todo: "" };
}

/** Return whether the first request loads the model. */
export function isAsleep({ state }) {
  return state === "asleep" || state === "waking";
}

export function stateBadge({ state, required }) {
  const word = state[0].toUpperCase() + state.slice(1);
  if (!required && state === "not live") return badge("idle", word, "off");
  return badge(TONES[state] ?? "warn", word);
}

/** Return the severity of a model's problems; 0 without problems. */
export function severity(model) {
  if (model.state === "not live" && model.required) return 4;
  if (["rejected", "reverted"].includes(model.candidate?.state)) return 3;
  if (model.candidate?.state === "waiting" || model.canary?.state === "stopped") return 2;
  return model.warnings.length || model.lately.failed > 0 ? 1 : 0;
}

const ORDERS = {
  given: () => 0,
  name: (a, b) => a.uri.localeCompare(b.uri),
  state: (a, b) => severity(b) - severity(a) || a.state.localeCompare(b.state),
  traffic: (a, b) => b.lately.requests - a.lately.requests,
};

/** Return the models that match a filter, in an order. */
export function chosen(models, filter, order) {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (model) =>
    [
      model.uri,
      model.state,
      `version ${model.version}`,
      model.candidate ? `${candidate(model.candidate).word} ${model.candidate.version}` : "",
    ]
      .join(" ")
      .toLowerCase();
  return models.filter((model) => words.every((word) => text(model).includes(word))).sort(ORDERS[order]);
}

/** The table's body: one row per model, which updates keep. */
export class Table {
  constructor(body) {
    this.body = body;
    this.rows = new Map();
  }

  update(models, now, selected) {
    const rows = models.map((model) => this.#row(model, now, selected === called(model)));
    const changed =
      rows.length !== this.body.children.length ||
      rows.some((row, index) => row !== this.body.children[index]);
    if (!changed) return;
    const focused = this.body.contains(document.activeElement) ? document.activeElement : null;
    this.body.replaceChildren(...rows);
    focused?.focus({ preventScroll: true });
  }

  link(model) {
    return this.rows.get(model)?.link;
  }

  #row(model, now, isSelected) {
    if (!this.rows.has(called(model))) this.rows.set(called(model), row(model));
    const { element, link, cells } = this.rows.get(called(model));
    if (isSelected) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
    element.classList.toggle("selected", isSelected);
    fill(cells, model, now);
    return element;
  }
}

function row(model) {
  const link = h("a", { href: `#${encodeURI(called(model))}` }, named(model));
  const classes = [
    "",
    "number",
    "wide",
    "number",
    "number wide",
    "number wide",
    "number wide",
    "number wide",
  ];
  const cells = classes.map((name) => h("td", name ? { class: name } : {}));
  return { element: h("tr", {}, h("th", { scope: "row" }, link), cells), link, cells };
}

function fill([state, version, since, requests, failed, p50, p99, rows], model, now) {
  const { lately, trend, warnings } = model;
  show(state, [model.state, model.candidate, model.canary?.state, model.shadow?.live, warnings], () => [
    stateBadge(model),
    notes(model),
  ]);
  show(version, model.version, () => model.version ?? "–");
  const age = model.loaded_at && ago((now - new Date(model.loaded_at)) / 1000);
  show(since, [model.loaded_at, age], () => (age ? moment(model.loaded_at, () => age) : "–"));
  show(requests, [trend, lately.requests], () =>
    h("span", { class: "traffic" }, sparkline(trend), number(lately.requests)),
  );
  show(failed, lately.failed, () => (lately.failed ? badge("bad", number(lately.failed)) : "0"));
  write(p50, duration(lately.p50));
  write(p99, duration(lately.p99));
  write(rows, number(lately.rows));
}

function notes(model) {
  const { warnings, canary, shadow } = model;
  const { tone, word } = model.candidate ? candidate(model.candidate) : {};
  const isStopped = canary?.state === "stopped";
  const notes = [
    tone && badge(tone, `${model.candidate.version ?? "candidate"} ${word}`),
    canary &&
      canary.state !== "first" &&
      badge(isStopped ? "warn" : "idle", `canary ${canary.state}`, isStopped ? "warn" : "tried"),
    shadow && badge("idle", "shadow", "tried"),
    warnings.length > 0 && badge("warn", plural(warnings.length, "warning")),
  ];
  return notes.filter(Boolean).map((note) => h("span", { class: "note" }, note));
}
