"use strict";
{
  const table = document.querySelector("table.results");
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const filters = document.querySelector(".filters");
  const status = filters.querySelector("[role=status]");
  const wanted = {};
  filters.hidden = false;

  // Numbers by size, words by the alphabet, empty cells last either way; rows that tie stay in their order.
  const compare = (a, b, sign) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    return sign * (isNaN(x) || isNaN(y) ? a.localeCompare(b) : x - y);
  };
  headers.forEach((header, column) => header.firstElementChild.addEventListener("click", () => {
    const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of headers) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.v;
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b), sign)));
  }));

  for (const group of filters.querySelectorAll("[data-filter]")) {
    const chips = [...group.children];
    for (const chip of chips) chip.addEventListener("click", () => {
      wanted[group.dataset.filter] = chip.dataset.value;
      for (const other of chips) other.setAttribute("aria-pressed", other === chip);
      table.classList.toggle("one-model", Boolean(wanted.model));
      let shown = 0;
      for (const row of body.rows) {
        row.hidden = Object.entries(wanted).some(([name, value]) => value && row.dataset[name] !== value);
        shown += !row.hidden;
      }
      status.textContent = shown === body.rows.length ? `${shown} rows` : `${shown} of ${body.rows.length} rows`;
    });
  }
}
