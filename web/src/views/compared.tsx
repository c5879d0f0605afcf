/** What fine-tuning changed: the comparison's own page, in a frame that runs no script. */

import { comparedPath } from "../api";
import { useStore } from "../store";
import { dark } from "../theme";
import type { Compared } from "../types";

export function ComparedView({ compared }: { compared: Compared }) {
  const isDark = useStore(dark);
  return (
    <div class="compared">
      <header>
        <h1>{compared.name}</h1>
        <p class="dim">
          {compared.base} and its fine-tune {compared.tuned}, compared at {compared.hook_point}. <a href={`/api${comparedPath(compared)}/report`} target="_blank">The page alone</a>
        </p>
      </header>
      <iframe src={`/api${comparedPath(compared)}/report?colours=${isDark ? "dark" : "light"}`} sandbox="" title={`What fine-tuning changed: ${compared.headline}`} />
    </div>
  );
}
