// The page: what it shows is its address. An uploaded picture is kept in the history only.
import { Failure, request } from "./api.js";
import { createCrop } from "./crop.js";
import { button, make, put } from "./dom.js";
import { createDrop } from "./drop.js";
import { createFilters } from "./filters.js";
import { createGrid } from "./grid.js";
import { createLoad } from "./load.js";
import { createViewer } from "./viewer.js";

const KEPT = 20; // lists that Back shows at once
const REFUSED = 5; // times that a thumbnail is asked for again
const SLOW = 150; // milliseconds after which a request shows that it is under way
const EMPTY = { where: {}, query: null, box: null, examples: [], open: null };

const $ = (id) => document.getElementById(id);
const root = document.documentElement;

let about = null; // the server, and what this client may do
let collections = [];
let attributed = null; // the collection whose values the filters show
let view = { collection: "", ...EMPTY };
let list = { key: null, view, items: [], next: null }; // `view` is what was asked for
let running = null; // AbortController of the request for a list
let waiting = 0; // requests under way
let steps = 0; // what is shown was asked for so many times
let words = ""; // as they were last drawn
const lists = new Map(); // by what they show, the latest last
const places = new Map(); // scroll positions, by entry of the history
const files = new Map(); // uploaded pictures, by their id on the server
const known = new Map(); // details of stored images, by address

// ---------------------------------------------------------------- address and history

function readFilter(text) {
  try {
    const where = JSON.parse(text ?? "{}");
    if (where?.constructor === Object) return where;
  } catch {
    // It was cut off, for instance.
  }
  throw new Failure(400, "The filter in the address of this page cannot be read. Copy the whole address, or click imgsearch to start again.");
}

function fromAddress() {
  const given = new URLSearchParams(location.search);
  const { upload, box = null } = history.state ?? {};
  const kind = ["image", "text"].find((name) => given.get(name));
  const examples = (name, liked) => (given.get(name)?.split(",") ?? []).filter(Boolean).map((key) => ({ key, liked }));
  const first = collections.find(({ name }) => name === about.collection) ?? collections[0];
  return {
    collection: given.get("collection") ?? first?.name ?? about.collection,
    where: readFilter(given.get("where")),
    query: kind ? { [kind]: given.get(kind) } : upload ? { upload } : null,
    box: given.get("box")?.split(",").map(Number) ?? box,
    examples: [...examples("like", true), ...examples("unlike", false)], open: given.get("open"),
  };
}

function address({ collection, where, query, box, examples, open }) {
  const parts = new URLSearchParams({ collection });
  const { image, text } = query ?? {};
  const keys = (liked) => examples.filter((one) => one.liked === liked).map((one) => one.key).join();
  const given = {
    where: Object.keys(where).length && JSON.stringify(where), image, text,
    box: image && box?.join(), like: keys(true), unlike: keys(false), open,
  };
  for (const [name, value] of Object.entries(given)) if (value) parts.set(name, value);
  return `/?${parts}`;
}

// Shows something else, as a new entry of the history or instead of the present one.
function go(changes, { replace = false, opened = false } = {}) {
  steps++;
  view = { ...view, ...changes };
  const { upload } = view.query ?? {};
  const same = !upload && !history.state?.upload && address(view) === location.pathname + location.search;
  replace ||= same;
  const old = (replace && history.state) || {};
  const state = { entry: old.entry ?? Math.random(), opened: opened || old.opened, ...(upload && { upload, box: view.box }) };
  history[replace ? "replaceState" : "pushState"](state, "", address(view));
  return show();
}

// Searches with something else; the filters stay.
async function searchFor(query) {
  await go({ ...EMPTY, where: view.where, query });
  scrollTo(0, 0);
}

// Searches with the same and other examples; counter-examples alone are no query.
function searchLike(examples, query = view.query) {
  const enough = query || examples.some(({ liked }) => liked);
  return go({ query, box: query && view.box, examples: enough ? examples : [] });
}

const searching = ({ query, examples } = view) => Boolean(query || examples.length);

addEventListener("popstate", async () => {
  const place = places.get(history.state?.entry) ?? 0;
  await start();
  scrollTo(0, place);
});
addEventListener("scroll", () => places.set(history.state?.entry, scrollY), { passive: true });
history.scrollRestoration = "manual";

// ---------------------------------------------------------------- what is asked of the server

function collection(wanted = view.collection) {
  return collections.find(({ name }) => name === wanted) ?? { images: 0, text: false };
}

const path = (rest, name = view.collection) => `collections/${encodeURIComponent(name)}${rest}`;

async function details(id) {
  const key = path(`/images/${id}`);
  if (!known.has(key)) known.set(key, await request(key));
  return known.get(key);
}

async function page(asked, offset, signal) {
  const { collection: name, query, box, examples } = asked;
  const limit = innerWidth > 1600 ? 120 : 60;
  const where = Object.keys(asked.where).length ? asked.where : undefined;
  if (!searching(asked)) {
    const parts = new URLSearchParams({ offset, limit, ...(where && { where: JSON.stringify(where) }) });
    const found = await request(path(`/images?${parts}`, name), { signal });
    return { ...found, matched: found.total };
  }
  const { image, text, upload } = query ?? {};
  const body = { limit, offset, where, text, image_id: image, query_id: upload?.id, exclude: image ? [image] : [] };
  if (image || upload) body.box = box;
  for (const { key, liked } of examples) (body[liked ? "like" : "unlike"] ??= []).push(key);
  const found = await request(path("/search", name), { body, signal });
  return { ...found, items: found.hits };
}

// Shows that something is under way, if it takes long.
async function busy(work) {
  waiting++;
  const slow = setTimeout(() => put($("busy"), { hidden: false }), SLOW);
  try {
    return await work();
  } finally {
    clearTimeout(slow);
    waiting--;
    put($("busy"), { hidden: !waiting });
  }
}

async function send(file) {
  const body = new FormData();
  body.append("image", file);
  const { query_id: id, width, height, thumbnail } = await request("queries", { body });
  files.set(id, file);
  return { id, width, height, src: thumbnail, name: file.name };
}

async function searchWith(given) {
  const [file] = given;
  const step = ++steps;
  let message = file.size > about.max_bytes ? `${file.name} is too large: ${about.max_bytes >> 20} MiB at most.` : "";
  if (given.length > 1) message = `${given.length} pictures at once: give one to search with.`;
  drop.update({ message });
  if (message) return;
  try {
    const upload = await busy(() => send(file));
    if (step === steps) await searchFor({ upload }); // else something else was asked for meanwhile
  } catch (error) {
    if (error.status === 400) drop.update({ message: error.message });
    else fail(error);
  }
}

// ---------------------------------------------------------------- the list of images

function toItem(picture) {
  const { image_id: key, name, width, height, thumbnail, original, score, paths } = picture;
  return { key, name, width, height, original, similarity: score, src: `${thumbnail}?size=medium`, alt: name, action: `Open ${name}`, path: paths[0] ?? "" };
}

async function more(target, signal) {
  const { items, next, matched } = await page(target.view, target.items.length ? target.next : 0, signal);
  const held = new Set(target.items.map((item) => item.key));
  target.items = [...target.items, ...items.map(toItem).filter((item) => !held.has(item.key))];
  Object.assign(target, { next, matched });
}

async function listImages() {
  const { collection, where, query, box, examples } = view;
  const key = JSON.stringify([collection, where, query?.upload?.id ?? query, query && box, examples]);
  running?.abort();
  if (list.key === key) return;
  if (!lists.has(key)) {
    const mine = running = new AbortController();
    const fresh = { key, view, items: [], next: null };
    grid.update({ busy: true });
    await busy(() => more(fresh, mine.signal));
    if (mine.signal.aborted) return;
    lists.set(key, fresh);
    if (lists.size > KEPT) lists.delete(lists.keys().next().value);
  }
  list = lists.get(key);
  drawImages();
  put($("spoken"), { textContent: summary() });
}

async function moreImages() {
  const target = list;
  grid.update({ busy: true });
  try {
    await more(target);
    if (list === target) drawImages();
  } catch (error) {
    fail(error);
  }
}

function summary() {
  const { collection: name, query, box } = list.view;
  if (!list.items.length) return "";
  if (query?.text) return `Images for “${query.text}”`;
  if (query) return box ? "Similar to this part" : "Similar images";
  if (searching(list.view)) return "Images like the examples";
  const number = list.matched ?? collection(name).images;
  return `${number.toLocaleString("en")} image${number === 1 ? "" : "s"}`;
}

function drawImages() {
  const found = searching(list.view);
  const withScores = found && localStorage.scores === "yes";
  for (const item of list.items) item.score = withScores ? item.similarity.toFixed(3) : "";
  grid.update({
    items: list.items, busy: false, summary: summary(), label: summary() || "Images", more: list.next === null ? "" : "Show more",
    judging: found, legend: withScores ? "Score: cosine similarity; 1 is the same picture" : "",
  });
  put(scores, { hidden: !found, ariaPressed: String(withScores) });
  put($("empty"), { hidden: list.items.length > 0 });
  const admin = about.scope === "admin";
  const filtered = Object.keys(view.where).length > 0;
  const [title, text, next] = collection().images
    ? ["No matches", filtered ? "No image fits these filters." : "The collection holds no other images.", filtered ? button("Clear filters", () => go({ where: {} })) : ""]
    : ["There are no images yet", admin ? "Load a folder of images to search in." : "An administrator can load a folder of images.",
      admin ? button("Load images", () => $("load").click(), ".primary") : ""];
  $("empty").replaceChildren(make("h2", {}, title), make("p", {}, text), next);
}

// ---------------------------------------------------------------- errors

function fail({ name, status, message }) {
  if (name === "AbortError") return; // something else is asked for already
  grid.update({ busy: false });
  if (status === 404) {
    lists.clear(); // the collection may be gone
    list.key = null;
  }
  root.classList.toggle("locked", status === 401);
  if (status === 401) askForToken();
  else {
    const again = button("Try again", () => {
      list.key = attributed = null;
      start();
    });
    again.hidden = status >= 400 && status < 429;
    $("problem").replaceChildren(make("p", {}, status === 503 || status === 429 ? "The server is busy. Try again in a moment." : message), again);
  }
  put($("problem"), { hidden: false });
}

function askForToken() {
  const token = make("input.field", { type: "password", name: "token", required: true, ariaLabel: "Token", placeholder: "Token" });
  const form = make("form", { action: "/" }, token, make("button.button.primary", {}, "Open"));
  const given = new URLSearchParams(location.search);
  const refused = given.has("token");
  given.delete("token");
  history.replaceState(history.state, "", `/?${given}`);
  for (const [name, value] of given) form.append(make("input", { type: "hidden", name, value }));
  $("problem").replaceChildren(make("p", {}, `${refused ? "This is not the token of the server. " : ""}Enter the token. It is in the address that the server printed when it started.`), form);
  token.focus();
}

// ---------------------------------------------------------------- drawing

async function drawQuery() {
  const { query, box, collection } = view;
  const picture = query && !query.text;
  root.classList.toggle("searching", Boolean(picture));
  root.classList.toggle("reading", searching() && !picture);
  drop.update({ compact: Boolean(picture), message: "" });
  put($("invitation"), { textContent: picture ? "Searching with" : "Find images like yours" });
  for (const id of ["end", "note"]) put($(id), { hidden: !picture });
  put($("share"), { hidden: !query?.image });
  const field = $("words").text;
  const text = query?.text ?? "";
  if (words !== text || document.activeElement !== field) field.value = words = text;
  if (!picture) {
    crop.update({ src: "", note: "" });
    viewer.update({ query: null });
    document.title = `${query?.text ?? (searching() ? "Examples" : collection)} – imgsearch`;
    return;
  }
  let shown = query.upload;
  if (query.image) {
    const { name, width, height, thumbnail } = await details(query.image);
    shown = { name, width, height, src: `${thumbnail}?size=large` };
  }
  if (view.query !== query) return;
  const { src, name, width, height } = shown;
  crop.update({ src, width, height, box, alt: name, note: "Draw on the picture to search with a part of it." });
  viewer.update({ query: { src, name } });
  put($("note"), { textContent: query.image ? "" : "Your picture is not stored, and not part of the address." });
  document.title = `Similar to ${name} – imgsearch`;
}

// The parts of a query that has examples. Pressing one removes it.
async function drawParts() {
  const { query, examples } = view;
  const chip = (text, remove, picture = "") => button(picture, remove, ".part", { ariaLabel: `Remove ${text}`, title: `Remove ${text}` });
  const chips = await Promise.all(examples.map(async (example) => {
    const { name, thumbnail } = await details(example.key);
    const remove = () => searchLike(examples.filter((other) => other !== example));
    const one = chip(`${example.liked ? "like" : "unlike"} ${name}`, remove, make("img", { src: `${thumbnail}?size=small`, alt: "" }));
    one.prepend(example.liked ? "+" : "−");
    return one;
  }));
  if (view.examples !== examples) return;
  if (query && chips.length) {
    const words = query.text && `“${query.text}”`;
    chips.unshift(chip(words ?? "the picture", () => searchLike(examples, null), words ?? "Picture"));
  }
  const held = $("parts").contains(document.activeElement);
  $("parts").replaceChildren(...chips);
  if (held) (chips[0] ?? $("results")).focus();
}

async function drawViewer() {
  const { open } = view;
  if (!open) {
    viewer.update({ current: null });
    return;
  }
  let { items } = list;
  if (!items.some((item) => item.key === open)) items = [toItem(await details(open))];
  if (view.open === open) viewer.update({ items, current: open });
}

async function show() {
  put($("problem"), { hidden: true });
  put($("collection"), { value: view.collection });
  put($("words"), { hidden: !collection().text });
  filters.update({ where: view.where });
  try {
    if (!collections.length) drawImages();
    else await Promise.all([drawQuery(), drawParts(), listImages(), drawAttributes()]);
    await drawViewer();
  } catch (error) {
    const { upload } = view.query ?? {};
    if (error.status === 404 && files.has(upload?.id)) {
      const file = files.get(upload.id); // the server forgot it meanwhile
      files.delete(upload.id);
      await go({ query: { upload: await send(file) } }, { replace: true });
    } else fail(error);
  }
}

async function drawAttributes() {
  if (attributed === view.collection) return;
  attributed = view.collection;
  const found = await request(path("/attributes"));
  const pairs = Object.entries(found).map(([name, values]) => [name, values.map(({ value, count }) => [value, count])]);
  filters.update({ attributes: Object.fromEntries(pairs) });
}

// ---------------------------------------------------------------- components

const drop = createDrop($("drop"), { onFiles: searchWith, onKey: (key) => searchFor({ image: key }) });
const crop = createCrop(drop.slot, { onBox: (box) => go({ box }) });
const filters = createFilters($("filters"), { onChange: (where) => go({ where }) });
const grid = createGrid($("grid"), {
  endless: true, draggable: true, size: innerWidth < 640 ? 150 : innerWidth < 1200 ? 180 : 220,
  onPick: (key) => go({ open: key }, { opened: true }), onMore: moreImages,
  onJudge: (key, value) => searchLike([...view.examples.filter((one) => one.key !== key), { key, liked: value > 0 }]),
  onUndo: () => searchLike(view.examples.slice(0, -1)),
});
const scores = button("Scores", () => {
  localStorage.scores = localStorage.scores === "yes" ? "no" : "yes";
  drawImages();
}, "", { id: "scores" });
grid.bar.append(scores);
const viewer = createViewer(document.body, {
  searchLabel: "More like this",
  load: async (key) => {
    const image = await details(key);
    const item = list.items.find((one) => one.key === key);
    const facts = [["Format", image.format], ...Object.entries(image.attributes).map(([name, value]) => [name, [value].flat().join(", ")])];
    if (item) item.facts = facts;
    viewer.update({});
    return { src: image.original, note: `${image.width} × ${image.height} · ${Math.ceil(image.size / 1024).toLocaleString("en")} kB` };
  },
  onSearch: (key) => searchFor({ image: key }),
  onShow: (key) => {
    if (key === view.open) return;
    if (key) {
      go({ open: key }, { replace: true });
      if (list.next !== null && list.items.findIndex((item) => item.key === key) > list.items.length - 8) {
        moreImages().then(() => viewer.update({ items: list.items }));
      }
    } else if (history.state?.opened) history.back();
    else go({ open: null }, { replace: true });
  },
});
const load = createLoad($("loading"), $("load"), {
  onLoaded: async ({ collection: name }) => {
    lists.clear();
    list.key = attributed = null;
    await describe();
    if (name === view.collection) show();
  },
});

$("words").onsubmit = (event) => {
  event.preventDefault();
  const text = $("words").text.value.trim();
  searchFor(text ? { text } : null);
};
$("collection").onchange = ({ target }) => go({ ...EMPTY, collection: target.value });
for (const [id, act] of Object.entries({
  skip: () => $("results").focus(),
  home: async () => {
    await go({ ...EMPTY, collection: view.collection || about.collection });
    scrollTo(0, 0);
  },
  end: () => searchFor(null),
  share: async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      put($("note"), { textContent: "Link copied. Whoever opens it needs access to this server." });
    } catch {
      put($("note"), { textContent: "Copy the address of the page to share this search." });
    }
  },
})) {
  $(id).onclick = (event) => {
    if (!about || event.ctrlKey || event.metaKey || event.shiftKey) return; // loads the page, or opens a tab
    event.preventDefault();
    act();
  };
}
$("drop").querySelector(".imgsearch-drop-buttons").append($("share"), $("end"));

// ---------------------------------------------------------------- the window

const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
const drawTheme = () => put($("theme"), { ariaPressed: String(isDark()) });
$("theme").onclick = () => {
  root.dataset.theme = localStorage.theme = isDark() ? "light" : "dark";
  drawTheme();
};
system.onchange = drawTheme;

// A picture may be dropped anywhere.
const isFile = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => {
  if (!isFile(event)) return;
  event.preventDefault();
  put($("over"), { hidden: false });
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) put($("over"), { hidden: true });
});
addEventListener("drop", () => put($("over"), { hidden: true }), true);
addEventListener("drop", (event) => {
  if (!isFile(event)) return;
  event.preventDefault();
  drop.take(event.dataTransfer.files);
});

// A picture may be pasted anywhere, unless it comes with a text for a field.
addEventListener("paste", (event) => {
  const { defaultPrevented, target, clipboardData: { files: pasted, types } } = event;
  if (defaultPrevented || !pasted.length || (target.closest?.("input") && types.includes("text/plain"))) return;
  event.preventDefault();
  drop.take(pasted);
});

// A thumbnail that a busy server refused is asked for again.
addEventListener("error", ({ target }) => {
  const tries = Number(target.dataset?.tries ?? 0) + 1;
  if (!(target instanceof HTMLImageElement) || !target.closest("#grid") || tries > REFUSED) return;
  target.dataset.tries = tries;
  const { src } = target;
  setTimeout(() => {
    target.removeAttribute("src");
    target.src = src;
  }, 1000 * tries);
}, true);

// ---------------------------------------------------------------- start

async function describe() {
  [about, collections] = await Promise.all([request(""), request("collections")]);
  const names = collections.map(({ name }) => name);
  $("collection").replaceChildren(...names.map((name) => make("option", {}, name)));
  put($("collection"), { hidden: names.length < 2, value: view.collection });
  const admin = about.scope === "admin";
  put($("load"), { hidden: !admin });
  filters.update({ paths: admin });
  drop.update({ hint: `${about.formats.join(", ")}, up to ${about.max_bytes >> 20} MiB` });
  load.update({ roots: about.roots, collections: names, collection: view.collection || about.collection });
}

async function start() {
  try {
    if (!about) {
      await describe();
      if (about.scope === "admin") load.resume();
    }
    view = fromAddress();
    await go({}, { replace: true });
  } catch (error) {
    fail(error);
  }
}

drawTheme();
start();
