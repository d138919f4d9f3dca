// A box that scrolls must be reached by keyboard. The theme looks for such boxes when the window
// changes; when a solution unfolds they change too.
document.addEventListener("click", (event) => {
  if (event.target.closest(".dropdown > .admonition-title")) window.dispatchEvent(new Event("resize"));
});
