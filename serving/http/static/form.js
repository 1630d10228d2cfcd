// «Try it»: a form made from a model's contract, which sends what is filled in and shows what is answered.

import { badge, duration, h, write } from "./elements.js";
import { made, parsed, raw } from "./fields.js";

/** The part of a model's page in which predictions are tried; `ask` fetches with the viewer's key. */
export class Form {
  constructor(ask, hasKey) {
    this.ask = ask;
    this.hasKey = hasKey;
    this.fields = [];
    this.inputs = h("div", { class: "inputs" });
    this.button = h("button", { type: "submit", class: "primary" }, "Predict");
    this.answer = h("div", { class: "answer", role: "status" });
    this.command = h("code");
    this.copied = h("span", { role: "status", class: "muted" });
    this.details = h(
      "details",
      { class: "command" },
      h("summary", {}, "As a command"),
      h("pre", { tabindex: "0", "aria-label": "The same request as a curl command" }, this.command),
      h("button", { type: "button", onclick: () => this.#copy() }, "Copy"),
      this.copied,
    );
    this.wait = h("p", { class: "muted" }, "There is a form here as soon as a version is live.");
    this.form = h(
      "form",
      { novalidate: true, onsubmit: (event) => this.#send(event), oninput: () => this.#tell() },
      this.inputs,
      this.button,
    );
    this.element = h(
      "section",
      { class: "card try", "aria-labelledby": "try-title" },
      h("h3", { id: "try-title" }, "Try it"),
      this.wait,
      this.form,
      this.answer,
      this.details,
    );
    this.close();
  }

  /** Show nothing, until it is known what to ask. */
  close() {
    this.path = null;
    this.form.hidden = this.details.hidden = this.wait.hidden = true;
    this.answer.replaceChildren();
  }

  /**
   * Make the form for what is live at `path`; what was filled in stays where its field does.
   *
   * Without a contract a model that is asleep is asked with a row in JSON, and any other is not asked.
   */
  update(path, contract, isAsleep) {
    const before =
      this.path === path ? new Map(this.fields.map((field) => [field.id, field.kept()])) : new Map();
    this.path = path;
    const example = contract?.row.examples?.[0] ?? {};
    this.fields = contract
      ? [...made("row", contract.row, example), ...made("param", contract.params ?? {}, {})]
      : [raw()];
    const isOpen = Boolean(contract) || isAsleep;
    this.form.hidden = this.details.hidden = !isOpen;
    this.wait.hidden = isOpen;
    for (const field of this.fields) if (before.has(field.id)) field.keep(before.get(field.id));
    const [rows, params] = [false, true].map((isParam) =>
      this.fields.filter((field) => field.isParam === isParam),
    );
    this.inputs.replaceChildren(
      ...rows.map((field) => field.element),
      ...(params.length
        ? [
            h(
              "fieldset",
              {},
              h("legend", {}, "Parameters"),
              params.map((field) => field.element),
            ),
          ]
        : []),
    );
    if (!before.size) this.answer.replaceChildren();
    this.#tell();
  }

  // -- what is sent

  #request() {
    const body =
      this.fields.length === 1 && this.fields[0].isRaw ? this.fields[0].text() || "{}" : this.#row();
    const query = this.fields.filter((field) => field.isParam).flatMap((field) => field.query());
    const search = new URLSearchParams(query).toString();
    return { body, url: `models/${this.path}/predict${search && `?${search}`}` };
  }

  #row() {
    const given = this.fields.filter((field) => !field.isParam && field.text() != null);
    return `{${given.map((field) => `${JSON.stringify(field.name)}: ${field.text()}`).join(", ")}}`;
  }

  #tell() {
    const { body, url } = this.#request();
    const key = this.hasKey() ? ' \\\n  -H "Authorization: Bearer $KEY"' : "";
    write(
      this.command,
      `curl --json ${quoted(body)}${key} \\\n  ${quoted(new URL(url, document.baseURI).href)}`,
    );
    write(this.copied, "");
  }

  async #copy() {
    const { command } = this;
    try {
      await navigator.clipboard.writeText(command.textContent);
      write(this.copied, "Copied");
    } catch {
      getSelection().selectAllChildren(command); // pages that came without TLS may not write there
      write(this.copied, "Selected: copy it with the keyboard");
    }
  }

  async #send(event) {
    event.preventDefault();
    for (const field of this.fields) field.fault("");
    const { body, url } = this.#request();
    const wrong = this.fields.filter((field) => field.isWrong());
    for (const field of wrong) field.fault(field.isWrong());
    if (wrong.length) return this.#refuse(wrong.length, wrong);
    this.button.setAttribute("aria-disabled", "true");
    const began = performance.now();
    const { path } = this;
    const show = (...found) => this.path === path && this.answer.replaceChildren(...found);
    try {
      const answer = await this.ask(url, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body,
      });
      const text = await answer.text();
      const seconds = (performance.now() - began) / 1000;
      show(...(answer.ok ? told(answer, text, seconds) : this.#problem(answer, text)));
    } catch (error) {
      show(h("p", {}, badge("bad", `The service did not answer: ${error.message}`)));
    } finally {
      this.button.removeAttribute("aria-disabled");
    }
  }

  // -- what is answered

  #refuse(count, fields) {
    const what = count === 1 ? "One field does" : `${count} fields do`;
    this.answer.replaceChildren(h("p", {}, badge("bad", `${what} not fit.`)));
    fields[0].focus();
  }

  #problem(answer, text) {
    const problem = parsed(text) ?? {};
    const unplaced = [];
    const placed = [];
    for (const { loc, msg } of problem.errors ?? []) {
      const field = this.fields.find((each) => each.name === loc[0] && !each.isRaw);
      const where = loc.slice(field ? 1 : 0).join(" › ");
      const message = where ? `${where}: ${msg}` : msg;
      if (field) placed.push(field) && field.fault(message);
      else unplaced.push(message);
    }
    placed[0]?.focus();
    return [
      h("p", {}, badge("bad", `${answer.status} ${problem.title ?? ""}`)),
      h("p", {}, problem.detail ?? text.slice(0, 500)),
      unplaced.length > 0 &&
        h(
          "ul",
          {},
          unplaced.map((each) => h("li", {}, each)),
        ),
      problem.request_id && h("p", { class: "muted" }, "Request ", h("code", {}, problem.request_id)),
    ].filter(Boolean);
  }
}

function told(answer, text, seconds) {
  const version = decodeURIComponent(answer.headers.get("X-Model-Version") ?? "");
  const timing = /model;dur=([\d.]+)/.exec(answer.headers.get("Server-Timing") ?? "");
  const model = timing ? `, of which the model took ${duration(timing[1] / 1000)}` : "";
  const found = exactly(text);
  const { label, prediction, confidence } = found ?? {};
  const isValue = typeof prediction !== "object" || JSON.isRawJSON?.(prediction);
  const said = label ?? (isValue ? (prediction?.rawJSON ?? String(prediction)) : null);
  const sure = typeof confidence === "number" && ` · ${(confidence * 100).toFixed(1)} %`;
  return [
    said != null && h("p", { class: "said" }, h("strong", {}, said), sure),
    h("p", { class: "muted" }, `Version ${version} answered in ${duration(seconds)}${model}.`),
    h(
      "pre",
      { tabindex: "0", "aria-label": "The whole answer" },
      h("code", {}, JSON.stringify(found, null, 2)),
    ),
  ].filter(Boolean);
}

/** JSON whose numbers are written again as they came, where the browser can: 1.0, and 64 bits. */
function exactly(text) {
  return JSON.parse(text, (key, value, context) => {
    const isLong = typeof value === "number" && context?.source && String(value) !== context.source;
    return isLong && JSON.rawJSON && key !== "confidence" ? JSON.rawJSON(context.source) : value;
  });
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
