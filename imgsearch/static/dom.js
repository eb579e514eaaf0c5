// Helpers that the components share.

// What a tile that is dragged carries: its key.
export const DRAGGED = "application/x-imgsearch-key";

// Creates an element: make("p.muted", { title: "Hint" }, "Text") has the class imgsearch-muted.
export function make(kind, properties = {}, ...children) {
  const [tag, ...names] = kind.split(".");
  const node = Object.assign(document.createElement(tag), properties);
  node.classList.add(...names.map((name) => `imgsearch-${name}`));
  node.append(...children);
  return node;
}

// A button with further classes: button("Start", begin, ".primary").
export function button(label, onclick, kind = "", properties = {}) {
  return make(`button.button${kind}`, { type: "button", onclick, ...properties }, label);
}

// A file name whose middle is cut out where there is no room: 2007_0…00032.jpg.
export function fileName(name) {
  const tail = Math.min(10, Math.floor(name.length / 2));
  return make("span.name", { title: name },
    make("span", {}, name.slice(0, name.length - tail)),
    make("span", {}, name.slice(name.length - tail)));
}

// Sets properties only where they change, which keeps the focus and the scroll position.
export function put(node, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (node[name] !== value) node[name] = value;
  }
}

// Replaces children only if they differ.
export function putChildren(node, children) {
  const same = children.length === node.childNodes.length
    && children.every((child, i) => child === node.childNodes[i]);
  if (!same) node.replaceChildren(...children);
}
