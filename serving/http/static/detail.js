// One model: what is live, what waits and why, its traffic, drift, quality and history, and a form to try it.

import { Chart, linear, logarithmic } from "./chart.js";
import { ago, badge, duration, h, icon, moment, named, number, plural, show } from "./elements.js";
import { Form } from "./form.js";
import { called, candidate, isAsleep, OUTCOMES, stateBadge } from "./models.js";
import { watched } from "./watched.js";

const ESTIMATED =
  "On a logarithmic scale; interpolated within the buckets of the histogram that /metrics has.";

export class Detail {
  constructor(element, ask, hasKey) {
    this.element = element;
    this.ask = ask;
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
        note: "4xx are the callers' faults, and callers who left; 5xx the service's and the models'.",
      }),
      new Chart({
        title: "Time to answer",
        note: ESTIMATED,
        lines: [
          { key: "p99", label: "p99" },
          { key: "p50", label: "p50" },
        ],
        write: duration,
        scale: logarithmic,
      }),
      new Chart({
        title: "Rows in a batch",
        lines: [{ key: "rows", label: "mean" }],
        write: number,
        scale: linear(2),
      }),
    ];
    this.form = new Form(ask, hasKey);
    this.back = h("a", { href: "#", class: "back" }, "All models");
    this.title = h("h2", { id: "detail-title", tabindex: "-1" });
    this.summary = h("div", { class: "summary" });
    this.told = h("div", { class: "told" });
    this.facts = h("section", { class: "card facts", "aria-labelledby": "facts-title" });
    this.watched = h("div", { class: "watched" });
    this.history = h("section", { class: "card history", "aria-labelledby": "history-title" });
    element.append(
      h("div", { class: "head" }, this.back, this.title, this.summary),
      this.told,
      h(
        "div",
        { class: "charts" },
        this.charts.map((chart) => chart.element),
      ),
      this.watched,
      h("div", { class: "two" }, this.form.element, this.facts),
      this.history,
    );
  }

  /** Show a model as `/status?model=…` tells of it; `others` are those that are served under the same name. */
  update(model, now, registry, others) {
    const { series, history } = model;
    const age = model.loaded_at && ago((now - new Date(model.loaded_at)) / 1000);
    show(this.title, model.uri, () => named(model));
    show(this.summary, [model.state, model.version, model.loaded_at, age], () => [
      stateBadge(model),
      model.version && h("span", {}, "version ", h("strong", {}, model.version)),
      age && h("span", {}, "since ", moment(model.loaded_at), ` (${age})`),
    ]);
    show(this.told, [model.reason, model.candidate, model.warnings], () => told(model));
    const marks = (history ?? [])
      .filter((period) => period.state === "live")
      .map((period) => ({ at: new Date(period.since) / 1000, label: `v${period.version}` }));
    if (this.drawn !== `${called(model)} ${series.times.at(-1)} ${marks.length}`) {
      this.drawn = `${called(model)} ${series.times.at(-1)} ${marks.length}`;
      for (const chart of this.charts) chart.update(series, marks);
    }
    show(this.watched, [model.drift, model.quality, model.canary, model.shadow], () => watched(model));
    show(this.facts, [{ ...model, lately: 0, trend: 0, series: 0, history: 0 }, registry.uri], () =>
      facts(model, registry, others),
    );
    show(this.history, history, () => periods(history));
    this.#try(model, others);
  }

  /** Make the form anew where another version has gone live. */
  async #try(model, others) {
    const wanted = `${model.uri} ${model.version} ${model.loaded_at} ${isAsleep(model)}`;
    if (this.tried === wanted) return;
    this.tried = wanted;
    if (this.offered !== model.uri) this.form.close();
    this.offered = model.uri;
    const isFirst = others[0]?.uri === model.uri;
    const answer = await this.ask(isFirst ? `models/${encodeURIComponent(model.name)}` : "models").catch(
      () => null,
    );
    if (this.tried !== wanted) return;
    if (!answer?.ok) {
      this.tried = null; // at the next look
      return;
    }
    const found = await answer.json();
    const described = isFirst ? found : found.models.find(({ uri }) => uri === model.uri);
    const path =
      encodeURIComponent(model.name) + (isFirst || !model.version ? "" : `/versions/${model.version}`);
    this.form.update(path, described?.contract, isAsleep(model));
  }
}

// -- what waits, and what somebody should know

function told(model) {
  const { reason, warnings } = model;
  const found = [];
  if (model.candidate) {
    const { tone, word, todo } = candidate(model.candidate, model.version);
    const which = model.candidate.version ? `Version ${model.candidate.version}` : "What is promoted";
    found.push(callout(tone, `${which} ${word}`, sentence(model.candidate.reason), todo));
  }
  if (!model.version && reason && !reason.endsWith(model.candidate?.reason ?? "\0")) {
    const sleeps = isAsleep(model);
    const title = sleeps ? "It is loaded when somebody asks for it" : "Nothing is live";
    found.push(
      callout(model.required ? "bad" : "idle", title, sentence(reason), "", sleeps ? "idle" : "off"),
    );
  }
  for (const warning of warnings) found.push(callout("warn", "A warning", sentence(warning)));
  return found;
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

function facts(model, registry, others) {
  const ui = /^https?:/.test(registry.uri) ? registry.uri.replace(/\/$/, "") : null;
  const name = encodeURIComponent(model.name);
  const { comparison, batching } = model;
  const rows = {
    Reference: h("code", {}, model.uri),
    Version: model.version && link(ui && `${ui}/#/models/${name}/versions/${model.version}`, model.version),
    "Live since": model.loaded_at && moment(model.loaded_at),
    Stage: model.stage,
    Aliases: model.aliases.join(", "),
    "Beside the version before":
      comparison &&
      `${(comparison.agreement * 100).toFixed(1)} % the same answers to its last ${plural(comparison.requests, "request")}, in ${number(comparison.latency)} times its time`,
    "Shared calls": batching && `${batching.shared ? "yes" : "no"}: ${batching.reason}`,
    Run: model.run_id && h("code", {}, model.run_id),
    "Logged model": model.model_id && h("code", {}, model.model_id),
    Digest: model.digest && h("code", {}, model.digest),
    Source: model.source && h("code", {}, model.source),
    "Also served": others
      .filter(({ uri }) => uri !== model.uri)
      .map(called)
      .join(", "),
  };
  const listed = Object.entries(rows).filter(([, value]) => value);
  return [
    h("h3", { id: "facts-title" }, "What is live"),
    h(
      "dl",
      {},
      listed.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))),
    ),
  ];
}

function link(href, text) {
  return href ? h("a", { href, target: "_blank", rel: "noopener" }, text) : text;
}

// -- history

function periods(history) {
  const heads = ["Version", "What became of it", "From", "Until", "Why"].map((head) =>
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
      : h("p", { class: "muted" }, "Nothing has happened yet."),
  ];
}
