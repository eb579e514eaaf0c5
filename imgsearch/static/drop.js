// Takes the picture to search with: dropped, pasted, chosen, photographed, or named in a field.
//
//   const drop = createDrop(element, { onFiles(files) {}, onKey(key) {}, onText(text) {} });
//   drop.update({ compact, hint, message, progress, textLabel });
//   drop.slot.append(…);  // shown inside, such as the picture that is searched with
//   drop.take(files);  // as if they were dropped here
//   drop.destroy();
//
// `onFiles` gets an array of files; `onKey` the key of a tile that was dragged here from a grid;
// `onText` what was typed into the field, which is labelled `textLabel` and hidden without it.
// `compact` shrinks the area once there is a query. `hint` tells the formats, `message` what is
// wrong ("" for nothing), `progress` is a share from 0 to 1, or null.
import { button, DRAGGED, make, put } from "./dom.js";

export function createDrop(element, options = {}) {
  const state = { compact: false, hint: "", message: "", progress: null, textLabel: "", ...options };
  const input = make("input", { type: "file", accept: "image/*", multiple: true, hidden: true, ariaLabel: "Pictures to search with" });
  const choose = button("Choose a picture", () => input.click());
  const paste = button("Paste", readClipboard, { title: "Search with the picture in the clipboard (Ctrl+V)" });
  const camera = make("input", { type: "file", accept: "image/*", hidden: true, ariaLabel: "Picture from the camera" });
  camera.setAttribute("capture", "environment"); // browsers without a camera have no such property
  const photograph = button("Take a picture", () => camera.click());
  const text = make("input", { type: "text", className: "imgsearch-field" });
  const lead = make("span", { className: "imgsearch-drop-lead", textContent: "Drop or paste a picture here" });
  const hint = make("span", { className: "imgsearch-muted" });
  const bar = make("progress", { hidden: true, ariaLabel: "Upload" });
  const message = make("div", { className: "imgsearch-wrong", role: "alert" });
  const slot = make("div", { className: "imgsearch-drop-slot" });
  const root = make("div", { className: "imgsearch-drop" }, slot, lead,
    make("div", { className: "imgsearch-drop-buttons" }, choose, photograph, paste), input, camera, text, bar, message, hint);
  element.append(root);

  function take(files) {
    const pictures = [...files].filter((file) => file.type.startsWith("image/") || /\.(hei[cf]|avif|tiff?)$/i.test(file.name));
    if (pictures.length) options.onFiles?.(pictures);
    else update({ message: files.length ? `${files[0].name} is not a picture.` : "There is no picture in what was dropped or pasted." });
  }

  async function readClipboard() {
    try {
      const files = [];
      for (const entry of await navigator.clipboard.read()) {
        const kind = entry.types.find((type) => type.startsWith("image/"));
        if (kind) files.push(new File([await entry.getType(kind)], `pasted.${kind.slice(6)}`, { type: kind }));
      }
      take(files);
    } catch {
      update({ message: "The browser does not allow this; click here and press Ctrl+V." });
    }
  }

  // A picture that is pasted anywhere but into a text belongs here, if nobody else wants it.
  function pasted(event) {
    const { target, clipboardData, defaultPrevented } = event;
    const typing = target.closest?.("input, textarea, [contenteditable=true], [contenteditable='']");
    if (defaultPrevented || typing || !root.checkVisibility()) return;
    if (!clipboardData?.files.length) return;
    event.preventDefault();
    take(clipboardData.files);
  }
  document.addEventListener("paste", pasted);

  for (const chooser of [input, camera]) {
    chooser.addEventListener("change", () => {
      if (chooser.files.length) take(chooser.files);
      chooser.value = "";
    });
  }
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && text.value.trim()) options.onText?.(text.value.trim());
  });
  root.addEventListener("dragover", (event) => {
    event.preventDefault();
    event.stopPropagation();
    root.classList.add("imgsearch-over");
  });
  root.addEventListener("dragleave", (event) => {
    if (!root.contains(event.relatedTarget)) root.classList.remove("imgsearch-over");
  });
  root.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    root.classList.remove("imgsearch-over");
    const key = event.dataTransfer.getData(DRAGGED);
    if (key) options.onKey?.(key);
    else take(event.dataTransfer.files);
  });

  function update(changes) {
    Object.assign(state, changes);
    root.classList.toggle("imgsearch-compact", state.compact);
    put(lead, { hidden: state.compact });
    put(hint, { textContent: state.hint, hidden: state.compact || !state.hint });
    put(choose, { textContent: state.compact ? "Choose another" : "Choose a picture" });
    choose.classList.toggle("imgsearch-primary", !state.compact);
    put(photograph, { hidden: !matchMedia("(pointer: coarse)").matches });
    put(paste, { hidden: !navigator.clipboard?.read });
    put(text, { hidden: !state.textLabel, placeholder: state.textLabel, ariaLabel: state.textLabel });
    put(bar, { hidden: state.progress === null, value: state.progress ?? 0 });
    put(message, { textContent: state.message, hidden: !state.message });
  }

  update({});
  return {
    update,
    take,
    slot,
    destroy() {
      document.removeEventListener("paste", pasted);
      root.remove();
    },
  };
}
