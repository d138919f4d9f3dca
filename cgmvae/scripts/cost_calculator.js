// v: by data set and estimator the a and b of a + b K, operations an image and step.
const inputs = root.querySelectorAll("input, select");
function draw() {
  const K = Number(at(".K").value), B = Number(at(".B").value), lines = v[at("select").value];
  if (!(K >= 1 && B >= 1)) { at(".answer").textContent = "K and the batch are whole numbers of at least 1."; return; }
  const rounded = (x) => x.toLocaleString("en", {maximumSignificantDigits: 3});
  const cost = (name) => B * (lines[name][0] + lines[name][1] * K);
  const show = (x) => rounded(x / 1e9) + " GFLOP";
  at(".answer").textContent = `One step: concrete ${show(cost("concrete"))}, marginal ${show(cost("marginal"))}. `
    + `Predicted ratio ${rounded(cost("marginal") / cost("concrete"))}.`;
}
inputs.forEach((input) => input.addEventListener("input", draw)); draw();
