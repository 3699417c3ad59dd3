// Paper is white: a dark page is printed in the light theme, and is dark again afterwards.
(() => {
  const page = document.documentElement;
  let before;
  addEventListener("beforeprint", () => {
    before = page.dataset.theme;
    page.dataset.theme = "light";
  });
  addEventListener("afterprint", () => {
    page.dataset.theme = before;
  });
})();
