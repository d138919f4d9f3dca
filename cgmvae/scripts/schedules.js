// v.t: steps; v.scales: time scales; v.w: weights by scale, schedule and step; v.arrives: a step, or null.
const slider = at("input"), lines = root.querySelectorAll("polyline");
const cells = root.querySelectorAll(".arrives");
function draw() {
  const s = slider.value;
  at("output").textContent = v.scales[s];
  lines.forEach((line, i) => {
    line.setAttribute("points", v.t.map((t, j) => `${t / 50},${200 - 200 * v.w[s][i][j]}`).join(" "));
    const step = v.arrives[s][i];
    cells[i].textContent = step === null ? "not within 50,000 steps"
      : "step " + step.toLocaleString("en") + (step > v.t.at(-1) ? ", to the right of this picture" : "");
  });
}
slider.addEventListener("input", draw); draw();
