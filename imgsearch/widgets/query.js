// The picture to search with, in a notebook. Files are uploaded to the kernel in pieces smaller
// than any server's message limit. The kernel requests each piece, so it is never flooded, and a
// lost piece is noticed.

const PIECE = 4 * 2 ** 20; // bytes
const TIMEOUT = 20_000; // milliseconds

function render({ model, el }) {
  el.dataset.lmSuppressShortcuts = "true"; // of JupyterLab, which would take Enter and letters
  const drop = createDrop(el, {
    onFiles: (files) => {
      waiting.push(...files);
      begin();
    },
    onKey: (key) => model.send({ type: "key", key }),
    onText: (text) => model.send({ type: "text", text }),
  });
  const crop = createCrop(drop.slot, { onBox: (box) => model.send({ type: "box", box }) });

  const waiting = [];
  let sending = null;
  let timer = 0;
  let url = "";
  let bytes = null;

  function draw() {
    const picture = model.get("picture");
    if (picture !== bytes) {
      URL.revokeObjectURL(url);
      url = picture ? URL.createObjectURL(new Blob([picture], { type: "image/jpeg" })) : "";
      bytes = picture;
    }
    const [width, height] = model.get("size");
    const name = model.get("name");
    const box = model.get("box");
    crop.update({ src: url, width, height, box: box.length ? box : null, alt: name && `Query: ${name}`, note: model.get("note") });
    drop.slot.hidden = !name;
    drop.update({ compact: Boolean(name), hint: model.get("hint"), textLabel: model.get("text_label") });
  }

  function begin() {
    if (sending || !waiting.length) return;
    const file = waiting.shift();
    sending = { file, key: crypto.randomUUID?.() ?? String(Math.random()) };
    drop.update({ message: "", progress: 0 });
    restartTimer();
    model.send({ type: "begin", key: sending.key, name: file.name, size: file.size });
  }

  function restartTimer() {
    clearTimeout(timer);
    timer = setTimeout(() => drop.update({
      message: `${sending.file.name}: the kernel does not answer. It may be busy; if this lasts, restart it and upload again.`,
    }), TIMEOUT);
  }

  function end(message = "") {
    clearTimeout(timer);
    sending = null;
    drop.update({ message, progress: null });
    begin();
  }

  async function receive(content) {
    if (!sending || content.key !== sending.key) return;
    const { file, key } = sending;
    if (content.type === "next") {
      drop.update({ progress: content.offset / file.size, message: "" });
      restartTimer();
      try {
        const piece = await file.slice(content.offset, content.offset + PIECE).arrayBuffer();
        model.send({ type: "piece", key, offset: content.offset }, undefined, [piece]);
      } catch (error) {
        end(`${file.name} cannot be read: ${error.message}`);
      }
    } else if (content.type === "done") end();
    else if (content.type === "refused") end(`${file.name}: ${content.reason}`);
  }

  const traits = ["picture", "name", "size", "box", "note", "hint", "text_label"];
  const changed = traits.map((name) => `change:${name}`).join(" ");
  model.on(changed, draw);
  model.on("msg:custom", receive);
  draw();
  return () => {
    clearTimeout(timer);
    model.off(changed, draw);
    model.off("msg:custom", receive);
    crop.destroy();
    drop.destroy();
    URL.revokeObjectURL(url);
  };
}

export default { render };
