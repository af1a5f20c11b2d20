"use strict";

/* Colour scheme: the system's, until the reader switches it. */
const root = document.documentElement;
const theme = document.createElement("button");
const stored = { get: () => { try { return localStorage.getItem("theme"); } catch { return null; } },
                     set: (name) => { try { localStorage.setItem("theme", name); } catch { /* Local files can have no storage. */ } } };
const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const updateLabel = () => { theme.textContent = isDark() ? "Light" : "Dark"; theme.setAttribute("aria-label", isDark() ? "Switch to light mode" : "Switch to dark mode"); };
theme.type = "button";
theme.className = "theme";
theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; stored.set(root.dataset.theme); updateLabel(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", updateLabel);
if (["light", "dark"].includes(stored.get())) root.dataset.theme = stored.get();
updateLabel();
document.querySelector("header").append(theme);

/* Tables: a click or Enter on a heading sorts in ascending, then descending, then original order. */
const collator = new Intl.Collator("en-GB", { numeric: true });
const value = (cell) => {
  const number = cell.querySelector("data");
  return number ? Number(number.value.replace("inf", "Infinity")) : cell.textContent.trim();
};
/* Numbers come before text and text before missing values, in either direction. */
const rank = (key) => typeof key === "number" ? (Number.isNaN(key) ? 2 : 0) : (key ? 1 : 2);
const compare = (a, b) => typeof a === "number" && typeof b === "number" ? Math.sign(a - b) || 0 : collator.compare(a, b);

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const originalRows = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    if (!button.textContent.trim()) button.setAttribute("aria-label", `Column ${column + 1}`);
    head.append(button);
    head.ariaSort = "none";
    button.addEventListener("click", () => {
      const order = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort];
      for (const other of table.tHead.rows[0].cells) other.ariaSort = "none";
      head.ariaSort = order;
      const sign = order === "descending" ? -1 : 1;
      const keyed = originalRows.map((row) => ({ row, key: value(row.cells[column]) }));
      if (order !== "none") keyed.sort((a, b) => rank(a.key) - rank(b.key) || (rank(a.key) === 2 ? 0 : sign * compare(a.key, b.key)));
      body.append(...keyed.map(({ row }) => row));
    });
  });
}

/* Numbers show their source on hover and on keyboard focus. */
const source = document.createElement("div");
source.id = "-source";
source.role = "tooltip";
source.popover = "manual";
document.body.append(source);
for (const number of document.querySelectorAll(".number")) {
  number.dataset.source = number.title;
  number.removeAttribute("title");
}
const hide = () => { source.hidePopover(); document.querySelector("[aria-describedby='-source']")?.removeAttribute("aria-describedby"); };
const show = (number) => {
  hide();
  source.textContent = number.dataset.source;
  source.showPopover();
  number.setAttribute("aria-describedby", "-source");
  const at = number.getBoundingClientRect(), size = source.getBoundingClientRect();
  const above = at.top - size.height - 8;
  source.style.top = `${above > 4 ? above : at.bottom + 8}px`;
  source.style.left = `${Math.max(8, Math.min(at.left + at.width / 2 - size.width / 2, root.clientWidth - size.width - 8))}px`;
};
const numberAt = (event) => event.target.closest?.(".number");
document.addEventListener("pointerover", (event) => { const number = numberAt(event); if (number) show(number); });
document.addEventListener("pointerout", (event) => { if (numberAt(event)) hide(); });
document.addEventListener("focusin", (event) => { const number = numberAt(event); if (number) show(number); else hide(); });
/* Focusing a number can scroll the page; the tooltip follows. */
document.addEventListener("scroll", () => { const number = document.activeElement.closest(".number"); if (number) show(number); else hide(); }, { capture: true, passive: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

/* In a table, only one number is a tab stop; arrow keys move to the others. */
for (const body of document.querySelectorAll("figure tbody")) {
  body.querySelectorAll(".number").forEach((number, index) => { number.tabIndex = index ? -1 : 0; });
  body.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    if (!numberAt(event) || (!down && !right)) return;
    event.preventDefault();
    let cell = event.target.closest("td"), next;
    do {
      cell = body.rows[cell.parentElement.sectionRowIndex + down]?.cells[cell.cellIndex + right];
      next = cell?.querySelector(".number");
    } while (cell && !next);
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

/* The table of contents highlights the current section. */
const entries = new Map([...document.querySelectorAll("nav a")].map((link) => [decodeURIComponent(link.hash.slice(1)), link]));
const observer = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes) {
    if (isIntersecting) entries.get(target.id)?.setAttribute("aria-current", "true");
    else entries.get(target.id)?.removeAttribute("aria-current");
  }
}, { rootMargin: "-20% 0px -75% 0px" });
for (const section of document.querySelectorAll("main > section[id]")) observer.observe(section);
