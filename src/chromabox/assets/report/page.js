"use strict";

/* Light or dark: as the system has it, until the reader says otherwise. */
const root = document.documentElement;
const theme = document.createElement("button");
const remembered = { get: () => { try { return localStorage.getItem("theme"); } catch { return null; } },
                     set: (name) => { try { localStorage.setItem("theme", name); } catch { /* A file may have no storage. */ } } };
const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const name = () => { theme.textContent = isDark() ? "Light" : "Dark"; theme.setAttribute("aria-label", isDark() ? "Change to light colours" : "Change to dark colours"); };
theme.type = "button";
theme.className = "theme";
theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; remembered.set(root.dataset.theme); name(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
if (["light", "dark"].includes(remembered.get())) root.dataset.theme = remembered.get();
name();
document.querySelector("header").append(theme);

/* Tables: a click or Enter on a heading sorts upwards, then downwards, then as it was. */
const words = new Intl.Collator("en-GB", { numeric: true });
const value = (cell) => {
  const number = cell.querySelector("data");
  return number ? Number(number.value.replace("inf", "Infinity")) : cell.textContent.trim();
};
/* Numbers before words before what is not known, whichever way the order goes. */
const rank = (one) => typeof one === "number" ? (Number.isNaN(one) ? 2 : 0) : (one ? 1 : 2);
const compare = (a, b) => typeof a === "number" && typeof b === "number" ? Math.sign(a - b) || 0 : words.compare(a, b);

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const asWritten = [...body.rows];
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
      const way = order === "descending" ? -1 : 1;
      const keyed = asWritten.map((row) => ({ row, key: value(row.cells[column]) }));
      if (order !== "none") keyed.sort((a, b) => rank(a.key) - rank(b.key) || (rank(a.key) === 2 ? 0 : way * compare(a.key, b.key)));
      body.append(...keyed.map(({ row }) => row));
    });
  });
}

/* Numbers say where they come from, under the pointer and under the keyboard. */
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
/* Moving to a number by keyboard may scroll the page; its source goes along. */
document.addEventListener("scroll", () => { const number = document.activeElement.closest(".number"); if (number) show(number); else hide(); }, { capture: true, passive: true });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

/* In a table the tab key stops at one number; arrows go to the others. */
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

/* The contents show where one is. */
const entries = new Map([...document.querySelectorAll("nav a")].map((link) => [decodeURIComponent(link.hash.slice(1)), link]));
const watch = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes) {
    if (isIntersecting) entries.get(target.id)?.setAttribute("aria-current", "true");
    else entries.get(target.id)?.removeAttribute("aria-current");
  }
}, { rootMargin: "-20% 0px -75% 0px" });
for (const section of document.querySelectorAll("main > section[id]")) watch.observe(section);
