// Shows one image of a list large, beside the query if there is one.
//
//   const viewer = createViewer(element, { load(key) {}, onSearch(key) {}, onShow(key) {} });
//   viewer.update({ items, current: key or null, query: { src, name } or null });
//
// Items are those of the grid, with `path` (which can be copied) and `facts` ([[name, value], …]).
// `load(key)` promises { src, note } of the original; until then the thumbnail is shown. `onShow`
// is called with each key that is shown, and with null when the viewer closes. Keys: arrows turn to
// the next image or move a zoomed one; + and − zoom, 0 fits; Enter searches; Escape closes.
import { button, make, put, putChildren } from "./dom.js";

const DEEPEST = 16; // times the fitted size
const SWEEP = 60; // pixels that a finger moves to turn to the next image

export function createViewer(element, options = {}) {
  const state = { items: [], current: null, query: null, ...options };
  const name = make("h2.viewer-name");
  const close = button("Close", () => dialog.close());
  const img = make("img", { draggable: false });
  const stage = make("div.viewer-stage", {}, img);
  const queryImg = make("img", { draggable: false });
  const queryName = make("figcaption");
  const query = make("figure.viewer-query", {}, queryImg, queryName);
  const previous = button("‹", () => step(-1), ".viewer-step", { ariaLabel: "Previous image" });
  const next = button("›", () => step(1), ".viewer-step", { ariaLabel: "Next image" });
  const note = make("span.muted", { role: "status" });
  const path = make("code.viewer-path");
  const copy = button("Copy path", copyPath);
  const facts = make("dl.viewer-facts");
  const compare = button("Compare", () => {
    comparing = !comparing;
    draw();
  });
  const zoomOut = button("−", () => zoom(1 / 1.5), "", { ariaLabel: "Zoom out" });
  const fit = button("Fit", () => place(1, 0, 0));
  const zoomIn = button("+", () => zoom(1.5), "", { ariaLabel: "Zoom in" });
  const search = button(options.searchLabel ?? "Search with this", () => {
    const key = state.current;
    state.current = null; // an update before the close event must not open it again
    dialog.close();
    options.onSearch?.(key);
  }, ".primary");
  const save = make("a.button", { textContent: "Download" });
  const dialog = make("dialog.viewer", {},
    make("div.viewer-bar", {}, name, note, close),
    make("div.viewer-body", {}, query, previous, stage, next),
    make("div.viewer-bar", {}, search, zoomOut, fit, zoomIn, compare, save, copy, path, facts));
  element.append(dialog);

  let shown = null; // key of the image that is shown or being loaded
  let comparing = true;
  let scale = 1;
  let offset = [0, 0];
  const fingers = new Map();

  function item() {
    return state.items.find((one) => one.key === state.current);
  }

  function step(by) {
    const at = state.items.findIndex((one) => one.key === state.current) + by;
    if (at >= 0 && at < state.items.length) update({ current: state.items[at].key });
  }

  async function load(key) {
    shown = key;
    place(1, 0, 0);
    const one = item();
    img.src = one.src;
    save.hidden = true;
    note.textContent = "Loading …";
    options.onShow?.(key);
    try {
      const original = await options.load(key);
      if (shown !== key) return;
      img.src = save.href = original.src;
      save.download = one.name;
      save.hidden = false;
      note.textContent = original.note ?? "";
    } catch (error) {
      if (shown === key) note.textContent = error.message;
    }
  }

  async function copyPath() {
    try {
      await navigator.clipboard.writeText(path.textContent);
      note.textContent = "Path copied";
    } catch {
      getSelection().selectAllChildren(path);
      note.textContent = "Press Ctrl+C to copy the path";
    }
  }

  function draw() {
    const one = item();
    if (!one) return;
    const at = state.items.indexOf(one);
    put(img, { alt: one.alt || one.name });
    put(name, { textContent: one.score ? `${one.name} · score ${one.score}` : one.name });
    put(previous, { disabled: at === 0 });
    put(next, { disabled: at === state.items.length - 1 });
    put(query, { hidden: !state.query || !comparing });
    put(compare, { hidden: !state.query, ariaPressed: String(comparing) });
    if (state.query) {
      put(queryImg, { src: state.query.src, alt: `Query: ${state.query.name}` });
      put(queryName, { textContent: "Query" });
    }
    put(path, { textContent: one.path ?? "" });
    put(copy, { hidden: !one.path });
    putChildren(facts, (one.facts ?? []).map(([term, value]) =>
      make("div", {}, make("dt", {}, term), make("dd", {}, value))));
    put(search, { hidden: !options.onSearch });
    dialog.setAttribute("aria-label", `Image ${at + 1} of ${state.items.length}: ${one.name}`);
  }

  // ---------------------------------------------------------------- zoom and pan

  function place(nextScale, x, y) {
    scale = Math.min(DEEPEST, Math.max(1, nextScale));
    const farX = stage.clientWidth * (scale - 1) / 2;
    const farY = stage.clientHeight * (scale - 1) / 2;
    offset = [Math.min(farX, Math.max(-farX, x)), Math.min(farY, Math.max(-farY, y))];
    img.style.transform = `translate(${offset[0]}px, ${offset[1]}px) scale(${scale})`;
    stage.classList.toggle("imgsearch-zoomed", scale > 1);
    put(fit, { disabled: scale === 1 });
  }

  // Keeps the point (x, y), counted from the middle of the stage, where it is.
  function zoom(factor, x = 0, y = 0) {
    const to = Math.min(DEEPEST, Math.max(1, scale * factor)) / scale;
    place(scale * to, x - (x - offset[0]) * to, y - (y - offset[1]) * to);
  }

  function fromMiddle({ clientX, clientY }) {
    const area = stage.getBoundingClientRect();
    return [clientX - (area.left + area.right) / 2, clientY - (area.top + area.bottom) / 2];
  }

  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), ...fromMiddle(event));
  }, { passive: false });
  stage.ondblclick = (event) => (scale > 1 ? place(1, 0, 0) : zoom(2.5, ...fromMiddle(event)));
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, fromMiddle(event));
  });
  stage.onpointermove = (event) => {
    if (!fingers.has(event.pointerId)) return;
    const now = fromMiddle(event);
    const last = fingers.get(event.pointerId);
    fingers.set(event.pointerId, now);
    const other = [...fingers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]) || 1;
      zoom(apart(now) / apart(last), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else place(scale, offset[0] + now[0] - last[0], offset[1] + now[1] - last[1]);
  };
  for (const kind of ["pointerup", "pointercancel"]) {
    stage.addEventListener(kind, (event) => fingers.delete(event.pointerId));
  }
  // A finger that sweeps over an image that is not zoomed turns to the next one.
  let touched = 0;
  stage.addEventListener("pointerdown", (event) => {
    touched = event.pointerType === "touch" && scale === 1 ? event.clientX : NaN;
  });
  stage.addEventListener("pointerup", (event) => {
    const swept = event.clientX - touched;
    if (scale === 1 && !fingers.size && Math.abs(swept) > SWEEP) step(swept > 0 ? -1 : 1);
  });

  // ---------------------------------------------------------------- keys

  const pan = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  dialog.onkeydown = (event) => {
    const { key } = event;
    event.stopPropagation(); // the keys of the page mean something else
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (pan[key] && scale > 1) place(scale, offset[0] + pan[key][0], offset[1] + pan[key][1]);
    else if (key === "ArrowLeft" || key === "ArrowUp") step(-1);
    else if (key === "ArrowRight" || key === "ArrowDown") step(1);
    else if (key === "+" || key === "=") zoom(1.5);
    else if (key === "-") zoom(1 / 1.5);
    else if (key === "0") place(1, 0, 0);
    else if (key === "Enter" && !event.target.closest("button, a")) search.click();
    else return;
    event.preventDefault();
  };
  dialog.onclick = (event) => {
    if (event.target === dialog) dialog.close(); // the backdrop
  };
  dialog.onclose = () => {
    if (dialog.open) return; // opened again before this event came
    state.current = shown = null;
    img.removeAttribute("src");
    options.onShow?.(null);
  };

  function update(changes) {
    Object.assign(state, changes);
    if (state.current === null || !item()) {
      if (dialog.open) dialog.close();
      return;
    }
    if (!dialog.open) {
      dialog.showModal(); // keeps the focus inside, and returns it
      (options.onSearch ? search : close).focus();
    }
    draw();
    if (shown !== state.current) load(state.current);
  }

  return {
    update,
    destroy() {
      dialog.remove();
    },
  };
}
