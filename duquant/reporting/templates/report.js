"use strict";
// Headings of a table with data-sortable become buttons that sort its rows: numbers by their size,
// everything else as text. A dash (nothing is known) stays at the end.

function keyOf(cell) {
  const text = cell.textContent.trim();
  const number = text === "not finite" || text === "inf" ? Infinity : parseFloat(text);
  return { text, number, isMissing: text === "–" };
}

function compare(one, other, sign) {
  if (one.isMissing !== other.isMissing) return one.isMissing ? 1 : -1;
  if (Number.isNaN(one.number) || Number.isNaN(other.number))
    return sign * one.text.localeCompare(other.text);
  return one.number === other.number ? 0 : sign * (one.number - other.number);
}

function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const before = heads[column].getAttribute("aria-sort");
  const first = column === 0 ? "ascending" : "descending";
  const order = !before ? first : before === "descending" ? "ascending" : "descending";
  const sign = order === "descending" ? -1 : 1;
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [keyOf(row.cells[column]), row]);
  rows.sort((one, other) => compare(one[0], other[0], sign));
  body.append(...rows.map((pair) => pair[1]));
  for (const head of heads) head.removeAttribute("aria-sort");
  heads[column].setAttribute("aria-sort", order);
  document.getElementById("sorted").textContent =
    `sorted by ${heads[column].textContent}, ${order}`;
}

for (const table of document.querySelectorAll("table[data-sortable]"))
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sortBy(table, column));
    head.append(button);
  });
