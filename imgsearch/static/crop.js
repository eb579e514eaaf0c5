// A picture on which a box is drawn, moved and resized by mouse, finger and keys.
//
//   const crop = createCrop(element, { onBox(box) {} });
//   crop.update({ src, width, height, box: [left, upper, right, lower] or null, alt, note });
//
// `width`, `height` and boxes are in pixels of the original. `onBox` is called once a change is
// complete. Keys: arrows draw and move the box, with Shift they resize it, Escape removes it; without
// a box, Escape moves the focus back. Tab always moves on.
import { button, make, put } from "./dom.js";

const SMALLEST = 8; // pixels that a box must have each way
const SLIP = 5; // pixels on the screen that are no drag yet
const SETTLED = 350; // milliseconds without a key after which a box is complete
const EDGES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const HELP = "Draw a box to search with a part of the picture. With the keyboard: arrow keys draw and move the box, Shift and arrow keys resize it, Escape removes it.";

let created = 0;

export function createCrop(element, options = {}) {
  const state = { src: "", width: 1, height: 1, box: null, alt: "", note: "", ...options };
  const help = make("span.unseen", { id: `imgsearch-crop-${++created}`, textContent: HELP });
  const spoken = make("span.unseen", { role: "status" });
  const img = make("img", { draggable: false });
  const shade = make("span.crop-shade", {}, make("span"));
  const frame = make("span.crop-box");
  for (const edges of EDGES) {
    const handle = make("span.crop-handle");
    handle.dataset.edges = edges;
    frame.append(handle);
  }
  const surface = make("div.crop-surface", { tabIndex: 0, role: "application",
    ariaLabel: "Part of the picture to search with", ariaRoleDescription: "crop box" }, img, shade, frame);
  surface.setAttribute("aria-describedby", help.id);
  const edges = make("input.field", { type: "text", placeholder: "Draw a box to search with a part",
    title: "The part to search with: left, upper, right, lower, in pixels",
    ariaLabel: "Part: left, upper, right, lower, in pixels" });
  const whole = button("Whole picture", () => settle(null));
  const line = make("div.crop-edges", {}, edges, whole);
  const note = make("div.muted");
  const root = make("div.crop", {}, surface, line, note, help, spoken);
  element.append(root);

  let box = null; // as it is shown, while it is changed too
  let gesture = null;
  let pending = 0;
  let before = null; // had the focus before the picture

  function show(next, speak = false) {
    box = next;
    root.classList.toggle("imgsearch-crop-part", Boolean(box));
    const [left, upper, right, lower] = box ?? [0, 0, state.width, state.height];
    const share = { "--left": left / state.width, "--upper": upper / state.height,
      "--right": 1 - right / state.width, "--lower": 1 - lower / state.height };
    for (const [name, value] of Object.entries(share)) surface.style.setProperty(name, `${100 * value}%`);
    if (document.activeElement !== edges) put(edges, { value: box ? box.join(", ") : "" });
    edges.setCustomValidity("");
    put(whole, { hidden: !box });
    if (speak) spoken.textContent = box ? `Part: left ${left}, upper ${upper}, right ${right}, lower ${lower} pixels` : "Whole picture";
  }

  function settle(next, delay = 0) {
    show(next, delay > 0);
    clearTimeout(pending);
    pending = 0;
    const report = () => {
      pending = 0;
      if (String(next) === String(state.box)) return;
      state.box = next;
      options.onBox?.(next);
    };
    if (delay) pending = setTimeout(report, delay);
    else report();
  }

  // ---------------------------------------------------------------- mouse and finger

  function pixels({ clientX, clientY }) {
    const area = img.getBoundingClientRect();
    return [(clientX - area.left) * state.width / area.width, (clientY - area.top) * state.height / area.height];
  }

  function within(value, end) {
    return Math.min(end, Math.max(0, Math.round(value)));
  }

  surface.addEventListener("pointerdown", (event) => {
    if (gesture || event.button !== 0 || !img.naturalWidth) return;
    const at = pixels(event);
    const handle = event.target.dataset?.edges;
    const inside = box && at[0] > box[0] && at[0] < box[2] && at[1] > box[1] && at[1] < box[3];
    gesture = { id: event.pointerId, at, x: event.clientX, y: event.clientY, start: box, moved: false,
      edges: handle ?? (inside ? "move" : "draw") };
    surface.setPointerCapture(event.pointerId);
    surface.focus({ preventScroll: true });
    event.preventDefault();
  });

  surface.onpointermove = (event) => {
    if (gesture?.id !== event.pointerId) return;
    gesture.moved ||= Math.hypot(event.clientX - gesture.x, event.clientY - gesture.y) >= SLIP;
    if (!gesture.moved) return;
    const { width, height } = state;
    const [x, y] = pixels(event);
    const [fromX, fromY] = gesture.at;
    if (gesture.edges === "draw") {
      show([within(Math.min(x, fromX), width), within(Math.min(y, fromY), height),
        within(Math.max(x, fromX), width), within(Math.max(y, fromY), height)]);
    } else if (gesture.edges === "move") {
      show(moved(gesture.start, x - fromX, y - fromY));
    } else {
      let [left, upper, right, lower] = gesture.start;
      if (gesture.edges.includes("w")) left = within(Math.min(x, right - SMALLEST), width);
      if (gesture.edges.includes("e")) right = within(Math.max(x, left + SMALLEST), width);
      if (gesture.edges.includes("n")) upper = within(Math.min(y, lower - SMALLEST), height);
      if (gesture.edges.includes("s")) lower = within(Math.max(y, upper + SMALLEST), height);
      show([left, upper, right, lower]);
    }
  };

  function finish(event) {
    if (gesture?.id !== event.pointerId) return;
    const { moved: drawn, start } = gesture;
    gesture = null;
    const usable = drawn && box && box[2] - box[0] >= SMALLEST && box[3] - box[1] >= SMALLEST;
    if (event.type === "pointerup" && usable) settle(box);
    else show(start);
  }
  surface.addEventListener("pointerup", finish);
  surface.addEventListener("pointercancel", finish);

  function moved([left, upper, right, lower], x, y) {
    const stepX = Math.round(Math.min(state.width - right, Math.max(-left, x)));
    const stepY = Math.round(Math.min(state.height - lower, Math.max(-upper, y)));
    return [left + stepX, upper + stepY, right + stepX, lower + stepY];
  }

  // ---------------------------------------------------------------- keys

  surface.onfocus = (event) => {
    before = event.relatedTarget;
  };

  surface.onkeydown = (event) => {
    const arrow = ARROWS[event.key];
    if (event.key === "Escape") {
      if (gesture) {
        show(gesture.start);
        gesture = null;
      } else if (box) settle(null, SETTLED);
      else if (before?.isConnected) before.focus();
      else surface.blur();
    } else if (arrow && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const { width, height } = state;
      const step = Math.max(1, Math.round(Math.max(width, height) / 50));
      const [x, y] = arrow.map((direction) => direction * step);
      let next = box;
      if (!box) next = [width / 4, height / 4, 3 * width / 4, 3 * height / 4].map(Math.round);
      else if (!event.shiftKey) next = moved(box, x, y);
      else next = [box[0], box[1], within(Math.max(box[0] + SMALLEST, box[2] + x), width), within(Math.max(box[1] + SMALLEST, box[3] + y), height)];
      settle(next, SETTLED);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  };

  edges.onchange = () => {
    const typed = edges.value.match(/-?\d+/g)?.map(Number) ?? [];
    const [left, upper, right, lower] = typed;
    const { width, height } = state;
    if (!edges.value.trim()) settle(null);
    else if (typed.length === 4 && left >= 0 && upper >= 0 && right <= width && lower <= height
      && right - left >= SMALLEST && lower - upper >= SMALLEST) settle(typed);
    else {
      edges.setCustomValidity(`Type left, upper, right, lower: whole pixels inside ${width} × ${height}, at least ${SMALLEST} apart.`);
      edges.reportValidity();
    }
  };
  edges.oninput = () => edges.setCustomValidity("");

  function update(changes) {
    Object.assign(state, changes);
    if (img.getAttribute("src") !== state.src) img.setAttribute("src", state.src);
    put(img, { alt: state.alt });
    put(surface, { hidden: !state.src });
    put(line, { hidden: !state.src });
    put(note, { textContent: state.note });
    surface.style.setProperty("--ratio", state.width / state.height);
    if (!gesture && !pending) show(state.box);
  }

  update({});
  return {
    update,
    destroy() {
      clearTimeout(pending);
      root.remove();
    },
  };
}
