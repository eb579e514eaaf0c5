// The dialog in which an administrator loads a folder, with the progress of what is being loaded.
//
//   const load = createLoad(dialog, opener, { onLoaded(ingest) {} });
//   load.update({ roots: ["/data"], collection: "photos", collections: ["photos"] });
import { request } from "./api.js";
import { button, make, put } from "./dom.js";

const ENDED = ["done", "stopped", "failed"];

function count(number, what, each = what) {
  return `${number.toLocaleString("en")} ${number === 1 ? each : what}`;
}

function describe(ingest) {
  const { state, total, done, encoded, linked, unchanged, failed, seconds_left: left, error } = ingest;
  if (state === "queued") return "Waiting for its turn …";
  if (state === "failed") return `Loading failed: ${error}`;
  const parts = [count(encoded, "added")];
  if (linked) parts.push(count(linked, "duplicates", "duplicate"));
  if (unchanged) parts.push(count(unchanged, "already stored"));
  if (failed) parts.push(count(failed, "could not be read"));
  const head = { done: "Done", stopped: "Stopped" }[state] ?? (total ? `${done.toLocaleString("en")} of ${count(total, "files", "file")}` : "Looking for images …");
  if (left) parts.push(left < 90 ? `${Math.ceil(left)} s left` : `${Math.ceil(left / 60)} min left`);
  return [head, ...parts].join(" · ");
}

export function createLoad(dialog, opener, options) {
  const folder = make("input.field", { name: "folder", required: true, autocomplete: "off" });
  const collection = make("input.field", { name: "collection", required: true, autocomplete: "off", pattern: "[A-Za-z_][A-Za-z0-9_]*", title: "Letters, digits and _" });
  const roots = make("datalist", { id: "roots" });
  const names = make("datalist", { id: "collections" });
  folder.setAttribute("list", "roots");
  collection.setAttribute("list", "collections");
  const recursive = make("input", { type: "checkbox", checked: true });
  const start = make("button.button.primary", { type: "submit" }, "Start");
  const message = make("p.wrong", { role: "alert" });
  const form = make("form", {},
    make("label", {}, "Folder on the server", folder), make("label", {}, "Collection", collection),
    make("label.check", {}, recursive, "Include subfolders"), start, roots, names);
  const none = make("p", {}, "Start the server with --root DIR to name the folders that may be loaded.");
  const bar = make("progress", { ariaLabel: "Progress of the load" });
  const line = make("p", { role: "status" });
  const stop = button("Stop", () => request(`ingests/${following.id}/stop`, { method: "POST" }).catch(wrong));
  const failures = make("details");
  const progress = make("div.progress", { hidden: true }, bar, line, stop, failures);
  const close = button("Close", () => dialog.close());
  dialog.append(make("div.sheet-head", {}, make("h2", { id: "loading-title" }, "Load images"), close),
    none, form, message, progress);

  let following = null; // { id, source } of the ingest that is shown

  function wrong(error) {
    message.textContent = error.message;
  }

  function show(ingest) {
    const ended = ENDED.includes(ingest.state);
    put(progress, { hidden: false });
    put(bar, { hidden: ended });
    if (ingest.total) put(bar, { max: ingest.total, value: ingest.done });
    else bar.removeAttribute("value");
    put(line, { textContent: describe(ingest) });
    put(stop, { hidden: ended });
    put(start, { disabled: !ended });
    put(opener, { textContent: ended ? "Load images" : `Loading ${ingest.total ? Math.floor(100 * ingest.done / ingest.total) : 0} %` });
    put(failures, { hidden: !ended || !ingest.failures.length });
    failures.replaceChildren(make("summary", {}, "Files that could not be read"),
      ...ingest.failures.map(({ path, reason }) => make("p.muted", {}, `${path}: ${reason}`)));
    if (!ended) return;
    following?.source.close();
    options.onLoaded(ingest);
  }

  function follow(ingest) {
    following?.source.close();
    following = { id: ingest.id, source: new EventSource(`/api/v1/ingests/${ingest.id}/events`) };
    following.source.addEventListener("message", (event) => show(JSON.parse(event.data)));
    following.source.addEventListener("error", () => {
      if (following.source.readyState !== EventSource.CLOSED) return; // it connects again by itself
      put(line, { textContent: "The progress cannot be followed any more: load the page again." });
      put(start, { disabled: false });
    });
  }

  opener.onclick = () => dialog.showModal();
  form.onsubmit = async (event) => {
    event.preventDefault();
    message.textContent = "";
    try {
      const body = { folder: folder.value, collection: collection.value, recursive: recursive.checked };
      follow(await request("ingests", { body }));
    } catch (error) {
      wrong(error);
    }
  };

  return {
    update(given) {
      put(none, { hidden: given.roots.length > 0 });
      put(form, { hidden: !given.roots.length });
      if (document.activeElement !== folder) folder.value ||= given.roots[0] ?? "";
      if (!dialog.open) collection.value = given.collection;
      roots.replaceChildren(...given.roots.map((value) => make("option", { value })));
      names.replaceChildren(...given.collections.map((value) => make("option", { value })));
    },
    // Shows an ingest that was started before the page was loaded.
    async resume() {
      const running = (await request("ingests")).find((ingest) => !ENDED.includes(ingest.state));
      if (running) follow(running);
    },
  };
}
