// A justified grid of thumbnails with one tab stop.
//
//   const grid = createGrid(element, { onPick(key) {}, onOpen(key) {}, onSelect(keys) {}, onMore() {}, onJudge(key, value) {}, onUndo() {} });
//   grid.update({ items: [{ key, src, alt, name, action, width, height, title, score, note, heading, caption, relevant }] });
//   grid.bar.append(…);  // stands above the tiles
//
// `src` may be "", which shows `note` instead; `action` names the tile for screen readers; `heading`
// begins a new row, `caption` replaces the name below the tile, `relevant` (true or false) frames
// it. Tiles whose key stays are kept, with focus and position. `summary` and `legend` stand above the tiles;
// `more` labels a button below them, which with `endless` is pressed when it comes into view.
// `selecting` is "", "marks" (a mark on each tile) or "tiles" (a click selects); `judging: true`
// shows + and −; `reveal: true` scrolls to the first tile. Without a callback, what calls it is
// left out. Keys: arrows, Home and End move; Enter picks; o opens; Space selects, with Shift a
// range; Ctrl+A selects all, Escape none; y and n judge, u takes the last judgment back.
import { button, DRAGGED, fileName, make, put, putChildren } from "./dom.js";

export function createGrid(element, options = {}) {
  const state = { items: [], label: "Images", summary: "", legend: "", more: "", judging: false, selecting: "",
    selected: [], size: 150, busy: false, ...options };
  const tiles = new Map(); // by key
  let current = null; // key of the tile that Tab reaches
  let anchor = null; // key from which a range is selected

  const summary = make("span.summary");
  const legend = make("span.muted");
  const count = make("span");
  const all = button("Select all", () => select(state.items.map((item) => item.key)));
  const none = button("Clear selection", () => {
    select([]);
    focus(current);
  });
  const selection = make("span.selection", {}, count, all, none);
  const size = make("input", { type: "range", min: 80, max: 320, step: 10, ariaLabel: "Size of the thumbnails", title: "Size of the thumbnails" });
  size.oninput = () => update({ size: Number(size.value) });
  const bar = make("div.grid-bar", {}, summary, legend, selection, size);
  const list = make("ul.grid", { role: "list" });
  const more = button("", () => options.onMore?.());
  const root = make("div", {}, bar, list, more);
  element.append(root);

  let watcher = null;
  if (options.endless) {
    watcher = new IntersectionObserver(([entry]) => {
      if (entry.isIntersecting && !more.hidden && !state.busy) options.onMore?.();
    }, { rootMargin: "600px" });
    watcher.observe(more);
  }

  // ---------------------------------------------------------------- tiles

  function createTile(key) {
    const img = make("img", { loading: "lazy", draggable: false });
    const reason = make("span.muted");
    const score = make("span.score", { ariaHidden: "true" });
    const picture = make("span.picture", {}, img, reason, score);
    const caption = make("span.caption", { ariaHidden: "true" });
    const main = make("button.pick", { type: "button", onfocus: () => setCurrent(key), onclick: (event) => press(key, event) }, picture, caption);
    const tile = make("li.tile", {}, main);
    const corner = (name, label, onclick, title = "") => make(`button.corner.${name}`, { type: "button", tabIndex: -1, onclick, title }, label);
    const open = corner("open", "⤢", () => options.onOpen(key), "Open the original (o)");
    const mark = corner("mark", "✓", (event) => choose(key, event.shiftKey));
    const like = corner("like", "+", () => options.onJudge(key, 1), "More like this (y)");
    const unlike = corner("unlike", "−", () => options.onJudge(key, -1), "Less like this (n)");
    tile.append(mark, ...(options.onOpen ? [open] : []), ...(options.onJudge ? [like, unlike] : []));
    tile.ondragstart = (event) => {
      event.dataTransfer.setData(DRAGGED, key);
      event.dataTransfer.effectAllowed = "copy";
    };
    const heading = make("li.heading");
    return { tile, main, img, reason, picture, score, caption, open, mark, like, unlike, heading, name: null };
  }

  function fill(part, item) {
    const selected = state.selected.includes(item.key);
    const shape = Math.min(2.4, Math.max(0.75, item.width / item.height || 4 / 3));
    part.tile.style.setProperty("--shape", shape);
    part.tile.draggable = Boolean(options.draggable);
    put(part.main, { title: item.title ?? item.name, ariaLabel: item.action ?? item.name });
    if (part.img.getAttribute("src") !== item.src && item.src) part.img.setAttribute("src", item.src);
    put(part.img, { hidden: !item.src, alt: item.alt ?? "" });
    put(part.reason, { hidden: Boolean(item.src), textContent: item.note ?? "" });
    put(part.score, { textContent: item.score ?? "", hidden: !item.score });
    const caption = item.caption ?? item.name;
    if (part.name?.title !== caption) part.name = item.caption ? make("span", { title: caption }, caption) : fileName(caption);
    putChildren(part.caption, [part.name]);
    put(part.open, { hidden: !item.src, ariaLabel: `Open the original of ${item.name}` });
    put(part.mark, { hidden: state.selecting !== "marks", ariaLabel: `Select ${item.name}`, ariaPressed: String(selected) });
    put(part.like, { hidden: !state.judging, ariaLabel: `More like ${item.name}` });
    put(part.unlike, { hidden: !state.judging, ariaLabel: `Less like ${item.name}` });
    part.tile.classList.toggle("imgsearch-selected", selected);
    part.tile.classList.toggle("imgsearch-relevant", item.relevant === true);
    part.tile.classList.toggle("imgsearch-irrelevant", item.relevant === false);
    put(part.heading, { textContent: item.heading ?? "" });
    if (state.selecting === "tiles") part.main.ariaPressed = String(selected);
    else part.main.removeAttribute("aria-pressed");
  }

  function setCurrent(key) {
    if (current !== key) tiles.get(current)?.main.setAttribute("tabindex", -1);
    current = key;
    tiles.get(key)?.main.setAttribute("tabindex", 0);
  }

  function focus(key) {
    tiles.get(key)?.main.focus();
  }

  // ---------------------------------------------------------------- picking and selecting

  function press(key, event) {
    const modified = event.shiftKey || event.ctrlKey || event.metaKey;
    if (state.selecting === "tiles" || (state.selecting && modified)) choose(key, event.shiftKey);
    else options.onPick?.(key);
  }

  function choose(key, range) {
    const keys = state.items.map((item) => item.key);
    const from = keys.indexOf(anchor);
    if (range && from >= 0) {
      const to = keys.indexOf(key);
      const between = keys.slice(Math.min(from, to), Math.max(from, to) + 1);
      select([...new Set([...state.selected, ...between])]);
    } else {
      anchor = key;
      select(state.selected.includes(key) ? state.selected.filter((other) => other !== key) : [...state.selected, key]);
    }
  }

  function select(keys) {
    update({ selected: keys });
    options.onSelect?.(keys);
  }

  // ---------------------------------------------------------------- keys

  // The tile above or below, by its place on the screen.
  function neighbour(key, direction) {
    const here = tiles.get(key).tile.getBoundingClientRect();
    const places = state.items.map((item) => [item.key, tiles.get(item.key).tile.getBoundingClientRect()]);
    const beyond = places.filter(([, place]) => direction * (place.top - here.top) > 1);
    if (!beyond.length) return key;
    const top = direction > 0 ? Math.min(...beyond.map(([, place]) => place.top)) : Math.max(...beyond.map(([, place]) => place.top));
    const distance = (place) => Math.abs(place.left + place.right - here.left - here.right);
    const row = beyond.filter(([, place]) => Math.abs(place.top - top) <= 1);
    return row.reduce((best, one) => (distance(one[1]) < distance(best[1]) ? one : best))[0];
  }

  function target(key) {
    const keys = state.items.map((item) => item.key);
    const at = keys.indexOf(current);
    if (key === "ArrowLeft") return keys[Math.max(0, at - 1)];
    if (key === "ArrowRight") return keys[Math.min(keys.length - 1, at + 1)];
    if (key === "ArrowUp") return neighbour(current, -1);
    if (key === "ArrowDown") return neighbour(current, 1);
    if (key === "Home") return keys[0];
    if (key === "End") return keys.at(-1);
    return undefined;
  }

  list.onkeydown = (event) => {
    const { key, shiftKey } = event;
    const command = event.ctrlKey || event.metaKey;
    const next = command || event.altKey ? undefined : target(key);
    if (next !== undefined) {
      if (state.selecting && shiftKey) {
        anchor ??= current;
        choose(next, true);
      }
      focus(next);
    } else if (key === " " && state.selecting) choose(current, shiftKey);
    else if (key.toLowerCase() === "a" && command && state.selecting) all.click();
    else if (key === "Escape" && state.selected.length) select([]);
    else if (key === "o" && !command && options.onOpen) options.onOpen(current);
    else if ((key === "y" || key === "n") && !command && !event.repeat && state.judging) options.onJudge?.(current, key === "y" ? 1 : -1);
    else if (key === "u" && !command && !event.repeat && state.judging) options.onUndo?.();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  // Space would click the button.
  list.onkeyup = (event) => {
    if (event.key === " " && state.selecting) event.preventDefault();
  };

  // ---------------------------------------------------------------- update

  function update(changes) {
    Object.assign(state, changes);
    const { items } = state;
    const keys = new Set(items.map((item) => item.key));
    const held = list.contains(document.activeElement);
    for (const key of [...tiles.keys()].filter((other) => !keys.has(other))) tiles.delete(key);
    for (const item of items) {
      if (!tiles.has(item.key)) tiles.set(item.key, createTile(item.key));
      fill(tiles.get(item.key), item);
    }
    putChildren(list, items.flatMap(({ key, heading }) => (heading ? [tiles.get(key).heading, tiles.get(key).tile] : [tiles.get(key).tile])));
    const first = items[0]?.key ?? null;
    for (const [key, part] of tiles) part.main.setAttribute("tabindex", key === current ? 0 : -1);
    if (!keys.has(current)) setCurrent(first);
    if (held && !list.contains(document.activeElement)) focus(current);
    if (!keys.has(anchor)) anchor = null;
    list.setAttribute("aria-label", state.label);
    list.setAttribute("aria-busy", String(state.busy));
    list.style.setProperty("--size", `${state.size}px`);
    put(size, { value: String(state.size) });
    put(summary, { textContent: state.summary });
    put(legend, { textContent: state.legend });
    put(count, { textContent: state.selected.length ? `${state.selected.length} selected` : "" });
    put(selection, { hidden: !state.selecting });
    put(none, { hidden: !state.selected.length });
    put(bar, { hidden: !items.length && !state.summary });
    put(size, { hidden: !items.length });
    put(more, { hidden: !state.more, textContent: state.more, disabled: state.busy });
    // Fires once more where the new tiles do not fill the screen.
    if (watcher && changes.items) {
      watcher.unobserve(more);
      watcher.observe(more);
    }
    if (changes.reveal && first !== null) reveal(tiles.get(first).tile);
  }

  function reveal(tile) {
    const { top, bottom } = tile.getBoundingClientRect();
    if (top >= 0 && bottom <= window.innerHeight) return;
    const panel = root.closest(".imgsearch"); // with the query, if the first tile then fits too
    const fits = panel && bottom - panel.getBoundingClientRect().top < 0.85 * window.innerHeight;
    (fits ? panel : bar).scrollIntoView({ block: "start" });
  }

  update({});
  return {
    update,
    bar,
    focus: () => focus(current),
    destroy() {
      watcher?.disconnect();
      root.remove();
    },
  };
}
