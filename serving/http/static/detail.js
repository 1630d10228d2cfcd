// One model: live version, candidate, warnings, traffic, drift, quality, history, and a form to try it.

import { Chart, linear, logarithmic } from "./chart.js";
import { ago, badge, duration, h, icon, moment, named, number, plural, show } from "./elements.js";
import { Form } from "./form.js";
import { called, candidate, isAsleep, OUTCOMES, stateBadge } from "./models.js";
import { observed } from "./observed.js";

const ESTIMATED =
  "Logarithmic scale; interpolated within the buckets of the histogram in /metrics.";

export class Detail {
  constructor(element, fetchWithKey, hasKey) {
    this.element = element;
    this.fetchWithKey = fetchWithKey;
    this.charts = [
      new Chart({
        title: "Requests/s",
        lines: [
          { key: "requests", label: "all" },
          { key: "refused", label: "4xx" },
          { key: "failed", label: "5xx" },
        ],
        write: number,
        scale: linear(1),
        note: "4xx: invalid requests and disconnected clients; 5xx: errors of the service or a model.",
      }),
      new Chart({
        title: "Latency",
        note: ESTIMATED,
        lines: [
          { key: "p99", label: "p99" },
          { key: "p50", label: "p50" },
        ],
        write: duration,
        scale: logarithmic,
      }),
      new Chart({
        title: "Rows per batch",
        lines: [{ key: "rows", label: "mean" }],
        write: number,
        scale: linear(2),
      }),
    ];
    this.form = new Form(fetchWithKey, hasKey);
    this.back = h("a", { href: "#", class: "back" }, "All models");
    this.title = h("h2", { id: "detail-title", tabindex: "-1" });
    this.summary = h("div", { class: "summary" });
    this.messages = h("div", { class: "messages" });
    this.facts = h("section", { class: "card facts", "aria-labelledby": "facts-title" });
    this.observed = h("div", { class: "observed" });
    this.history = h("section", { class: "card history", "aria-labelledby": "history-title" });
    element.append(
      h("div", { class: "head" }, this.back, this.title, this.summary),
      this.messages,
      h(
        "div",
        { class: "charts" },
        this.charts.map((chart) => chart.element),
      ),
      this.observed,
      h("div", { class: "two" }, this.form.element, this.facts),
      this.history,
    );
  }

  /** Show a model from `/status?model=…`; `others` are all references to the same registered model. */
  update(model, now, others) {
    const { series, history } = model;
    const age = model.loaded_at && ago((now - new Date(model.loaded_at)) / 1000);
    show(this.title, model.uri, () => named(model));
    show(this.summary, [model.state, model.version, model.loaded_at, age], () => [
      stateBadge(model),
      model.version && h("span", {}, "version ", h("strong", {}, model.version)),
      age && h("span", {}, "since ", moment(model.loaded_at), ` (${age})`),
    ]);
    const isOpen = (kind) => this.messages.querySelector(`details[data-kind="${kind}"]`)?.open;
    show(this.messages, [model.reason, model.candidate, model.warnings, model.warning_groups], () =>
      messages(model, isOpen),
    );
    const marks = (history ?? [])
      .filter((period) => period.state === "live")
      .map((period) => ({ at: new Date(period.since) / 1000, label: `v${period.version}` }));
    if (this.drawn !== `${called(model)} ${series.times.at(-1)} ${marks.length}`) {
      this.drawn = `${called(model)} ${series.times.at(-1)} ${marks.length}`;
      for (const chart of this.charts) chart.update(series, marks);
    }
    const { evaluation, drift, quality, recent_quality, canary, shadow } = model;
    const parts = [evaluation, drift, quality, recent_quality, canary, shadow];
    show(this.observed, parts, () => observed(model));
    show(this.facts, { ...model, lately: 0, trend: 0, series: 0, history: 0 }, () => facts(model, others));
    show(this.history, history, () => periods(history));
    this.#try(model, others);
  }

  /** Update the form after a swap. */
  async #try(model, others) {
    const wanted = `${model.uri} ${model.version} ${model.loaded_at} ${isAsleep(model)}`;
    if (this.tried === wanted) return;
    this.tried = wanted;
    if (this.offered !== model.uri) this.form.close();
    this.offered = model.uri;
    const isFirst = others[0]?.uri === model.uri;
    const response = await this.fetchWithKey(isFirst ? `models/${encodeURIComponent(model.name)}` : "models").catch(
      () => null,
    );
    if (this.tried !== wanted) return;
    if (!response?.ok) {
      this.tried = null; // retry with the next update
      return;
    }
    const body = await response.json();
    const described = isFirst ? body : body.models.find(({ uri }) => uri === model.uri);
    const path =
      encodeURIComponent(model.name) + (isFirst || !model.version ? "" : `/versions/${model.version}`);
    this.form.update(path, described?.contract, isAsleep(model));
  }
}

// -- candidate, reason and warnings

const KINDS = { drift: "Drift" };

function messages(model, isOpen) {
  const { reason, warnings, warning_groups: groups } = model;
  const callouts = [];
  if (model.candidate) {
    const { tone, word, todo } = candidate(model.candidate, model.version);
    const which = model.candidate.version ? `Version ${model.candidate.version}` : "The promoted version";
    callouts.push(callout(tone, `${which} ${word}`, sentence(model.candidate.reason), todo));
  }
  if (!model.version && reason && !reason.endsWith(model.candidate?.reason ?? "\0")) {
    const sleeps = isAsleep(model);
    const title = sleeps ? "The first request loads this model" : "No live version";
    callouts.push(
      callout(model.required ? "bad" : "idle", title, sentence(reason), "", sleeps ? "idle" : "off"),
    );
  }
  const panels = groups.filter((group) => group.warnings.length > 1);
  const grouped = new Set(panels.flatMap((group) => group.warnings));
  for (const warning of warnings)
    if (!grouped.has(warning)) callouts.push(callout("warn", "Warning", sentence(warning)));
  return [...callouts, ...panels.map((group) => panel(group, isOpen(group.kind)))];
}

/** Warnings of one kind in one collapsible panel. */
function panel({ kind, warnings }, open) {
  const title = `${KINDS[kind] ?? kind}: ${plural(warnings.length, "warning")}`;
  const items = warnings.map((warning) => h("li", { class: "reason" }, sentence(warning)));
  return h(
    "details",
    { class: "callout warn", "data-kind": kind, open: Boolean(open) },
    h("summary", {}, badge("warn", title)),
    h("ul", {}, items),
  );
}

function callout(tone, title, text, todo, shape = tone) {
  return h(
    "section",
    { class: `callout ${tone}` },
    icon(shape),
    h(
      "div",
      {},
      h("h3", {}, title),
      h("p", { class: "reason" }, text),
      todo && h("p", { class: "muted" }, todo),
    ),
  );
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

// -- the live version

function facts(model, others) {
  const { approval, comparison, batching, links } = model;
  const rows = {
    Reference: h("code", {}, model.uri),
    Version: model.version && link(links.version, model.version),
    "Live since": model.loaded_at && moment(model.loaded_at),
    "Approved by": approval && h("span", {}, `${approval.approver}, `, moment(approval.approved_at)),
    Stage: model.stage,
    Aliases: model.aliases.join(", "),
    "Compared with the previous version":
      comparison &&
      `${(comparison.agreement * 100).toFixed(1)} % equal predictions for its last ${plural(comparison.requests, "request")}, ${number(comparison.latency)} times its latency`,
    "Shared model calls": batching && `${batching.shared ? "yes" : "no"}: ${batching.reason}`,
    Run: model.run_id && link(links.run, h("code", {}, model.run_id)),
    "Logged model": model.model_id && link(links.logged_model, h("code", {}, model.model_id)),
    Digest: model.digest && h("code", {}, model.digest),
    Source: model.source && h("code", {}, model.source),
    "Other references": others
      .filter(({ uri }) => uri !== model.uri)
      .map(called)
      .join(", "),
  };
  const listed = Object.entries(rows).filter(([, value]) => value);
  return [
    h("h3", { id: "facts-title" }, "Live version"),
    h(
      "dl",
      {},
      listed.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))),
    ),
  ];
}

/** A link to the MLflow UI, in a new tab, where its address is known. */
function link(href, content) {
  return href ? h("a", { href, target: "_blank", rel: "noopener" }, content) : content;
}

// -- history

function periods(history) {
  const heads = ["Version", "Outcome", "From", "Until", "Reason"].map((head) =>
    h("th", { scope: "col" }, head),
  );
  const rows = (history ?? []).map((period) => {
    const { tone, word } = OUTCOMES[period.state] ?? { tone: "idle", word: period.state };
    const isOver = period.until && period.until !== period.since;
    return h(
      "tr",
      {},
      h("th", { scope: "row" }, period.version ?? "–"),
      h("td", {}, badge(tone, word)),
      h("td", {}, moment(period.since)),
      h("td", {}, isOver ? moment(period.until) : period.until ? "" : "now"),
      h("td", { class: "why" }, period.reason || ""),
    );
  });
  const table = h("table", {}, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows));
  return [
    h("h3", { id: "history-title" }, "History"),
    rows.length
      ? h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "History" }, table)
      : h("p", { class: "muted" }, "No events yet."),
  ];
}
