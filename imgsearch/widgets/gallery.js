// A grid of thumbnails that are real buttons, a viewer for originals, and downloads.
// Ids are strings throughout: JavaScript's numbers end at 53 bits.

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function render({ model, el }) {
  el.classList.add("imgsearch-gallery");
  // Lab's shortcuts would take Enter and letters away from the buttons.
  el.dataset.lmSuppressShortcuts = "true";
  const list = make("ul", "imgsearch-grid");
  const dialog = make("dialog", "imgsearch-dialog");
  el.append(list, dialog);
  let urls = [];
  let original = null;

  function draw() {
    const held = el.contains(document.activeElement) && !dialog.open;
    const at = held ? [...list.querySelectorAll("button")].indexOf(document.activeElement) : -1;
    urls.forEach(URL.revokeObjectURL);
    urls = [];
    list.setAttribute("aria-label", model.get("label"));
    list.classList.toggle("imgsearch-small", model.get("small"));
    const selected = new Set(model.get("selected"));
    const choosing = model.get("choosing");
    list.replaceChildren(
      ...model.get("items").map((item) => {
        const tile = make("li", "imgsearch-tile");
        const button = make("button");
        button.type = "button";
        button.dataset.id = item.id;
        button.title = item.title;
        button.setAttribute("aria-label", item.action);
        if (choosing) button.setAttribute("aria-pressed", String(selected.has(item.key)));
        button.addEventListener("click", () => model.send({ type: "pick", key: item.key }));
        const picture = make("span", "imgsearch-picture");
        if (item.thumb) {
          const img = make("img");
          img.alt = item.name;
          img.src = URL.createObjectURL(new Blob([item.thumb], { type: "image/jpeg" }));
          urls.push(img.src);
          picture.append(img);
        } else {
          picture.append(make("span", "", item.reason));
        }
        const caption = make("span", "imgsearch-caption");
        if (item.head) {
          const head = make("span", "imgsearch-head");
          head.append(...item.head.map((text) => make("span", "", text)));
          caption.append(head);
        }
        caption.append(make("span", "imgsearch-name", item.name));
        button.append(picture, caption);
        tile.append(button);
        if (item.thumb && model.get("opening")) {
          const open = make("button", "imgsearch-open", "⤢");
          open.type = "button";
          open.title = "Open the original";
          open.setAttribute("aria-label", `Open the original of ${item.name}`);
          open.addEventListener("click", () => model.send({ type: "open", key: item.key }));
          tile.append(open);
        }
        return tile;
      }),
    );
    if (held) {
      const buttons = list.querySelectorAll("button");
      (buttons[choosing ? at : 0] ?? buttons[0])?.focus();
    }
  }

  function show({ name, mime, note }, data) {
    if (original) URL.revokeObjectURL(original);
    original = URL.createObjectURL(new Blob([data], { type: mime }));
    const line = make("p", "", `${name} · ${note}`);
    const tab = make("a", "", "Open in a new tab");
    tab.href = original;
    tab.target = "_blank";
    const save = make("a", "", "Download");
    save.href = original;
    save.download = name;
    const close = make("button", "", "Close");
    close.type = "button";
    close.addEventListener("click", () => dialog.close());
    line.append(tab, save, close);
    const img = make("img");
    img.alt = `Original of ${name}`;
    img.src = original;
    dialog.setAttribute("aria-label", name);
    dialog.replaceChildren(line, img);
    if (!dialog.open) dialog.showModal();
  }

  function download({ name, mime }, data) {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([data], { type: mime }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }

  function receive(content, buffers) {
    // The panel may be open in several views; one is enough for a file.
    if (!el.isConnected || el.offsetParent === null) return;
    if (content.type === "show") show(content, buffers[0]);
    if (content.type === "download") download(content, buffers[0]);
  }

  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  const traits = ["items", "selected", "small"];
  traits.forEach((name) => model.on(`change:${name}`, draw));
  model.on("msg:custom", receive);
  draw();
  return () => {
    traits.forEach((name) => model.off(`change:${name}`, draw));
    model.off("msg:custom", receive);
    urls.forEach(URL.revokeObjectURL);
    if (original) URL.revokeObjectURL(original);
  };
}

export default { render };
