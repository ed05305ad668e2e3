for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.ariaSort ? head.ariaSort === "ascending" : column > 0;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows], text = row => row.cells[column].textContent;
      const number = row => parseFloat(text(row).replaceAll(",", ""));
      rows.sort((a, b) => column ? number(a) - number(b) : text(a).localeCompare(text(b)));
      table.tBodies[0].append(...(down ? rows.reverse() : rows));
    });
  });
}
for (const scroll of document.querySelectorAll(".scroll")) {
  const mark = () => scroll.parentElement.classList.toggle(
    "more", scroll.scrollLeft + scroll.clientWidth < scroll.scrollWidth - 1);
  mark();
  scroll.addEventListener("scroll", mark, { passive: true });
  new ResizeObserver(mark).observe(scroll);
}
const dialog = document.querySelector("dialog");
document.addEventListener("click", event => {
  const opener = event.target.closest(".open"), close = document.createElement("button"), large = new Image();
  if (!opener) return;
  const small = opener.querySelector("img"), caption = opener.parentElement.querySelector("figcaption");
  close.type = "button";
  close.textContent = "Close";
  large.src = small.currentSrc;
  large.alt = small.alt;
  large.style.setProperty("--large-width", opener.dataset.width ?? "0");
  dialog.replaceChildren(close, large, ...(caption ? [caption.cloneNode(true)] : []));
  dialog.showModal();
});
dialog.addEventListener("click", event => event.target.closest("figcaption") || dialog.close());
