// What a model's state means, and the table of all models.

import { ago, badge, duration, h, moment, named, number, show, write } from "./elements.js";
import { sparkline } from "./chart.js";

const TONES = { live: "good", "not live": "bad", waking: "busy", asleep: "idle" };
const CANDIDATES = {
  loading: {
    tone: "busy",
    word: "is loading",
    todo: "It is brought up and proved beside what is live, which answers until it has passed.",
  },
  waiting: {
    tone: "warn",
    word: "waits",
    todo: "It is tried again by itself. Look after what it waits for only if this stays so.",
  },
  rejected: {
    tone: "bad",
    word: "was refused",
    todo: "Mend what is named here and promote the version that comes of it. This one is tried again once a tag of it changes, or it is promoted anew.",
  },
  reverted: {
    tone: "bad",
    word: "was reverted",
    todo: "The version before it answers again. Find out why it failed, and promote a better one; this one is tried again once a tag of it changes.",
  },
};

export const OUTCOMES = {
  live: { tone: "good", word: "went live" },
  rejected: { tone: "bad", word: "was refused" },
  reverted: { tone: "bad", word: "was reverted" },
  superseded: { tone: "idle", word: "was superseded" },
};

/** How the page calls a reference: without the scheme that all have. */
export function called(model) {
  return model.uri.replace(/^models:\//, "");
}

/** What is said of a candidate, beside a live version or where there is none. */
export function candidate({ state }, live = null) {
  if (state === "loading" && !live)
    return {
      ...CANDIDATES.loading,
      todo: "It is brought up and proved; nothing answers until it has passed.",
    };
  return CANDIDATES[state] ?? { tone: "warn", word: `is ${state}`, todo: "" };
}

/** Whether a model is loaded once somebody asks for it. */
export function isAsleep({ state }) {
  return state === "asleep" || state === "waking";
}

export function stateBadge({ state, required }) {
  const word = state[0].toUpperCase() + state.slice(1);
  if (!required && state === "not live") return badge("idle", word, "off");
  return badge(TONES[state] ?? "warn", word);
}

/** How much a model wants somebody to look at it; 0 if not at all. */
export function trouble(model) {
  if (model.state === "not live" && model.required) return 4;
  if (["rejected", "reverted"].includes(model.candidate?.state)) return 3;
  if (model.candidate?.state === "waiting" || model.canary?.state === "stopped") return 2;
  return model.warnings.length || model.lately.failed > 0 ? 1 : 0;
}

const ORDERS = {
  given: () => 0,
  name: (a, b) => a.uri.localeCompare(b.uri),
  state: (a, b) => trouble(b) - trouble(a) || a.state.localeCompare(b.state),
  traffic: (a, b) => b.lately.requests - a.lately.requests,
};

/** The models that a filter lets through, in an order. */
export function chosen(models, filter, order) {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const told = (model) =>
    [
      model.uri,
      model.state,
      `version ${model.version}`,
      model.candidate ? `${candidate(model.candidate).word} ${model.candidate.version}` : "",
    ]
      .join(" ")
      .toLowerCase();
  return models.filter((model) => words.every((word) => told(model).includes(word))).sort(ORDERS[order]);
}

/** The table's body: one row for each model, kept from look to look. */
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
    tone && badge(tone, `${model.candidate.version ?? "it"} ${word}`),
    canary &&
      canary.state !== "first" &&
      badge(isStopped ? "warn" : "idle", `canary ${canary.state}`, isStopped ? "warn" : "tried"),
    shadow && badge("idle", "shadow", "tried"),
    warnings.length > 0 && badge("warn", warnings.length === 1 ? "a warning" : `${warnings.length} warnings`),
  ];
  return notes.filter(Boolean).map((each) => h("span", { class: "note" }, each));
}
