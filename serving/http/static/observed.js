// Data of a model's features: evidence, canary, shadow, drift, and quality from feedback.

import { badge, h, number } from "./elements.js";
import { evidence } from "./evidence.js";

/** Labels of fields; other fields use their own name. */
const NAMES = {
  share: "Intended share",
  live: "Compared with version",
  rows: "Rows compared",
  agreement: "Equal within 1 %",
  "differences p50": "Difference, median",
  "differences p95": "Difference, p95",
  "differences p99": "Difference, p99",
  "differences p100": "Difference, maximum",
  latency: "Latency",
  failed: "Failed rows",
  dropped: "Dropped rows",
};
const SHARES = /^(share|agreement|accuracy|differences .*)$/;

/** Return one card per feature with data. */
export function observed({ evaluation, drift, quality, recent_quality: recent, canary, shadow }) {
  return [
    evidence(evaluation),
    figures("canary", "Canary", canary),
    figures("shadow", "Shadow", shadow),
    driftTable(drift),
    figures("quality", "Live quality", quality),
    qualityTable(recent),
  ];
}

/** Values by name, or a list of such objects; nested names are joined. */
function figures(id, title, data) {
  const listed = [data ?? []].flat().map((values) => [...flat(values)]);
  if (!listed.some((values) => values.length)) return null;
  const rows = (values) =>
    values.map(([name, value]) =>
      h("div", {}, h("dt", {}, NAMES[name] ?? name.replaceAll("_", " ")), h("dd", {}, format(name, value))),
    );
  return h(
    "section",
    { class: "card facts", "aria-labelledby": `${id}-title` },
    h("h3", { id: `${id}-title` }, title),
    listed.map((values) => h("dl", {}, rows(values))),
  );
}

function* flat(data, before = "") {
  for (const [name, value] of Object.entries(data)) {
    if (value != null && typeof value === "object") yield* flat(value, `${before}${name} `);
    else if (value != null && value !== "") yield [before + name, value];
  }
}

function format(name, value) {
  if (typeof value !== "number") return String(value);
  const rounded = { maximumSignificantDigits: 4 };
  if (SHARES.test(name)) return value.toLocaleString(undefined, { style: "percent", ...rounded });
  const text = value.toLocaleString(undefined, rounded);
  return name === "latency" ? `${text} times the live version's` : text;
}

/** Population stability index: by the usual rule, below 0.1 is little drift and above 0.25 is much. */
function driftTable(columns) {
  if (!columns?.length) return null;
  const heads = [
    h("th", { scope: "col" }, "Column"),
    h("th", { scope: "col" }, h("span", { class: "unseen" }, "Bar")),
    h("th", { scope: "col", class: "number" }, h("abbr", { title: "population stability index" }, "PSI")),
    h("th", { scope: "col" }, "Drift"),
    h("th", { scope: "col", class: "number" }, "Rows"),
  ];
  const table = h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, columns.map(column)));
  return h(
    "section",
    { class: "card", "aria-labelledby": "drift-title" },
    h("h3", { id: "drift-title" }, "Drift from the training data"),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Drift by column" }, table),
  );
}

function column({ column: name, side, psi, rows }) {
  const [tone, word] = psi < 0.1 ? ["good", "little"] : psi < 0.25 ? ["warn", "some"] : ["bad", "much"];
  const bar = h("span", { class: `bar-of ${tone}`, "aria-hidden": "true" });
  bar.style.inlineSize = `${Math.min(100, (psi / 0.5) * 100)}%`;
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, name, h("span", { class: "muted" }, ` ${side}`)),
    h("td", { class: "bars" }, bar),
    h("td", { class: "number" }, number(psi)),
    h("td", {}, badge(tone, word)),
    h("td", { class: "number" }, rows.toLocaleString()),
  );
}

/** Metrics of the last days: one line for all rows, one per class, and one per slice. */
function qualityTable(recent) {
  if (!recent) return null;
  const lines = [
    ["All", { rows: recent.rows, ...recent.metrics }],
    ...Object.entries(recent.classes),
    ...Object.entries(recent.slices),
  ];
  const names = [...new Set(lines.flatMap(([, values]) => Object.keys(values)))];
  const heads = ["Part", ...names].map((name, index) =>
    h("th", { scope: "col", class: index ? "number" : "" }, name.replaceAll("_", " ")),
  );
  const cells = (values) =>
    names.map((name) => h("td", { class: "number" }, name in values ? format(name, values[name]) : "–"));
  const body = lines.map(([part, values]) => h("tr", {}, h("th", { scope: "row" }, part), cells(values)));
  const table = h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, body));
  const title = `Quality of the last ${recent.days.toLocaleString()} days`;
  return h(
    "section",
    { class: "card", "aria-labelledby": "recent-title" },
    h("h3", { id: "recent-title" }, title),
    recent.is_limited ? h("p", { class: "muted" }, "Only the newest outcomes count.") : null,
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Quality by part" }, table),
  );
}
