// Files on their way to the kernel, in pieces that pass any server's limit on messages.
// The kernel asks for each piece, so it is never flooded and nothing gets lost unnoticed.

const PIECE = 4 * 2 ** 20;
const PATIENCE = 20_000;

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function render({ model, el }) {
  el.dataset.lmSuppressShortcuts = "true";
  const zone = make("div", "imgsearch-drop");
  const button = make("button", "", "Choose images");
  button.type = "button";
  button.setAttribute("aria-label", "Upload images to search with");
  const input = make("input");
  input.type = "file";
  input.multiple = true;
  input.accept = "image/jpeg,image/png";
  input.hidden = true;
  const bar = make("progress");
  bar.hidden = true;
  bar.setAttribute("aria-label", "Upload");
  const note = make("div", "imgsearch-note");
  note.setAttribute("role", "status");
  zone.append(make("span", "", "Drop images here, or"), button, input, bar, note);
  el.append(zone);

  const waiting = [];
  let sending = null;
  let clock = 0;

  function say(text, refused = false) {
    note.textContent = text;
    note.classList.toggle("imgsearch-refused", refused);
  }

  function wind() {
    clearTimeout(clock);
    clock = setTimeout(() => {
      if (sending) say(`${sending.file.name}: no answer yet. The kernel is busy or gone; if this lasts, restart it and upload again.`, true);
    }, PATIENCE);
  }

  function begin() {
    if (sending || !waiting.length) return;
    const file = waiting.shift();
    sending = { file, key: crypto.randomUUID?.() ?? String(Math.random()) };
    bar.hidden = false;
    bar.max = file.size || 1;
    bar.value = 0;
    say(`Uploading ${file.name}`);
    wind();
    model.send({ type: "begin", key: sending.key, name: file.name, size: file.size });
  }

  function end() {
    clearTimeout(clock);
    sending = null;
    bar.hidden = true;
    begin();
  }

  async function receive(content) {
    if (!sending || content.key !== sending.key) return;
    if (content.type === "next") {
      const { file, key } = sending;
      bar.value = content.offset;
      wind();
      try {
        const piece = await file.slice(content.offset, content.offset + PIECE).arrayBuffer();
        model.send({ type: "piece", key, offset: content.offset }, undefined, [piece]);
      } catch (error) {
        say(`${file.name} cannot be read: ${error.message}`, true);
        end();
      }
    } else if (content.type === "done") {
      say(`${sending.file.name} uploaded`);
      end();
    } else if (content.type === "refused") {
      say(`${sending.file.name}: ${content.reason}`, true);
      end();
    }
  }

  function take(files) {
    waiting.push(...files);
    begin();
  }

  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    take(input.files);
    input.value = "";
  });
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    event.stopPropagation();
    zone.classList.add("imgsearch-over");
  });
  zone.addEventListener("dragleave", () => zone.classList.remove("imgsearch-over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    zone.classList.remove("imgsearch-over");
    if (event.dataTransfer.files.length) take(event.dataTransfer.files);
    else say("That was no file: save the image first, then drop it.", true);
  });
  model.on("msg:custom", receive);
  return () => {
    clearTimeout(clock);
    model.off("msg:custom", receive);
  };
}

export default { render };
