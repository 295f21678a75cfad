// Sets the chosen theme before the first paint, so that a dark page does not flash white.
// A classic script: modules run after the first paint.
"use strict";
{
  const chosen = new URLSearchParams(location.search).get("theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
}
