/** Light, dark, or as the system says. */

import { remembered, store } from "./store";

export type Theme = "system" | "light" | "dark";

export const theme = remembered<Theme>("theme", "system");
const system = matchMedia("(prefers-color-scheme: dark)");

/** What is on the screen now; canvases draw by it. */
export const dark = store(false);

function apply(): void {
  const chosen = theme.get();
  if (chosen === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  dark.set(chosen === "system" ? system.matches : chosen === "dark");
}

theme.subscribe(apply);
system.addEventListener("change", apply);
apply();

export const toggleTheme = (): void => theme.set(dark.get() ? "light" : "dark");
