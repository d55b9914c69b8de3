// Everything here is a convenience: without it the pages read the same, with all of their text, figures and tables.
"use strict";

const number = /^[×(]?\s*([+\-−]?[\d,]*\.?\d+(?:e[+-]?\d+)?)/i;

// What a cell is sorted by: its leading number, else its text; a dash or nothing comes last.
function key(cell) {
  const text = cell.textContent.trim();
  if (["", "–", "-", "nan"].includes(text)) return null;
  const found = text.match(number);
  return found ? Number(found[1].replaceAll(",", "").replace("−", "-")) : text.toLowerCase();
}

function compare(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : a.localeCompare(b);
}

// A heading that spans rows is repeated in each of them, or it would be torn from its rows.
function unspan(body) {
  [...body.rows].forEach((row, i) => {
    [...row.cells].forEach((cell, j) => {
      const span = cell.rowSpan;
      cell.rowSpan = 1;
      for (let below = i + 1; below < i + span; below++) {
        const copy = cell.cloneNode(true);
        body.rows[below].insertBefore(copy, body.rows[below].cells[j] ?? null);
      }
    });
  });
}

function sort(table, column, head) {
  const body = table.tBodies[0];
  if (!table.original) {
    table.original = [...body.rows].map((row) => row.innerHTML);
    unspan(body);
    table.rowsFlat = [...body.rows];
  }
  const next = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort ?? "none"];
  table.querySelectorAll("th[aria-sort]").forEach((th) => th.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", next);
  const rows = [...table.rowsFlat];
  if (next !== "none") {
    const sign = next === "ascending" ? 1 : -1;
    const keys = new Map(rows.map((row) => [row, key(row.cells[column])]));
    rows.sort((a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      return compare(x, y) * (x === null || y === null ? 1 : sign);
    });
  }
  body.replaceChildren(...rows);
}

function sortable(table) {
  if (!table.tHead || table.tBodies.length !== 1 || table.tBodies[0].rows.length < 2) return;
  for (const row of table.tHead.rows) {
    let column = 0;
    for (const head of row.cells) {
      const place = column;
      column += head.colSpan;
      if (head.colSpan > 1 || !head.textContent.trim()) continue;
      head.setAttribute("aria-sort", "none");
      head.tabIndex = 0;
      head.title = "Sort by this column";
      head.addEventListener("click", () => sort(table, place, head));
      head.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        sort(table, place, head);
      });
    }
  }
}

function enlargeable(figures) {
  const dialog = document.body.appendChild(document.createElement("dialog"));
  dialog.className = "enlarged";
  dialog.ariaLabel = "Enlarged figure";
  const close = dialog.appendChild(document.createElement("button"));
  close.type = "button";
  close.textContent = "Close";
  const image = dialog.appendChild(document.createElement("img"));
  dialog.addEventListener("click", () => dialog.close());
  for (const link of figures) {
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      const small = link.querySelector("img");
      image.src = small.src;
      image.alt = small.alt;
      dialog.showModal();
    });
  }
}

document.querySelectorAll("article table").forEach(sortable);
enlargeable(document.querySelectorAll("a.enlarge"));

const menu = document.querySelector("button.menu");
menu.hidden = false;
document.documentElement.classList.add("scripted");
menu.addEventListener("click", () => {
  menu.setAttribute("aria-expanded", document.documentElement.classList.toggle("open"));
});
document.getElementById("pages").addEventListener("click", (event) => {
  if (event.target.closest("a")) {
    document.documentElement.classList.remove("open");
    menu.setAttribute("aria-expanded", false);
  }
});

const unfold = document.querySelector("button.unfold");
const code = document.querySelectorAll("details.code");
if (unfold && code.length) {
  unfold.hidden = false;
  unfold.addEventListener("click", () => {
    const open = unfold.getAttribute("aria-pressed") !== "true";
    unfold.setAttribute("aria-pressed", open);
    unfold.textContent = open ? "Fold all code" : "Show all code";
    code.forEach((part) => (part.open = open));
  });
}
