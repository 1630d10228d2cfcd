// What is watched of a model: versions that are tried on live requests, drift, and how right its answers were.

import { badge, h, number } from "./elements.js";

/** How what is tried is called; the rest by its own name. */
const NAMES = {
  share: "Meant to get",
  live: "Beside version",
  rows: "Rows compared",
  agreement: "The same, within 1 %",
  "differences p50": "Half differ by up to",
  "differences p95": "95 % differ by up to",
  "differences p99": "99 % differ by up to",
  "differences p100": "The most",
  latency: "Time it takes",
  failed: "Rows it failed on",
  dropped: "Rows left out",
};
const SHARES = /^(share|agreement|accuracy|differences .*)$/;

/** A card for each thing that is told of; none for what is not. */
export function watched({ drift, quality, canary, shadow }) {
  return [
    figures("canary", "Canary", canary),
    figures("shadow", "Shadow", shadow),
    drifted(drift),
    figures("quality", "Live quality", quality),
  ];
}

/** Figures by their names, or a list of such; what is nested in one is named after both. */
function figures(id, title, found) {
  const listed = [found ?? []].flat().map((each) => [...flat(each)]);
  if (!listed.some((each) => each.length)) return null;
  const rows = (each) =>
    each.map(([name, value]) =>
      h("div", {}, h("dt", {}, NAMES[name] ?? name.replaceAll("_", " ")), h("dd", {}, written(name, value))),
    );
  return h(
    "section",
    { class: "card facts", "aria-labelledby": `${id}-title` },
    h("h3", { id: `${id}-title` }, title),
    listed.map((each) => h("dl", {}, rows(each))),
  );
}

function* flat(found, before = "") {
  for (const [name, value] of Object.entries(found)) {
    if (value != null && typeof value === "object") yield* flat(value, `${before}${name} `);
    else if (value != null && value !== "") yield [before + name, value];
  }
}

function written(name, value) {
  if (typeof value !== "number") return String(value);
  const rounded = { maximumSignificantDigits: 4 };
  if (SHARES.test(name)) return value.toLocaleString(undefined, { style: "percent", ...rounded });
  const told = value.toLocaleString(undefined, rounded);
  return name === "latency" ? `${told} times the live one's` : told;
}

/** Population stability index: by the usual rule little below 0.1, much above 0.25. */
function drifted(columns) {
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
    h("h3", { id: "drift-title" }, "Drift from what it was trained on"),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Drift of each column" }, table),
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
