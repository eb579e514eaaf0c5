// Takes the picture to search with: dropped, pasted, chosen, photographed, or named in a field.
//
//   const drop = createDrop(element, { onFiles(files) {}, onKey(key) {}, onText(text) {} });
//   drop.update({ compact, hint, message, progress: 0 to 1 or null, textLabel });
//   drop.slot.append(…);  // shown inside, such as the picture that is searched with
//   drop.take(files);  // as if they were dropped here
//
// `onKey` gets the key of a tile that was dragged here, `onText` what was typed into the field
// `textLabel`. `compact` is smaller, for once there is a query; `message` tells what is wrong.
import { button, DRAGGED, make, put } from "./dom.js";

export function createDrop(element, options = {}) {
  const state = { compact: false, hint: "", message: "", progress: null, textLabel: "", ...options };
  const input = make("input", { type: "file", accept: "image/*", multiple: true, hidden: true, ariaLabel: "Pictures to search with" });
  const choose = button("Choose a picture", () => input.click());
  const paste = button("Paste", readClipboard, "", { title: "Search with the picture in the clipboard (Ctrl+V)" });
  const camera = make("input", { type: "file", accept: "image/*", hidden: true, ariaLabel: "Picture from the camera" });
  camera.setAttribute("capture", "environment"); // browsers without a camera have no such property
  const photograph = button("Take a picture", () => camera.click());
  const text = make("input.field", { type: "text" });
  const lead = make("span.drop-lead", { textContent: "Drop or paste a picture here" });
  const hint = make("span.muted");
  const bar = make("progress", { hidden: true, ariaLabel: "Upload" });
  const message = make("div.wrong", { role: "alert" });
  const slot = make("div.drop-slot");
  const root = make("div.drop", {}, slot, lead,
    make("div.drop-buttons", {}, choose, photograph, paste), input, camera, text, bar, message, hint);
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
    chooser.onchange = () => {
      if (chooser.files.length) take(chooser.files);
      chooser.value = "";
    };
  }
  text.onkeydown = (event) => {
    if (event.key === "Enter" && text.value.trim()) options.onText?.(text.value.trim());
  };
  root.ondragover = (event) => {
    event.preventDefault();
    event.stopPropagation();
    root.classList.add("imgsearch-over");
  };
  root.ondragleave = (event) => {
    if (!root.contains(event.relatedTarget)) root.classList.remove("imgsearch-over");
  };
  root.ondrop = (event) => {
    event.preventDefault();
    event.stopPropagation();
    root.classList.remove("imgsearch-over");
    const key = event.dataTransfer.getData(DRAGGED);
    if (key) options.onKey?.(key);
    else take(event.dataTransfer.files);
  };

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
