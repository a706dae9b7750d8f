"use strict";
{
  const table = document.querySelector("table.results");
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];

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

  // Chips add up; none is all. They hide rows, columns, parts of figures, and what has nothing left to show.
  const wanted = {model: new Set(), method: new Set()};
  const filters = document.querySelector(".filters");
  const shows = part => Object.entries(wanted).every(([name, values]) =>
    !values.size || !(name in part.dataset) || values.has(part.dataset[name]));
  const show = () => {
    for (const part of document.querySelectorAll("main [data-model], main [data-method]"))
      part.toggleAttribute("hidden", !shows(part));
    for (const whole of document.querySelectorAll("main [data-whole]"))
      whole.hidden = ![...whole.querySelectorAll("[data-method]")].some(part => !part.hasAttribute("hidden"));
    table.classList.toggle("one-model", wanted.model.size === 1);
    const [all, left] = [body.rows.length, [...body.rows].filter(row => !row.hidden).length];
    filters.querySelector("[role=status]").textContent = left === all ? `${all} rows` : `${left} of ${all} rows`;
  };
  for (const group of filters ? filters.querySelectorAll("[data-filter]") : []) {
    const values = wanted[group.dataset.filter];
    const [every, ...chips] = group.children;
    for (const chip of group.children) chip.addEventListener("click", () => {
      if (chip === every) values.clear();
      else if (!values.delete(chip.dataset.value)) values.add(chip.dataset.value);
      every.setAttribute("aria-pressed", !values.size);
      for (const other of chips) other.setAttribute("aria-pressed", values.has(other.dataset.value));
      show();
    });
  }
  if (filters) {
    filters.hidden = false;
    show();
  }
}
