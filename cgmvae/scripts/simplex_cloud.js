// v.frames: for each temperature the points (x, y); v.tau: the temperatures; v.colour: of the points.
const dots = at(".dots"), slider = at("input");
for (const _ of v.frames[0]) {
  const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  dot.setAttribute("r", ".011"); dot.setAttribute("fill", v.colour); dot.setAttribute("fill-opacity", ".55");
  dots.appendChild(dot);
}
function draw() {
  const points = v.frames[slider.value];
  at("output").textContent = v.tau[slider.value];
  [...dots.children].forEach((dot, i) => {
    dot.setAttribute("cx", points[i][0]); dot.setAttribute("cy", -points[i][1]);
  });
}
slider.addEventListener("input", draw); draw();
