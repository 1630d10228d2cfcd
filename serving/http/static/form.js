// «Try it»: a form generated from a model's contract, which sends a request and shows the response.

import { badge, duration, h, plural, write } from "./elements.js";
import { createFields, parsed, rawField } from "./fields.js";
import { events } from "./stream.js";

const MAX_CHARACTERS = 50_000; // shown at a time, of a stream that may not end
const RENDER_MS = 100; // a fast stream would otherwise block the page

/** The part of a model's page that sends predictions; `fetchWithKey` adds the viewer's key. */
export class Form {
  constructor(fetchWithKey, hasKey) {
    this.fetchWithKey = fetchWithKey;
    this.hasKey = hasKey;
    this.fields = [];
    this.inputs = h("div", { class: "inputs" });
    this.button = h("button", { type: "submit", class: "primary" }, "Predict");
    this.streamed = h("input", { type: "checkbox", id: "stream", onchange: () => this.#showCommand() });
    this.stop = h("button", { type: "button", onclick: () => this.controller?.abort() }, "Stop");
    this.options = h(
      "p",
      { class: "box stream" },
      this.streamed,
      h("label", { for: "stream" }, "Stream the output"),
    );
    this.output = h("div", { class: "output", role: "status" });
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
    this.wait = h("p", { class: "muted" }, "The form appears when a version is live.");
    this.form = h(
      "form",
      { novalidate: true, onsubmit: (event) => this.#send(event), oninput: () => this.#showCommand() },
      this.inputs,
      this.options,
      h("div", { class: "buttons" }, this.button, this.stop),
    );
    this.element = h(
      "section",
      { class: "card try", "aria-labelledby": "try-title" },
      h("h3", { id: "try-title" }, "Try it"),
      this.wait,
      this.form,
      this.output,
      this.details,
    );
    this.close();
  }

  /** Hide the form until the contract is known. */
  close() {
    this.path = null;
    this.controller?.abort();
    this.form.hidden = this.details.hidden = this.wait.hidden = true;
    this.output.replaceChildren();
    this.stop.hidden = true;
  }

  /**
   * Create the form for the live version at `path`; values of fields that remain are kept.
   *
   * Without a contract, the form of a model that is not loaded has one field for a row in JSON; other models
   * have no form.
   */
  update(path, contract, isAsleep) {
    const before =
      this.path === path ? new Map(this.fields.map((field) => [field.id, field.value()])) : new Map();
    this.path = path;
    const example = contract?.row.examples?.[0] ?? {};
    this.fields = contract
      ? [...createFields("row", contract.row, example), ...createFields("param", contract.params ?? {}, {})]
      : [rawField()];
    const isOpen = Boolean(contract) || isAsleep;
    this.form.hidden = this.details.hidden = !isOpen;
    this.wait.hidden = isOpen;
    this.options.hidden = !contract?.streams;
    if (this.options.hidden) this.streamed.checked = false;
    for (const field of this.fields) if (before.has(field.id)) field.restore(before.get(field.id));
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
    if (!before.size) this.output.replaceChildren();
    this.#showCommand();
  }

  // -- request

  #request() {
    const body =
      this.fields.length === 1 && this.fields[0].isRaw ? this.fields[0].text() || "{}" : this.#row();
    const query = this.fields.filter((field) => field.isParam).flatMap((field) => field.query());
    const search = new URLSearchParams(query).toString();
    const endpoint = this.streamed.checked ? "predict/stream" : "predict";
    return { body, url: `models/${this.path}/${endpoint}${search && `?${search}`}` };
  }

  #row() {
    const fields = this.fields.filter((field) => !field.isParam && field.text() != null);
    return `{${fields.map((field) => `${JSON.stringify(field.name)}: ${field.text()}`).join(", ")}}`;
  }

  #showCommand() {
    const { body, url } = this.#request();
    const key = this.hasKey() ? ' \\\n  -H "Authorization: Bearer $KEY"' : "";
    const option = this.streamed.checked ? "--no-buffer " : "";
    write(
      this.command,
      `curl ${option}--json ${quoted(body)}${key} \\\n  ${quoted(new URL(url, document.baseURI).href)}`,
    );
    write(this.copied, "");
  }

  async #copy() {
    const { command } = this;
    try {
      await navigator.clipboard.writeText(command.textContent);
      write(this.copied, "Copied");
    } catch {
      getSelection().selectAllChildren(command); // pages without TLS cannot write to the clipboard
      write(this.copied, "Selected: press the copy key");
    }
  }

  async #send(event) {
    event.preventDefault();
    if (this.button.getAttribute("aria-disabled")) return;
    for (const field of this.fields) field.fault("");
    const { body, url } = this.#request();
    const invalid = this.fields.filter((field) => field.problem());
    for (const field of invalid) field.fault(field.problem());
    if (invalid.length) return this.#reject(invalid);
    this.button.setAttribute("aria-disabled", "true");
    const began = performance.now();
    const { path } = this;
    const show = (...nodes) => this.path === path && this.output.replaceChildren(...nodes);
    const elapsed = () => (performance.now() - began) / 1000;
    this.controller = new AbortController();
    this.stop.hidden = !this.streamed.checked;
    try {
      const response = await this.fetchWithKey(url, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body,
        signal: this.controller.signal,
      });
      if (response.ok && this.streamed.checked) return await this.#showStream(response, show, elapsed);
      const text = await response.text();
      show(...(response.ok ? prediction(response, text, elapsed()) : this.#problem(response.status, text)));
    } catch (error) {
      if (error.name !== "AbortError")
        show(h("p", {}, badge("bad", `No response from the service: ${error.message}`)));
    } finally {
      this.button.removeAttribute("aria-disabled");
      this.stop.hidden = true;
    }
  }

  // -- response

  async #showStream(response, show, elapsed) {
    const lines = h("code");
    const summary = h("p", { class: "muted" }, "Waiting for the first chunk …");
    let [count, text, timer, isComplete] = [0, "", null, false];
    const render = () => {
      timer = null;
      write(lines, text);
      list.scrollTop = list.scrollHeight;
    };
    // The chunks are no live region: a screen reader would interrupt itself with each one.
    const attributes = { tabindex: "0", role: "log", "aria-live": "off", "aria-label": "Streamed chunks" };
    const list = h("pre", attributes, lines);
    show(summary, list);
    try {
      for await (const { name, data } of events(response)) {
        if (name === "error") return show(list, ...this.#problem(parsed(data)?.status ?? "", data));
        isComplete = name === "end";
        if (isComplete) break;
        count += 1;
        if (count === 1) write(summary, `First chunk after ${duration(elapsed())}.`);
        text = `${text}${data}\n`.slice(-MAX_CHARACTERS);
        timer ??= setTimeout(render, RENDER_MS);
      }
    } catch (error) {
      if (error.name !== "AbortError") throw error;
      return write(summary, `Stopped after ${plural(count, "chunk")}.`);
    } finally {
      clearTimeout(timer);
      render();
    }
    const version = decodeURIComponent(response.headers.get("X-Model-Version") ?? "");
    const outcome = isComplete ? "streamed" : "closed the connection after";
    write(summary, `Version ${version} ${outcome} ${plural(count, "chunk")} in ${duration(elapsed())}.`);
  }

  #reject(fields) {
    const subject = fields.length === 1 ? "One field is" : `${fields.length} fields are`;
    this.output.replaceChildren(h("p", {}, badge("bad", `${subject} invalid.`)));
    fields[0].focus();
  }

  #problem(status, text) {
    const problem = parsed(text) ?? {};
    const unplaced = [];
    const placed = [];
    for (const { loc, msg } of problem.errors ?? []) {
      const field = this.fields.find((one) => one.name === loc[0] && !one.isRaw);
      const where = loc.slice(field ? 1 : 0).join(" › ");
      const message = where ? `${where}: ${msg}` : msg;
      if (field) placed.push(field) && field.fault(message);
      else unplaced.push(message);
    }
    placed[0]?.focus();
    return [
      h("p", {}, badge("bad", `${status} ${problem.title ?? ""}`)),
      h("p", {}, problem.detail ?? text.slice(0, 500)),
      unplaced.length > 0 &&
        h(
          "ul",
          {},
          unplaced.map((message) => h("li", {}, message)),
        ),
      problem.request_id && h("p", { class: "muted" }, "Request ", h("code", {}, problem.request_id)),
    ].filter(Boolean);
  }
}

function prediction(response, text, seconds) {
  const version = decodeURIComponent(response.headers.get("X-Model-Version") ?? "");
  const timing = /model;dur=([\d.]+)/.exec(response.headers.get("Server-Timing") ?? "");
  const model = timing ? ` (model: ${duration(timing[1] / 1000)})` : "";
  const body = parseExactly(text);
  const { label, prediction: value, confidence } = body ?? {};
  const isScalar = typeof value !== "object" || JSON.isRawJSON?.(value);
  const result = label ?? (isScalar ? (value?.rawJSON ?? String(value)) : null);
  const sure = typeof confidence === "number" && ` · ${(confidence * 100).toFixed(1)} %`;
  return [
    result != null && h("p", { class: "result" }, h("strong", {}, result), sure),
    h("p", { class: "muted" }, `Version ${version} responded in ${duration(seconds)}${model}.`),
    h(
      "pre",
      { tabindex: "0", "aria-label": "Complete response" },
      h("code", {}, JSON.stringify(body, null, 2)),
    ),
  ].filter(Boolean);
}

/** Parse JSON so that numbers keep their text where the browser supports it: 1.0, and 64 bits. */
function parseExactly(text) {
  return JSON.parse(text, (key, value, context) => {
    const isLong = typeof value === "number" && context?.source && String(value) !== context.source;
    return isLong && JSON.rawJSON && key !== "confidence" ? JSON.rawJSON(context.source) : value;
  });
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
