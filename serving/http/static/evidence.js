// The evidence with which the live version went live: the rules of its model, and what its labelled rows show.

import { badge, h } from "./elements.js";

const TONES = { holds: "good", fails: "bad", "not enough evidence": "warn", "no champion": "idle" };

/** Return a card with one line per rule; null if the version was not evaluated. */
export function evidence(evaluation) {
  if (!evaluation) return null;
  const { rows, source, champion, confidence, rules } = evaluation;
  const columns = ["Rule", "Decision", "Value", "Champion", "Bounds", "Rows"];
  const heads = columns.map((name, index) =>
    h("th", { scope: "col", class: index > 1 ? "number" : "" }, name),
  );
  const table = h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rules.map(line)));
  const against = champion ? `, compared with ${champion}` : "";
  const level = (confidence * 100).toLocaleString();
  const summary = `${rows.toLocaleString()} labelled rows from ${source}${against}; each bound holds with ${level} % confidence.`;
  return h(
    "section",
    { class: "card", "aria-labelledby": "evidence-title" },
    h("h3", { id: "evidence-title" }, "Evidence"),
    h("p", { class: "muted" }, summary),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Evidence by rule" }, table),
  );
}

function line({ rule, decision, value, champion, low, high, rows }) {
  const bounds = low == null && high == null ? "–" : `${figure(low)} to ${figure(high)}`;
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, h("code", {}, rule)),
    h("td", {}, badge(TONES[decision] ?? "idle", decision)),
    [figure(value), figure(champion), bounds, rows.toLocaleString()].map((text) =>
      h("td", { class: "number" }, text),
    ),
  );
}

function figure(value) {
  return value == null ? "–" : value.toLocaleString(undefined, { maximumSignificantDigits: 4 });
}
