// v: by data set and estimator the a and b of a + b K, operations an image and step.
const inputs = root.querySelectorAll("input, select");
function draw() {
  const K = Number(at(".K").value), B = Number(at(".B").value), lines = v[at("select").value];
  if (!(K >= 1 && B >= 1)) { at(".answer").textContent = "K and the batch are whole numbers of at least 1."; return; }
  const cost = (name) => B * (lines[name][0] + lines[name][1] * K);
  const show = (x) => (x / 1e9).toPrecision(3) + " GFLOP";
  at(".answer").textContent = `One step: concrete ${show(cost("concrete"))}, marginal ${show(cost("marginal"))}. `
    + `Predicted ratio ${(cost("marginal") / cost("concrete")).toPrecision(3)}.`;
}
inputs.forEach((input) => input.addEventListener("input", draw)); draw();
