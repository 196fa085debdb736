(() => {
  "use strict";
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const say = text => { document.getElementById("said").textContent = text; };

  // Tables: a click on a heading sorts up, then down, then as written; what is missing stays last.
  const order = new Intl.Collator("en", { numeric: true });
  const keyOf = (row, index, numeric) => {
    const cell = row.cells[index];
    if (!numeric) return cell.textContent.trim() || null;
    return cell.hasAttribute("data-sort") ? Number(cell.getAttribute("data-sort")) : null;
  };
  const sort = (table, index, direction, numeric) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map(row => [row, direction ? keyOf(row, index, numeric) : Number(row.dataset.place)]);
    rows.sort(([a, x], [b, y]) => {
      if (x === null || y === null) return (x === null) - (y === null) || a.dataset.place - b.dataset.place;
      const apart = numeric || !direction ? x - y : order.compare(x, y);
      return (direction < 0 ? -apart : apart) || a.dataset.place - b.dataset.place;
    });
    body.append(...rows.map(([row]) => row));
  };
  for (const table of all("table")) {
    [...table.tBodies[0].rows].forEach((row, place) => { row.dataset.place = place; });
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, index) => {
      const button = document.createElement("button");
      const title = head.querySelector(".name").textContent;
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const next = { none: ["ascending", 1], ascending: ["descending", -1], descending: ["none", 0] };
        const [state, direction] = next[head.getAttribute("aria-sort") || "none"];
        for (const other of heads) other.removeAttribute("aria-sort");
        if (direction) head.setAttribute("aria-sort", state);
        sort(table, index, direction, head.dataset.kind !== "text");
        say(direction ? `sorted by ${title}, ${state}` : "as written");
      });
    });
  }

  // Arms: one box each, for charts and tables together.
  const boxes = all(".arms input");
  const show = () => {
    const off = new Set(boxes.filter(box => !box.checked).map(box => box.value));
    for (const part of all("[data-arm]")) part.toggleAttribute("hidden", off.has(part.dataset.arm));
    const on = boxes.length - off.size;
    document.getElementById("shown").textContent = off.size ? `${on} of ${boxes.length}` : `all ${on}`;
    for (const svg of all("svg")) rove(svg);
    hide();
  };
  const panel = document.querySelector(".arms");
  if (panel) {
    panel.hidden = false;
    panel.addEventListener("change", show);
    for (const button of all("button", panel)) {
      button.addEventListener("click", () => {
        for (const box of boxes) box.checked = Boolean(button.dataset.all);
        show();
      });
    }
  }

  // Raw points: what they are shows by pointer, touch and keyboard; in a chart the arrow keys go from one to the next.
  const tip = document.getElementById("tip");
  let told = null;
  const hide = () => { tip.hidden = true; told = null; };
  const tell = point => {
    told = point;
    tip.textContent = point.getAttribute("aria-label");
    tip.hidden = false;
    const at = point.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const left = Math.min(Math.max(4, at.left + at.width / 2 - own.width / 2), innerWidth - own.width - 4);
    const above = at.top - own.height - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : at.bottom + 8}px`;
  };
  const pointsOf = svg => all(".point", svg).filter(point => !point.closest("[hidden]"));
  const rove = (svg, to) => {
    const points = pointsOf(svg);
    const now = to || points.find(point => point.getAttribute("tabindex") === "0") || points[0];
    for (const point of all('.point[tabindex="0"]', svg)) point.setAttribute("tabindex", "-1");
    if (now) now.setAttribute("tabindex", "0");
    if (to) to.focus();
  };
  const pointAt = event => event.target.closest(".point");
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  for (const svg of all("figure svg")) {
    for (const title of all("g > title", svg)) {
      const point = title.parentNode;
      point.classList.add("point");
      point.setAttribute("role", "img");
      point.setAttribute("aria-label", title.textContent);
      point.setAttribute("tabindex", "-1");
      title.remove(); // or the browser would show it beside ours
    }
    rove(svg);
    svg.addEventListener("pointerover", event => { if (pointAt(event)) tell(pointAt(event)); });
    svg.addEventListener("pointerout", event => { if (pointAt(event) && event.pointerType === "mouse") hide(); });
    svg.addEventListener("click", event => { if (pointAt(event)) rove(svg, pointAt(event)); });
    svg.addEventListener("focusin", event => { if (pointAt(event)) tell(pointAt(event)); });
    svg.addEventListener("focusout", hide);
    svg.addEventListener("keydown", event => {
      const points = pointsOf(svg), here = points.indexOf(pointAt(event));
      if (here < 0 || !(event.key in steps)) return;
      event.preventDefault();
      rove(svg, points[(here + steps[event.key] + points.length) % points.length]);
    });
  }
  document.addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
  document.addEventListener("pointerdown", event => { if (!pointAt(event)) hide(); });
  addEventListener("scroll", () => { if (told) tell(told); }, { passive: true, capture: true });
})();
