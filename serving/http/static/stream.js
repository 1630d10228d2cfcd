// Server-sent events in the response to a POST, which EventSource cannot send.

/** Yield the events of a response, `{name, data}`, as they arrive; `data` is text. */
export async function* events(response) {
  let rest = "";
  for await (const text of chunks(response.body.pipeThrough(new TextDecoderStream()))) {
    const blocks = (rest + text).split("\n\n");
    rest = blocks.pop();
    yield* blocks.map(parse);
  }
}

/** Iterate over a stream; not every browser can do that itself. */
async function* chunks(stream) {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {}); // the response may have been aborted
  }
}

function parse(block) {
  const event = { name: "", data: "" };
  for (const line of block.split("\n")) {
    const [field, ...value] = line.split(": ");
    if (field === "event") event.name = value.join(": ");
    else if (field === "data") event.data += value.join(": ");
  }
  return event;
}
