"use strict";

// Tables: the button of a heading sorts by its column. A second click reverses the order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const text = (cell.dataset.value ?? cell.textContent).trim();
    const number = Number(text);
    return text === "" || Number.isNaN(number) ? text : number;
  };
  headings.forEach((heading, column) => {
    heading.querySelector("button")?.addEventListener("click", () => {
      const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
      rows.sort(([a], [b]) => {
        if (a === "" || b === "") return (a === "") - (b === ""); // empty values stay last
        const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
        return sign * order;
      });
      body.append(...rows.map(([, row]) => row));
    });
  });
}

// Pictures: opacity of the map, and whether the outline of the mask is shown.
const tools = document.querySelector(".tools");
if (tools) {
  const opacity = document.getElementById("opacity");
  const outlines = document.getElementById("outlines");
  tools.hidden = !document.querySelector(".picture");
  opacity?.addEventListener("input", () => {
    document.documentElement.style.setProperty("--map", opacity.value / 100);
  });
  outlines.addEventListener("change", () => document.body.classList.toggle("plain", !outlines.checked));
}
