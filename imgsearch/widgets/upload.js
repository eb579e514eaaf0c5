// Uploads files to the kernel in pieces smaller than any server's message limit. The kernel
// requests each piece, so it is never flooded, and a lost piece is noticed.

const PIECE = 4 * 2 ** 20;
const TIMEOUT = 20_000; // milliseconds

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
  input.accept = "image/*";
  input.hidden = true;
  const bar = make("progress");
  bar.hidden = true;
  bar.setAttribute("aria-label", "Upload");
  const note = make("div", "imgsearch-note");
  note.setAttribute("role", "status");
  zone.append(make("span", "", "Drop images here, or"), button, input, bar, note);
  el.append(zone);

  show(model.get("hint"));

  const waiting = [];
  let sending = null;
  let timer = 0;

  function show(text, refused = false) {
    note.textContent = text;
    note.classList.toggle("imgsearch-refused", refused);
  }

  function restartTimer() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (sending) show(`${sending.file.name}: the kernel does not answer. It may be busy; if this lasts, restart it and upload again.`, true);
    }, TIMEOUT);
  }

  function begin() {
    if (sending || !waiting.length) return;
    const file = waiting.shift();
    sending = { file, key: crypto.randomUUID?.() ?? String(Math.random()) };
    bar.hidden = false;
    bar.max = file.size || 1;
    bar.value = 0;
    show(`Uploading ${file.name}`);
    restartTimer();
    model.send({ type: "begin", key: sending.key, name: file.name, size: file.size });
  }

  function end() {
    clearTimeout(timer);
    sending = null;
    bar.hidden = true;
    begin();
  }

  async function receive(content) {
    if (!sending || content.key !== sending.key) return;
    if (content.type === "next") {
      const { file, key } = sending;
      bar.value = content.offset;
      restartTimer();
      try {
        const piece = await file.slice(content.offset, content.offset + PIECE).arrayBuffer();
        model.send({ type: "piece", key, offset: content.offset }, undefined, [piece]);
      } catch (error) {
        show(`${file.name} cannot be read: ${error.message}`, true);
        end();
      }
    } else if (content.type === "done") {
      show(model.get("hint"));
      end();
    } else if (content.type === "refused") {
      show(`${sending.file.name}: ${content.reason}`, true);
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
    else show("Only files can be dropped: save the image first.", true);
  });
  model.on("msg:custom", receive);
  return () => {
    clearTimeout(timer);
    model.off("msg:custom", receive);
  };
}

export default { render };
