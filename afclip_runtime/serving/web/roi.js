"use strict";

// Draws a region of interest on the image, and saves it as a file for calibrate --roi.

const outlines = {size: null, include: [], ignore: []}; // corners in pixels of the image
let drawing = null; // {kind, corners}: the outline that is still open
const NEAR = 10; // CSS pixels: a click this close to the first corner closes the outline

// Called when an image is shown. Outlines are kept for images of the same size.
function regionShown(width, height) {
  const [w, h] = outlines.size ?? [];
  if (w !== width || h !== height) Object.assign(outlines, {size: [width, height], include: [], ignore: []});
  drawing = null;
  drawOutlines();
}

function drawOutlines() {
  const [width, height] = outlines.size;
  const shape = (tag, kind, corners) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    element.setAttribute("points", corners.map((corner) => corner.join(",")).join(" "));
    element.setAttribute("class", kind);
    return element;
  };
  const closed = ["include", "ignore"].flatMap((kind) => outlines[kind].map((corners) => shape("polygon", kind, corners)));
  const open = drawing ? [shape("polyline", drawing.kind, drawing.corners)] : [];
  $("outlines").setAttribute("viewBox", `0 0 ${width} ${height}`);
  $("outlines").replaceChildren(...closed, ...open);
  $("frame").classList.toggle("drawing", drawing !== null);
  const count = closed.length;
  for (const kind of ["include", "ignore"]) $(`draw-${kind}`).setAttribute("aria-pressed", drawing?.kind === kind);
  $("remove-outlines").hidden = $("download-region").hidden = !count;
  $("region-said").textContent = drawing ? "Click the corners on the image. Click the first corner again or press Enter to close the outline. Backspace removes the last corner, Escape the outline."
    : count ? `${count} ${count === 1 ? "outline" : "outlines"}. Download the file and calibrate with it: calibrate --roi roi.json --normal DIR.`
    : "Region of interest: draw the inspected part on the image, and calibrate with the file.";
}

function close() {
  if (drawing.corners.length >= 3) outlines[drawing.kind].push(drawing.corners);
  drawing = null;
  drawOutlines();
}

for (const kind of ["include", "ignore"]) {
  $(`draw-${kind}`).addEventListener("click", () => {
    drawing = drawing?.kind === kind ? null : {kind, corners: []};
    drawOutlines();
    if (drawing) $("frame").scrollIntoView({block: "nearest"});
  });
}
$("frame").addEventListener("click", (event) => {
  if (!drawing) return;
  const place = $("frame").getBoundingClientRect(), [width, height] = outlines.size;
  const scale = [place.width / width, place.height / height];
  const corner = [(event.clientX - place.left) / scale[0], (event.clientY - place.top) / scale[1]].map((value) => Math.round(10 * value) / 10);
  const first = drawing.corners[0];
  const near = first && Math.hypot((corner[0] - first[0]) * scale[0], (corner[1] - first[1]) * scale[1]) < NEAR;
  if (near && drawing.corners.length >= 3) return close();
  drawing.corners.push(corner);
  drawOutlines();
});
document.addEventListener("keydown", (event) => {
  if (!drawing || !["Enter", "Escape", "Backspace"].includes(event.key)) return;
  event.preventDefault();
  if (event.key === "Enter") return close();
  if (event.key === "Escape") drawing = null;
  else drawing.corners.pop();
  drawOutlines();
});
$("remove-outlines").addEventListener("click", () => {
  Object.assign(outlines, {include: [], ignore: []});
  drawOutlines();
});
$("download-region").addEventListener("click", () => {
  saveAs(new Blob([JSON.stringify(outlines)], {type: "application/json"}), "roi.json");
});
