// The bar of filters, in a notebook.

function render({ model, el }) {
  el.dataset.lmSuppressShortcuts = "true"; // of JupyterLab, which would take Enter and letters
  const filters = createFilters(el, {
    onChange: (where) => {
      model.set("where", where);
      model.save_changes();
    },
  });
  const draw = () => filters.update({ attributes: model.get("attributes"), where: model.get("where") });
  model.on("change:attributes change:where", draw);
  draw();
  return () => {
    model.off("change:attributes change:where", draw);
    filters.destroy();
  };
}

export default { render };
