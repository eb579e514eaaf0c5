// Thumbnails, a viewer for originals, and downloads, in a notebook.
// Ids are strings throughout: JavaScript's numbers end at 53 bits.

const DESCRIBED = ["label", "summary", "legend", "more", "judging", "selecting"];

function render({ model, el }) {
  el.dataset.lmSuppressShortcuts = "true"; // of JupyterLab, which would take Enter and letters
  const send = (type) => (key) => model.send({ type, key });
  const picks = model.get("picks");
  const grid = createGrid(el, {
    size: model.get("size"),
    draggable: picks,
    onPick: picks ? send("pick") : (key) => viewer.update({ current: key }),
    onOpen: picks || model.get("selecting") ? (key) => viewer.update({ current: key }) : undefined, // else a click does it
    onMore: () => model.send({ type: "more" }),
    onJudge: picks ? (key, value) => model.send({ type: "judge", key, value }) : undefined,
    onUndo: () => model.send({ type: "undo" }),
    onSelect: (keys) => {
      model.set("selected", keys);
      model.save_changes();
    },
  });
  const viewer = createViewer(el, { load, onSearch: picks ? send("pick") : undefined });

  const urls = new Map(); // of thumbnails, by key
  const awaited = new Map(); // originals that the kernel was asked for
  let original = "";
  let query = "";
  let bytes = null;

  function draw() {
    const items = model.get("items").map(({ thumb, ...item }) => {
      if (thumb && !urls.has(item.key)) urls.set(item.key, URL.createObjectURL(new Blob([thumb], { type: "image/jpeg" })));
      return { ...item, src: thumb ? urls.get(item.key) : "" };
    });
    const picture = model.get("query");
    if (picture !== bytes) {
      URL.revokeObjectURL(query);
      query = picture ? URL.createObjectURL(new Blob([picture], { type: "image/jpeg" })) : "";
      bytes = picture;
    }
    const keys = new Set(items.map((item) => item.key));
    for (const [key, url] of urls) {
      if (keys.has(key)) continue;
      URL.revokeObjectURL(url);
      urls.delete(key);
    }
    viewer.update({ items, query: query && { src: query, name: model.get("query_name") } });
    grid.update({ items, selected: model.get("selected") });
  }

  function describe() {
    grid.update(Object.fromEntries(DESCRIBED.map((name) => [name, model.get(name)])));
  }

  function load(key) {
    return new Promise((resolve, reject) => {
      awaited.set(key, { resolve, reject });
      model.send({ type: "open", key });
    });
  }

  function receive(content, buffers) {
    if (content.type === "original" && awaited.has(content.key)) {
      const { resolve, reject } = awaited.get(content.key);
      awaited.delete(content.key);
      URL.revokeObjectURL(original);
      original = content.error ? "" : URL.createObjectURL(new Blob([buffers[0]], { type: content.mime }));
      if (content.error) reject(new Error(content.error));
      else resolve({ src: original, note: content.note });
    } else if (el.offsetParent === null) {
      // The panel may be open in several views; one is enough for the rest.
    } else if (content.type === "reveal") grid.update({ reveal: true });
    else if (content.type === "download") {
      const link = make("a", { href: URL.createObjectURL(new Blob([buffers[0]], { type: content.mime })), download: content.name });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    }
  }

  const described = DESCRIBED.map((name) => `change:${name}`).join(" ");
  const drawn = "change:items change:selected change:query";
  model.on(drawn, draw);
  model.on(described, describe);
  model.on("msg:custom", receive);
  describe();
  draw();
  return () => {
    model.off(drawn, draw);
    model.off(described, describe);
    model.off("msg:custom", receive);
    grid.destroy();
    viewer.destroy();
    urls.forEach((url) => URL.revokeObjectURL(url));
    [original, query].forEach((url) => URL.revokeObjectURL(url));
  };
}

export default { render };
