// v.frames: for each temperature the place (x, y) of each moving point; v.tau: the temperatures.
const points = [...at(".moving").children], slider = at("input");
function draw() {
  at("output").textContent = v.tau[slider.value];
  points.forEach((point, i) => {
    const [x, y] = v.frames[slider.value][i];
    point.setAttribute("transform", `translate(${x} ${y})`);
  });
}
slider.addEventListener("input", draw); draw();
