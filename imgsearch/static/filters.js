// A bar of filters: a part of the path, and the values of attributes with their counts.
//
//   const filters = createFilters(element, { onChange(where) {} });
//   filters.update({ attributes: { label: [["cat", 12], ["dog", 7]] }, where: { label: ["cat"] }, paths: true });
//
// `where` is in the language of imgsearch.filters; what the bar cannot show of it stays as it is.
// Keys: Enter in the field, Space on a value; Escape closes a list.
import { button, make, put, putChildren } from "./dom.js";

const SEARCHABLE = 10; // values from which on a list has a field to find some
let created = 0;

export function createFilters(element, options = {}) {
  const state = { attributes: {}, where: {}, paths: true, ...options };
  const group = `imgsearch-filters-${++created}`;
  const find = make("input.field", { type: "search", placeholder: "Find in paths", ariaLabel: "Find in paths" });
  const menus = make("span.filter-menus");
  const clear = button("Clear filters", () => {
    change({});
    find.focus();
  });
  const root = make("div.filters", { role: "group", ariaLabel: "Filters" }, find, menus, clear);
  element.append(root);
  const drawn = new Map(); // menus by the name of their attribute

  function change(where) {
    update({ where });
    options.onChange?.(where);
  }

  function changeOne(name, test) {
    const { [name]: _, ...others } = state.where;
    change(test === undefined ? others : { ...others, [name]: test });
  }

  find.onchange = () => changeOne("path", find.value.trim() ? { contains: find.value.trim() } : undefined);

  function chosen(name) {
    const test = state.where[name];
    return Array.isArray(test) ? test : [];
  }

  function createMenu(name) {
    const label = make("span", { textContent: name });
    const count = make("span.filter-count");
    const summary = make("summary.button", {}, label, count);
    const narrow = make("input.field", { type: "search", placeholder: "Find a value", ariaLabel: `Find a value of ${name}` });
    const list = make("div", { role: "group", ariaLabel: name });
    const menu = make("details.filter", { name: group }, summary,
      make("div.filter-menu", {}, narrow, list));
    narrow.oninput = () => {
      for (const row of list.children) row.hidden = !row.dataset.value.includes(narrow.value.toLowerCase());
    };
    menu.onkeydown = (event) => {
      if (event.key !== "Escape" || !menu.open) return;
      menu.open = false;
      summary.focus();
      event.preventDefault();
      event.stopPropagation();
    };
    menu.addEventListener("focusout", (event) => {
      if (event.relatedTarget && !menu.contains(event.relatedTarget)) menu.open = false;
    });
    return { menu, count, narrow, list, shown: "" };
  }

  function fill(part, name, values) {
    const picked = chosen(name);
    put(part.count, { textContent: picked.length ? String(picked.length) : "" });
    part.menu.classList.toggle("imgsearch-filtered", picked.length > 0);
    put(part.narrow, { hidden: values.length < SEARCHABLE });
    const shown = JSON.stringify(values);
    if (part.shown !== shown) {
      part.shown = shown;
      part.list.replaceChildren(...values.map(([value, count]) => {
        const box = make("input", { type: "checkbox" });
        box.onchange = () => {
          const others = chosen(name).filter((other) => other !== value);
          const all = box.checked ? [...others, value] : others;
          changeOne(name, all.length ? all : undefined);
        };
        const row = make("label", {}, box, make("span", {}, String(value)), make("span.muted", {}, count.toLocaleString("en")));
        row.dataset.value = String(value).toLowerCase();
        return row;
      }));
    }
    values.forEach(([value], i) => put(part.list.children[i].firstChild, { checked: picked.includes(value) }));
  }

  function closeMenus(event) {
    for (const { menu } of drawn.values()) if (!menu.contains(event.target)) menu.open = false;
  }
  document.addEventListener("pointerdown", closeMenus);

  function update(changes) {
    Object.assign(state, changes);
    const names = Object.keys(state.attributes);
    for (const name of names) {
      if (!drawn.has(name)) drawn.set(name, createMenu(name));
      fill(drawn.get(name), name, state.attributes[name]);
    }
    putChildren(menus, names.map((name) => drawn.get(name).menu));
    if (document.activeElement !== find) put(find, { value: state.where.path?.contains ?? "" });
    put(find, { hidden: !state.paths });
    put(clear, { hidden: !Object.keys(state.where).length });
  }

  update({});
  return {
    update,
    destroy() {
      document.removeEventListener("pointerdown", closeMenus);
      root.remove();
    },
  };
}
