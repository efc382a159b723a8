"use strict";

const SVG = "http" + "://www.w3.org/2000/svg"; // a name, not an address: nothing is loaded

function setUpViewer(viewer) {
  const data = JSON.parse(viewer.querySelector(".viewer-data").textContent);
  const shown = data.layers.map(() => true);
  const slider = viewer.querySelector(".z-slider");
  const place = viewer.querySelector(".z-place");
  let slice = Number(slider.value);

  const planes = (axis) => (axis === "z" ? data.slabs[slice] : data.central["zyx".indexOf(axis)]);

  function circlesOf(axis) {
    const number = "zyx".indexOf(axis);
    const [row, column] = [0, 1, 2].filter((i) => i !== number);
    const [first, behind] = planes(axis);
    const circles = [];
    data.layers.forEach((layer, i) => {
      if (layer.kind !== "picks" || !shown[i]) return;
      for (const point of layer.points) {
        const at = point[number];
        const radius = point[3] || 6;
        const away = at < first ? first - at : at > behind - 1 ? at - (behind - 1) : 0;
        if (away > radius) continue;
        const cut = Math.max(Math.sqrt(radius * radius - away * away), 1.5);
        circles.push([point[column] + 0.5, point[row] + 0.5, cut, layer.colour]);
      }
    });
    return circles;
  }

  function mark(name, attributes) {
    const found = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
    return found;
  }

  function drawMarks(figure, axis) {
    const svg = figure.querySelector(".marks");
    const marks = circlesOf(axis).map(([cx, cy, r, stroke]) => mark("circle", { cx, cy, r, stroke }));
    if (axis !== "z") {
      const [first, behind] = data.slabs[slice];
      const y = (first + behind) / 2;
      marks.push(mark("line", { x1: 0, x2: svg.viewBox.baseVal.width, y1: y, y2: y }));
    }
    svg.replaceChildren(...marks);
  }

  function draw(figure) {
    const axis = figure.dataset.view;
    const number = axis === "z" ? slice : 0;
    const [first, behind] = planes(axis);
    const which = behind === first + 1 ? `${first}` : `${first} to ${behind - 1}`;
    const text = `${axis} = ${which} of 0 to ${data.shape["zyx".indexOf(axis)] - 1}`;
    const grey = figure.querySelector(".grey");
    grey.src = data.grey[axis][number];
    grey.alt = grey.alt.replace(/slice at .*$/, `slice at ${text}`);
    for (const image of figure.querySelectorAll("img.layer")) {
      const layer = data.layers[image.dataset.layer];
      const uri = layer[axis][number];
      image.hidden = !uri || !shown[image.dataset.layer];
      if (uri) image.src = uri;
    }
    drawMarks(figure, axis);
    if (axis === "z") {
      place.textContent = text;
      slider.setAttribute("aria-valuetext", text);
    }
  }

  const drawAll = () => viewer.querySelectorAll("figure[data-view]").forEach(draw);

  slider.addEventListener("input", () => {
    slice = Number(slider.value);
    drawAll();
  });
  viewer.querySelectorAll("input[type=checkbox]").forEach((box) => {
    box.addEventListener("change", () => {
      shown[box.dataset.layer] = box.checked;
      drawAll();
    });
    shown[box.dataset.layer] = box.checked;
  });
  const opacity = viewer.querySelector(".opacity");
  if (opacity) {
    const apply = () => viewer.style.setProperty("--opacity", opacity.value / 100);
    opacity.addEventListener("input", apply);
    apply();
  }
  drawAll();
}

function setUpTable(table) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : cell.dataset.value;
  };
  const order = (a, b) => {
    const difference = Number(a) - Number(b);
    return a === "" || b === "" || Number.isNaN(difference) ? compare(a, b) : difference;
  };
  table.querySelectorAll("thead button").forEach((button) => {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const falls = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("thead th").forEach((one) => one.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", falls ? "descending" : "ascending");
      const column = Number(button.dataset.column);
      rows.sort((a, b) => (falls ? -1 : 1) * order(valueOf(a, column), valueOf(b, column)));
      body.append(...rows);
    });
  });
  const find = document.querySelector(".find");
  if (!find) return;
  find.addEventListener("input", () => {
    const wanted = find.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}

document.querySelectorAll(".viewer").forEach(setUpViewer);
document.querySelectorAll("table.tomograms").forEach(setUpTable);
