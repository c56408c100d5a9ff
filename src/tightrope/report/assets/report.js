"use strict";
(() => {
  const points = JSON.parse(document.getElementById("points")?.textContent || "[]");
  const stage = document.querySelector(".stage");
  const tip = document.querySelector(".tip");
  const CHARACTER = 6.4;

  const wires = [...document.querySelectorAll("svg.wire")].map((svg) => {
    const { left, plot, start, span } = Object.fromEntries(Object.entries(svg.dataset).map(([k, v]) => [k, +v]));
    return { svg, left, plot, whole: [start, span], view: [start, span] };
  });

  function place(wire) {
    const [start, span] = wire.view;
    const scale = wire.plot / span;
    const pixel = (x) => wire.left + (x - start) * scale;
    const inside = (px) => px >= wire.left - 1 && px <= wire.left + wire.plot + 1;
    for (const inner of wire.svg.querySelectorAll("svg.plot")) {
      inner.setAttribute("viewBox", `${start} 0 ${span} ${inner.getAttribute("height")}`);
    }
    for (const flag of wire.svg.querySelectorAll(".at")) {
      const px = pixel(+flag.dataset.x);
      flag.setAttribute("transform", `translate(${px} 0)`);
      flag.style.display = inside(px) ? "" : "none";
    }
    const ends = {};
    for (const label of wire.svg.querySelectorAll(".label")) {
      const px = pixel(+label.dataset.x);
      const wide = label.dataset.w * scale - 4;
      const tail = label.dataset.short || label.dataset.long;
      const row = label.getAttribute("y");
      let text = [label.dataset.long, tail].find((word) => word.length * CHARACTER <= wide) || "";
      if (!text && /^\d+$/.test(tail) && px - tail.length * CHARACTER / 2 > (ends[row] ?? -1) + 6) text = tail;
      if (!inside(px)) text = "";
      if (text) ends[row] = px + text.length * CHARACTER / 2;
      label.setAttribute("x", px);
      label.textContent = text;
    }
  }

  function zoom(wire, centre, factor) {
    const [start, span] = wire.view;
    const wanted = factor ? Math.min(Math.max(span * factor, Math.min(4, wire.whole[1])), wire.whole[1]) : wire.whole[1];
    show(wire, centre - ((centre - start) * wanted) / span, wanted);
  }

  function show(wire, start, span) {
    const last = wire.whole[0] + wire.whole[1] - span;
    wire.view = [Math.min(Math.max(start, wire.whole[0]), last), span];
    place(wire);
  }

  function line(name, text) {
    const span = document.createElement("span");
    span.textContent = `${name} ${text}`;
    return span;
  }

  function hover(wire, event) {
    const box = wire.svg.getBoundingClientRect();
    const unit = wire.svg.viewBox.baseVal.width / box.width;
    const x = wire.view[0] + (((event.clientX - box.left) * unit - wire.left) / wire.plot) * wire.view[1];
    const n = Math.min(Math.max(Math.floor(x), 0), points.length - 1);
    const [, module, op, predicted, measured, back, seen, z] = points[n];
    const px = wire.left + ((n + 0.5 - wire.view[0]) / wire.view[1]) * wire.plot;
    const cursor = wire.svg.querySelector(".cursor");
    cursor.setAttribute("transform", `translate(${px} 0)`);
    cursor.style.opacity = 0.35;
    const head = document.createElement("b");
    head.textContent = module;
    tip.replaceChildren(head, line("op", op));
    if (measured) tip.append(line("std measured", measured));
    if (predicted) tip.append(line("std predicted", predicted + (z ? ` (z ${z})` : "")));
    if (seen) tip.append(line("gradient measured", seen));
    if (back) tip.append(line("gradient predicted", back));
    tip.hidden = false;
    const at = px / unit;
    tip.style.left = `${at > box.width / 2 ? Math.max(at - tip.offsetWidth - 14, 0) : Math.min(at + 14, box.width - tip.offsetWidth)}px`;
    tip.style.top = `${Math.max(event.clientY - box.top - tip.offsetHeight - 12, 0)}px`;
    return n;
  }

  function leave(wire) {
    tip.hidden = true;
    wire.svg.querySelector(".cursor").style.opacity = 0;
  }

  for (const wire of wires) {
    const { svg } = wire;
    const brush = svg.querySelector(".brush");
    let from = null;
    const local = (event) => {
      const box = svg.getBoundingClientRect();
      return ((event.clientX - box.left) * svg.viewBox.baseVal.width) / box.width;
    };
    const unit = (px) => wire.view[0] + ((px - wire.left) / wire.plot) * wire.view[1];
    svg.addEventListener("pointermove", (event) => {
      hover(wire, event);
      if (from === null) return;
      const to = local(event);
      brush.setAttribute("x", Math.min(from, to));
      brush.setAttribute("width", Math.abs(to - from));
    });
    svg.addEventListener("pointerleave", () => leave(wire));
    svg.addEventListener("pointerdown", (event) => {
      if (!event.target.closest("a") && event.pointerType === "mouse") from = local(event);
    });
    window.addEventListener("pointerup", (event) => {
      if (from === null) return;
      const [a, b] = [from, local(event)].sort((p, q) => p - q);
      from = null;
      brush.setAttribute("width", 0);
      if (b - a > 12) show(wire, unit(a), Math.max(unit(b) - unit(a), 3));
      else if (svg.contains(event.target)) location.hash = `row-${points[hover(wire, event)][0]}`;
    });
    svg.addEventListener("dblclick", () => show(wire, ...wire.whole));
    svg.addEventListener("keydown", (event) => {
      const [start, span] = wire.view;
      const moves = {
        ArrowLeft: () => show(wire, start - span / 5, span), ArrowRight: () => show(wire, start + span / 5, span),
        "+": () => zoom(wire, start + span / 2, 0.5), "=": () => zoom(wire, start + span / 2, 0.5),
        "-": () => zoom(wire, start + span / 2, 2), Escape: () => show(wire, ...wire.whole),
      };
      if (event.target === svg && moves[event.key]) {
        event.preventDefault();
        moves[event.key]();
      }
    });
  }

  const tools = document.querySelector(".tools");
  if (tools) {
    tools.hidden = false;
    tools.addEventListener("click", (event) => {
      const factor = event.target.dataset.zoom;
      if (factor !== undefined) wires.forEach((wire) => zoom(wire, wire.view[0] + wire.view[1] / 2, +factor));
    });
  }

  const body = document.querySelector("tbody");
  document.querySelectorAll("thead th[data-kind]").forEach((head) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      document.querySelectorAll("th[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[head.cellIndex];
        if (head.dataset.kind === "t") return cell.textContent.trim();
        return cell.dataset.v === undefined ? NaN : +cell.dataset.v;
      };
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (typeof x === "string") return (down ? -1 : 1) * x.localeCompare(y, undefined, { numeric: true });
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
        return (down ? -1 : 1) * (x - y);
      };
      body.append(...[...body.rows].sort(order));
    });
  });

  window.addEventListener("beforeprint", () => document.querySelectorAll("details:not(.more)").forEach((d) => (d.open = true)));
})();
